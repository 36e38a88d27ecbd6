"""Each format: the columns that it reads, and the conversion of a row to an example."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuneforge.data.columns import SYSTEM
from tuneforge.data.rows import kind_of
from tuneforge.data.turns import (
    FLAGS,
    TOOL_KEYS,
    WEIGHTS,
    Message,
    RowError,
    checked,
    flag,
    history_of,
    is_blank,
    listed,
    lost,
    turns_of,
    with_system,
)


@dataclass(frozen=True, slots=True)
class Example:
    """One row in the form that training takes: messages, or prompt and completion, or text, or text and labels."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    completion: str = ""
    text: str = ""
    origin: str = ""
    group: str = ""
    held_out: bool | None = None
    labels: tuple[str, ...] | None = None
    """The classes that the text has; None where the row is not for classification."""
    multi_label: bool = False
    """The row gave a list of them."""

    @property
    def without_loss(self) -> frozenset[int]:
        """Indices of the turns that the row marks to be without loss, whatever `data.train_on` is."""
        return frozenset()

    @property
    def answers(self) -> list[int]:
        """Indices of the turns that the loss is taken on under `data.train_on=assistant`."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]


@dataclass(frozen=True, slots=True)
class PartlyLearntExample(Example):
    """A conversation with answers that are without loss. A class of its own, so that plugins build the simple one."""

    masked: frozenset[int] = frozenset()
    """Indices of the turns that the row marks to be without loss."""
    prompt_turns: int = 0
    """Turns before the completion: answers among them are without loss under `data.train_on=assistant`."""

    @property
    def without_loss(self) -> frozenset[int]:
        """Indices of the turns that the row marks to be without loss, whatever `data.train_on` is."""
        return self.masked

    @property
    def answers(self) -> list[int]:
        """Indices of the turns that the loss is taken on under `data.train_on=assistant`."""
        turns = range(self.prompt_turns, len(self.messages))
        return [i for i in turns if self.messages[i]["role"] == "assistant" and i not in self.masked]


@dataclass(frozen=True, slots=True)
class Format:
    """One entry of the table of formats: what a new format brings."""

    columns: tuple[tuple[str, ...], ...]
    """The columns a row needs; more than one tuple means alternatives."""
    convert: Callable[[Mapping[str, Any]], Example]
    """Raises `RowError`. Origin, group and held_out are filled in afterwards."""
    optional: tuple[str, ...] = ()
    by_name_only: bool = False
    """Never recognised from the columns: what else has them is learnt from in another way."""

    def fits(self, columns: Mapping[str, Any]) -> bool:
        """Whether the columns hold all that one alternative needs."""
        return any(columns.keys() >= set(needed) for needed in self.columns)

    @property
    def reads(self) -> frozenset[str]:
        """Every column that it makes use of."""
        names = {name for needed in self.columns for name in needed} | {*self.optional}
        return frozenset(names | {*SYSTEM} if "system" in names else names)

    def __str__(self) -> str:
        needed = " or ".join(" + ".join(names) for names in self.columns)
        return needed + (f", optional {', '.join(self.optional)}" if self.optional else "")


def alike(examples: list[Example]) -> list[Example]:
    """The examples, with plain prompts and completions made into turns where another example has turns.

    A chat template writes one and not the other: mixed, the model would learn two layouts.
    """
    if all(example.messages for example in examples) or not any(example.messages for example in examples):
        return examples
    return [e if e.messages or not e.completion else _spoken(e.prompt, e.completion, e) for e in examples]


def _spoken(
    prompt: str, completion: str, rest: Example, before: tuple[Message, ...] = (), masked: frozenset[int] = frozenset()
) -> Example:
    """A prompt and a completion as turns."""
    asked: tuple[Message, ...] = ({"role": "user", "content": prompt},) if prompt.strip() else ()
    head = (*before, *asked)
    messages: tuple[Message, ...] = (*head, {"role": "assistant", "content": completion})
    return _chatted(messages, masked, len(head), rest)


def _chatted(
    messages: tuple[Message, ...], masked: frozenset[int], prompt_turns: int, rest: Example | None = None
) -> Example:
    """A conversation; of the plain kind where all of its answers are learnt."""
    rest = rest or Example()
    given: dict[str, Any] = {
        "messages": messages,
        "origin": rest.origin,
        "group": rest.group,
        "held_out": rest.held_out,
    }
    whole = Example(**given)
    partly = PartlyLearntExample(**given, masked=masked, prompt_turns=prompt_turns)
    return whole if not masked and partly.answers == whole.answers else partly


# One function for each format


class WithoutLossError(RowError):
    """A row that asks to be left out of the loss as a whole."""


def converter(format: str) -> Callable[[Mapping[str, Any]], Example]:
    """The function of a format, after what all formats refuse."""

    def to_example(fields: Mapping[str, Any]) -> Example:
        losing = [] if format in ("text", "classification") else lost(fields)
        if losing and losing[0] == "tools":
            raise RowError("'tools' is not supported: the tools would be missing from the prompt", "tools")
        if losing:
            where = "the prompt" if losing[0] in TOOL_KEYS else "what is learnt"
            raise RowError(f"{losing[0]!r} is not supported: it would be missing from {where}", losing[0])
        if flag(fields) is False:
            flags = (*FLAGS, *WEIGHTS)
            said = next(f"{name!r} is {fields[name]!r}" for name in flags if fields.get(name) is not None)
            raise WithoutLossError(said)
        return FORMATS[format].convert(fields)

    return to_example


def _alpaca(fields: Mapping[str, Any]) -> Example:
    instruction = _text(fields, "instruction", may_be_blank=True)
    asked = "\n\n".join(part for part in (instruction, _optional(fields, "input")) if part.strip())
    if not asked:
        raise RowError("'instruction' is empty")
    answer = _text(fields, "output")
    earlier, masked = history_of(fields.get("history"))
    turns: tuple[Message, ...] = (
        *earlier,
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answer},
    )
    return _conversation(turns, masked, fields)


def _chat(fields: Mapping[str, Any]) -> Example:
    found = [name for name in ("messages", "conversations") if fields.get(name) is not None]
    if len(found) > 1 and not any(is_blank(fields[name]) for name in found):
        raise RowError("has both 'messages' and 'conversations'", "conversations")
    column = next((name for name in found if not is_blank(fields[name])), found[0] if found else "messages")
    messages, masked = turns_of(_column(fields, column), column)
    return _conversation(messages, masked, fields)


def _prompt_completion(fields: Mapping[str, Any]) -> Example:
    system, column = _system(fields)
    earlier, masked = history_of(fields.get("history"))
    if any(are_turns(fields.get(name)) for name in ("prompt", "completion")):
        prompt, masked_prompt = turns_of(_column(fields, "prompt"), "prompt")
        completion, masked_completion = turns_of(_column(fields, "completion"), "completion")
        head = (*earlier, *prompt)
        masked |= {len(earlier) + i for i in masked_prompt} | {len(head) + i for i in masked_completion}
        if "system" in [message["role"] for message in completion]:
            raise RowError("a turn of 'completion' is of the system; it belongs into 'prompt'")
        return _conversation((*head, *completion), masked, fields, len(head))
    prompt_text, completion_text = _text(fields, "prompt", may_be_blank=True), _text(fields, "completion")
    if not earlier and not system.strip():
        return Example(prompt=prompt_text, completion=completion_text)
    before = with_system(earlier, system, column)
    shift = len(before) - len(earlier)
    return _spoken(prompt_text, completion_text, Example(), before, frozenset(i + shift for i in masked))


def are_turns(value: object) -> bool:
    """Whether a value is a list of turns, also as JSON text; other text that starts with a bracket is a text."""
    if isinstance(value, str):
        value = listed(value)
        return isinstance(value, list) and bool(value) and all(isinstance(i, Mapping) for i in value)
    return isinstance(value, list | tuple)


def _plain_text(fields: Mapping[str, Any]) -> Example:
    return Example(text=_text(fields, "text"))


def _classification(fields: Mapping[str, Any]) -> Example:
    text = _text(fields, "text")
    found = [name for name in ("label", "labels") if fields.get(name) is not None]
    if not found:
        raise RowError("has neither a 'label' nor 'labels'")
    if len(found) > 1:
        raise RowError("has both 'label' and 'labels'")
    if found == ["label"]:
        return Example(text=text, labels=(_label(fields["label"], "'label'"),))
    value = fields["labels"]
    if not isinstance(value, list | tuple):
        raise RowError(f"'labels' is {kind_of(value)}, not a list; one label goes into a column 'label'")
    names = tuple(sorted({_label(one, "an item of 'labels'") for one in value}))
    return Example(text=text, labels=names, multi_label=True)


def _label(value: object, what: str) -> str:
    """A label's name: text, a whole number (sets often number their classes), or true and false as JSON spells them."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else checked(value, what, False).strip()


