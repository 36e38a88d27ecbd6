"""Turns of conversations: their roles and text, which of them are trained on, and what cannot be kept of them."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypedDict

from tuneforge.data.rows import kind_of, parse_json

CHAT_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}

TRAIN_FLAGS = (
    "train", "training", "trainable", "train_on", "loss", "has_loss", "compute_loss", "loss_mask", "weight", "learn",
    "supervised",
)  # fmt: skip
"""Keys that are true, or 1, where the loss is taken: Axolotl writes `train`, ms-swift `loss`, OpenAI `weight`."""
MASK_FLAGS = ("mask", "masked", "is_masked", "no_loss", "ignore_loss")
"""Keys that are true, or 1, where no loss is taken."""
FLAGS = (*TRAIN_FLAGS, *MASK_FLAGS)
WEIGHTS = ("loss_weight", "loss_scale", "sample_weight")
"""Keys that weigh the loss: 0 and 1 are followed, other numbers cannot be."""
_ABOUT_LOSS = re.compile(
    r"(?:.*_)?(?:train|training|trained|trainable|loss|learn|learned|supervise|supervised|mask|masked|weight)(?:_.*)?"
)

TOOL_KEYS = ("tools", "functions", "function_call", "tool_calls", "tool_call_id", "tool_choice")
REASONING_KEYS = ("reasoning", "reasoning_content", "reasoning_details", "thinking")
MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios")
LOSS_KEYS = ("train_detail", *WEIGHTS)
UNSUPPORTED = (*TOOL_KEYS, *REASONING_KEYS, *MEDIA_KEYS, *LOSS_KEYS, "chat_template_kwargs")
"""Keys of a turn, and columns of a row, that change what is learnt and that an Example cannot hold."""


class RowError(ValueError):
    """Why one row cannot be used. The message follows the row's origin."""

    def __init__(self, message: str, column: str = "") -> None:
        super().__init__(message)
        self.column = column
        """The column that can be left unread instead: `data.columns.COLUMN=null`."""


class Message(TypedDict):
    """One turn. A dict, because chat templates and transformers' apply_chat_template take dicts."""

    role: str
    """system, user, assistant or tool."""
    content: str


def is_blank(value: object) -> bool:
    """Whether a value holds nothing: null, false, blank text, an empty list or object, also written as JSON text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value is False or (isinstance(value, list | tuple | Mapping) and not value)


def checked(value: object, what: str, may_be_blank: bool) -> str:
    """The value as text.

    Raises:
        RowError: no text, blank text where that is not allowed, or half a character.
    """
    if not isinstance(value, str):
        raise RowError(f"{what} is {kind_of(value)}" + ("" if value is None else ", not text"))
    if not may_be_blank and not value.strip():
        raise RowError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair (a text cut inside an emoji); no tokenizer takes it.
        raise RowError(f"{what} holds half a character, {value[error.start]!a}, at {error.start}") from None
    return value


def listed(value: object) -> object:
    """A list that is written as JSON text, as in CSV files and many Parquet files; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value)
        except (ValueError, RecursionError):
            return value
    return value


def is_about_loss(name: str, value: object) -> bool:
    """Whether a key may say, by its name and a number or true or false, whether a loss is taken."""
    return isinstance(value, int | float) and _ABOUT_LOSS.fullmatch(name.strip().lower()) is not None


def lost(values: Mapping[str, Any]) -> list[str]:
    """The keys of a turn or a row that hold what would be lost."""
    return [key for key in UNSUPPORTED if not is_blank(values.get(key)) and not _is_whole(key, values[key])]


def _is_whole(key: str, value: object) -> bool:
    return key in WEIGHTS and isinstance(value, int | float) and value in (0, 1)


def flag(values: Mapping[str, Any], where: str = "") -> bool | None:
    """Whether the keys of a turn or a row ask for a loss on it; None where they do not say.

    Raises:
        RowError: a flag that is neither true nor false, or flags that contradict each other.
    """
    asked: dict[str, bool] = {}
    for key in FLAGS:
        value = values.get(key)
        if value is None or (isinstance(value, str) and not value.strip()):  # CSV writes null as blank text
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            shown = repr(value)[:40] if isinstance(value, str | int | float) else kind_of(value)
            raise RowError(f"{where}{key!r} is {shown}; wanted: true or false, or 1 or 0", "" if where else key)
        asked[key] = bool(value) == (key in TRAIN_FLAGS)
    asked |= {key: bool(values[key]) for key in WEIGHTS if _is_whole(key, values.get(key))}
    if len(set(asked.values())) > 1:
        raise RowError(f"{where}{' and '.join(map(repr, asked))} contradict each other")
    return next(iter(asked.values()), None)