FORMATS: dict[str, Format] = {
    "alpaca": Format((("instruction", "output"),), _alpaca, ("input", "system", "history")),
    "chat": Format((("messages",), ("conversations",)), _chat, ("system",)),
    "prompt_completion": Format((("prompt", "completion"),), _prompt_completion, ("system", "history")),
    "text": Format((("text",),), _plain_text),
    "classification": Format((("text", "label"), ("text", "labels")), _classification, by_name_only=True),
}


# What the formats share


def _column(fields: Mapping[str, Any], column: str) -> Any:
    if column not in fields:
        raise RowError(f"no column {column!r} (it has: {', '.join(map(repr, fields)) or 'none'})")
    return fields[column]


def _text(fields: Mapping[str, Any], column: str, *, may_be_blank: bool = False) -> str:
    return checked(_column(fields, column), repr(column), may_be_blank)


def _optional(fields: Mapping[str, Any], column: str) -> str:
    value = fields.get(column)
    return "" if value is None else checked(value, repr(column), True)


def _system(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The system text of the row's columns, and the column that has it."""
    texts = {name: _optional(fields, name) for name in SYSTEM}
    found = {name: text for name, text in texts.items() if text.strip()}
    if len({text.strip() for text in found.values()}) > 1:
        first, second = [*found][:2]
        raise RowError(f"{first!r} and {second!r} hold different system texts", second)
    return next(((text, name) for name, text in found.items()), ("", ""))


def _conversation(
    turns: tuple[Message, ...], masked: frozenset[int], fields: Mapping[str, Any], prompt_turns: int = 0
) -> Example:
    if not turns:
        raise RowError("the conversation has no turns")
    messages = with_system(turns, *_system(fields))
    shift = len(messages) - len(turns)
    without_loss = frozenset(i + shift for i in masked)
    example = _chatted(messages, without_loss, prompt_turns + shift if prompt_turns else 0)
    if example.answers:
        return example
    if all(message["role"] != "assistant" for message in turns[prompt_turns:]):
        raise RowError("the conversation has no assistant turn, so nothing to learn")
    raise RowError("every assistant turn is marked to be without loss, so there is nothing to learn")