def turns_of(value: object, column: str) -> tuple[tuple[Message, ...], frozenset[int]]:
    """The turns of a column, and the indices of those that are marked to be without loss.

    Raises:
        RowError: what is no list of turns, or holds what would be lost.
    """
    value = listed(value)
    if not isinstance(value, list | tuple):
        raise RowError(f"{column!r} is {kind_of(value)}" + ("" if value is None else ", not a list of turns"))
    turns = [_turn(turn, f"turn {number} of {column!r}") for number, turn in enumerate(value, 1)]
    return tuple(message for message, _ in turns), frozenset(i for i, (_, learnt) in enumerate(turns) if not learnt)


def turn_keys(turn: Mapping[str, Any]) -> tuple[str, str]:
    """The keys that hold the role and the text of a turn."""
    return ("from", "value") if turn.get("from") is not None else ("role", "content")


def _turn(turn: object, where: str) -> tuple[Message, bool]:
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind_of(turn)}, not an object with role and content")
    who, what = turn_keys(turn)
    roles = SHAREGPT_ROLES if who == "from" else CHAT_ROLES
    for key in (who, what):
        if key not in turn:
            raise RowError(f"{where} has no {key!r} (it has: {', '.join(map(repr, turn)) or 'none'})")
    name = turn[who]
    role = roles.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{where} has the unknown role {str(name)[:40]!r} (known: {', '.join(roles)})")
    if losing := lost(turn):
        raise RowError(f"{where} has {losing[0]!r}, which is not supported and would be lost")
    learnt = flag(turn, f"{where}: ")
    unknown = [key for key, value in turn.items() if key not in (*FLAGS, *WEIGHTS) and is_about_loss(key, value)]
    if unknown:
        raise RowError(f"{where} has {unknown[0]!r}, which is not known; write 'train': false for a turn without loss")
    _refuse_media(turn[what], f"{what!r} of {where}")
    return {
        "role": role,
        "content": checked(turn[what], f"{what!r} of {where}", role != "assistant"),
    }, learnt is not False


def _refuse_media(content: object, what: str) -> None:
    """Name the kind of a part that is no text: `is a list, not text` would not say that an image is the trouble."""
    parts = content if isinstance(content, list | tuple) else ()
    kinds = [part.get("type") for part in parts if isinstance(part, Mapping)]
    other = [kind for kind in kinds if kind != "text"]
    if other:
        raise RowError(f"{what} has a part of type {str(other[0])[:40]!r}, which is not supported and would be lost")


def history_of(value: object) -> tuple[tuple[Message, ...], frozenset[int]]:
    """The earlier turns of a conversation, from [question, answer] pairs or from turns, and those without loss.

    Raises:
        RowError: neither of them.
    """
    value = listed(value)
    if is_blank(value):
        return (), frozenset()
    if not isinstance(value, list | tuple):
        raise RowError(f"'history' is {kind_of(value)}, not a list of [question, answer] pairs or of turns")
    if all(isinstance(item, Mapping) for item in value):
        return turns_of(value, "history")
    messages: list[Message] = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            shown = f"a list of {len(pair)}" if isinstance(pair, list | tuple) else kind_of(pair)
            raise RowError(f"item {number} of 'history' is {shown}, not a pair [question, answer]")
        question = checked(pair[0], f"the question of item {number} of 'history'", True)
        answer = checked(pair[1], f"the answer of item {number} of 'history'", False)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tuple(messages), frozenset()


def with_system(messages: Sequence[Message], system: str, column: str) -> tuple[Message, ...]:
    """The conversation with the system text of a column as its first turn; its own may be the same or blank.

    Raises:
        RowError: the conversation has another system text.
    """
    if not system.strip():
        return tuple(messages)
    own = [message for message in messages if message["role"] == "system" and message["content"].strip()]
    if any(message["content"].strip() != system.strip() for message in own):
        raise RowError(f"{column!r} is one system text, and a system turn another one", column)
    if own:
        return tuple(messages)
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages  # a blank one
    return ({"role": "system", "content": system}, *rest)


def oddities(messages: Sequence[Message]) -> list[str]:
    """What is unusual in the order of the turns. None of it stops a row: the template may refuse it."""
    found = []
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        found.append("a system turn that is not the first")
    spoken = [role for role in roles if role != "system"]
    for role in ("user", "assistant"):
        if any(a == b == role for a, b in pairwise(spoken)):
            found.append(f"two {role} turns in a row")
    if spoken and spoken[0] == "assistant":
        found.append("an assistant turn first")
    if spoken and spoken[-1] != "assistant":
        found.append(f"a {spoken[-1]} turn last, which no answer follows")
    return found
