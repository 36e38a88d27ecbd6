"""What the columns of a row mean: each format's columns, how it is recognised, and its conversion to examples."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from tuneforge.data.rows import Row, first_few, kind_of
from tuneforge.errors import Problem, TuneforgeError, did_you_mean, near
from tuneforge.targets import load

CHAT_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}

_LOOK = 100
"""Rows whose columns decide the format."""
_SHOWN = 5
"""Bad rows that a message spells out; the rest are counted."""
_UNSUPPORTED = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Keys of a turn that change what is learnt and that an Example cannot carry; other extra keys (ids, dates) do not."""


class Message(TypedDict):
    """One turn. A dict, because chat templates and transformers' apply_chat_template take dicts."""

    role: str
    """system, user, assistant or tool."""
    content: str


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

    def __str__(self) -> str:
        needed = " or ".join(" + ".join(names) for names in self.columns)
        return needed + (f", optional {', '.join(self.optional)}" if self.optional else "")


class RowError(ValueError):
    """Why one row cannot be used, in words that follow the row's origin."""


def recognise(rows: Sequence[Row], wanted: str = "auto") -> str:
    """The format of the rows: `wanted` if their columns allow it; with "auto", the one format that they fit."""
    if wanted != "auto" and wanted not in _FORMATS and "." not in wanted:
        hint = did_you_mean(wanted, ["auto", *_FORMATS])
        raise TuneforgeError("unknown-format", f"unknown format {wanted!r}", path="data.format", fix=hint)
    if not rows:
        raise TuneforgeError(
            "no-rows", "the data has no rows", path="data.path", fix="name a source with at least one row"
        )
    if "." in wanted:
        return wanted  # a function of a plugin's: it judges each row itself
    columns = dict.fromkeys(name for row in rows[:_LOOK] for name in row.fields)
    considered = [name for name, f in _FORMATS.items() if not f.by_name_only] if wanted == "auto" else [wanted]
    fitting = [name for name in considered if _FORMATS[name].fits(columns)]
    if not fitting:
        raise _no_format(columns, considered, rows[0].origin)
    # Sets often carry the rendered text beside its parts (tatsu-lab/alpaca does); the parts say more.
    fitting = [name for name in fitting if name != "text"] or fitting
    if len(fitting) > 1:
        raise _several_formats(rows[:_LOOK], fitting)
    _check_optional(columns, fitting[0])
    return fitting[0]


def _check_optional(columns: Mapping[str, Any], form: str) -> None:
    """Refuse `Input` or `inputs` beside no `input`: an optional column misspelt would be dropped in silence."""
    for wanted in _FORMATS[form].optional:
        close = [name for name in columns if name.strip().lower().rstrip("s") == wanted]
        if close and wanted not in columns:
            message = f"column {close[0]!r} is close to {wanted!r}, which {form} reads, but not the same"
            raise TuneforgeError("misspelt-column", message, path="data.format", fix="rename or remove the column")


def _no_format(columns: Mapping[str, Any], considered: Sequence[str], origin: str) -> TuneforgeError:
    needed = {name for form in considered for names in _FORMATS[form].columns for name in names}
    misses = []
    for column in columns.keys() - needed:
        close = near(column.strip().lower(), sorted(needed - columns.keys()), limit=1)
        misses += [f"column {column!r} is close to {name!r}: rename it" for name in close]
    wants = f"format {considered[0]!r}" if len(considered) == 1 else "any known format"
    found = ", ".join(map(repr, columns)) or "none"
    known = [f"{name}: {_FORMATS[name]}" for name in considered]
    fix = [*sorted(misses), "columns wanted:", *(f"  {line}" for line in known)]
    message = f"the columns do not fit {wants}; found: {found} (first row: {origin})"
    return TuneforgeError("no-format", message, path="data.format", fix="\n  ".join(fix))


def _several_formats(rows: Sequence[Row], fitting: Sequence[str]) -> TuneforgeError:
    both = [row for row in rows if sum(_FORMATS[name].fits(row.fields) for name in fitting) > 1]
    if both:
        message = f"the columns fit more than one format: {', '.join(fitting)} (first row: {both[0].origin})"
        return TuneforgeError(
            "several-formats", message, path="data.format", fix=f"choose one: data.format={fitting[0]}"
        )
    firsts = {name: next((row.origin for row in rows if _FORMATS[name].fits(row.fields)), "") for name in fitting}
    found = ", ".join(f"{origin} is {name}" for name, origin in firsts.items() if origin)
    fix = "keep one format in a source"
    return TuneforgeError("several-formats", f"the rows are of different formats: {found}", path="data.format", fix=fix)


def convert(
    rows: Sequence[Row], format: str, on_bad: Literal["error", "skip"] = "error"
) -> tuple[list[Example], list[Problem]]:
    """Every row as an example. Bad rows are one error, or with on_bad="skip" are left out and returned as problems."""
    examples: list[Example] = []
    bad: list[Problem] = []
    to_example: Callable[[Mapping[str, Any]], Example] = load(format) if "." in format else _FORMATS[format].convert
    for row in rows:
        try:
            example = to_example(row.fields)
        except RowError as reason:
            bad.append(Problem("bad-rows", str(reason), "data.path", row.origin))
            continue
        examples.append(replace(example, origin=row.origin, group=row.group, held_out=row.held_out))
    if bad and (on_bad == "error" or not examples):
        listed = first_few([f"{problem.origin}: {problem.message}" for problem in bad], _SHOWN)
        fix = "correct these rows" + (", or leave them out: data.on_bad=skip" if examples else "")
        message = f"{len(bad)} of {len(rows)} rows cannot be used as {format!r}:{listed}"
        raise TuneforgeError("bad-rows", message, path="data.path", fix=fix)
    if not examples:
        raise TuneforgeError(
            "no-rows", "the data has no rows", path="data.path", fix="name a source with at least one row"
        )
    return examples, bad


# One function for each format


def _alpaca(fields: Mapping[str, Any]) -> Example:
    instruction = _text(fields, "instruction", may_be_blank=True)
    asked = "\n\n".join(part for part in (instruction, _optional(fields, "input")) if part.strip())
    if not asked:
        raise RowError("'instruction' is empty")
    system = _optional(fields, "system")
    first: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    answer = _text(fields, "output")
    return Example(messages=(*first, {"role": "user", "content": asked}, {"role": "assistant", "content": answer}))


def _chat(fields: Mapping[str, Any]) -> Example:
    column = next((name for name in ("messages", "conversations") if fields.get(name) is not None), "messages")
    if fields.get("tools"):
        raise RowError("'tools' is not supported: the tools would be missing from the prompt")
    return Example(messages=_conversation(_turns(fields, column)))


def _prompt_completion(fields: Mapping[str, Any]) -> Example:
    if any(isinstance(fields.get(name), list | tuple) for name in ("prompt", "completion")):
        prompt, completion = _turns(fields, "prompt"), _turns(fields, "completion")
        _conversation(completion)
        return Example(messages=(*prompt, *completion))
    return Example(prompt=_text(fields, "prompt", may_be_blank=True), completion=_text(fields, "completion"))


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
    return str(value) if isinstance(value, int) else _checked(value, what, False).strip()


_FORMATS: dict[str, Format] = {
    "alpaca": Format((("instruction", "output"),), _alpaca, ("input", "system")),
    "chat": Format((("messages",), ("conversations",)), _chat),
    "prompt_completion": Format((("prompt", "completion"),), _prompt_completion),
    "text": Format((("text",),), _plain_text),
    "classification": Format((("text", "label"), ("text", "labels")), _classification, by_name_only=True),
}
FORMATS = tuple(_FORMATS)


# What the formats share


def _column(fields: Mapping[str, Any], column: str) -> Any:
    if column not in fields:
        raise RowError(f"no column {column!r} (it has: {', '.join(map(repr, fields)) or 'none'})")
    return fields[column]


def _text(fields: Mapping[str, Any], column: str, *, may_be_blank: bool = False) -> str:
    return _checked(_column(fields, column), repr(column), may_be_blank)


def _optional(fields: Mapping[str, Any], column: str) -> str:
    value = fields.get(column)
    return "" if value is None else _checked(value, repr(column), True)


def _checked(value: object, what: str, may_be_blank: bool) -> str:
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


def _turns(fields: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    value = _column(fields, column)
    if not isinstance(value, list | tuple):
        raise RowError(f"{column!r} is {kind_of(value)}" + ("" if value is None else ", not a list of turns"))
    return tuple(_turn(turn, f"turn {number} of {column!r}") for number, turn in enumerate(value, 1))


def _turn(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind_of(turn)}, not an object with role and content")
    sharegpt = turn.get("from") is not None
    who, what, roles = ("from", "value", SHAREGPT_ROLES) if sharegpt else ("role", "content", CHAT_ROLES)
    for key in (who, what):
        if key not in turn:
            raise RowError(f"{where} has no {key!r} (it has: {', '.join(map(repr, turn)) or 'none'})")
    name = turn[who]
    role = roles.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{where} has the unknown role {str(name)[:40]!r} (known: {', '.join(roles)})")
    lost = [key for key in _UNSUPPORTED if turn.get(key)]
    if lost:
        raise RowError(f"{where} has {lost[0]!r}, which is not supported and would be lost")
    if role == "assistant" and turn.get("weight") == 0:
        raise RowError(f"{where} has weight 0, which is not supported: it would be learnt")
    return {"role": role, "content": _checked(turn[what], f"{what!r} of {where}", role != "assistant")}


def _conversation(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages:
        raise RowError("the conversation has no turns")
    if all(message["role"] != "assistant" for message in messages):
        raise RowError("the conversation has no assistant turn, so nothing to learn")
    return messages


# A control


def shuffle_answers(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples with their last answers permuted, none keeping its own: form and vocabulary without the mapping.

    What a model still learns from these is format; what it learns more from the true ones is content.
    """
    if len(examples) < 2:
        raise TuneforgeError(
            "nothing-to-shuffle", "answers can be shuffled among 2 examples or more", path="data", fix="use more rows"
        )
    if all(example.labels is not None for example in examples):
        answers: list[Any] = [example.labels for example in examples]
        give: Callable[[Example, Any], Example] = lambda example, labels: replace(example, labels=labels)  # noqa: E731
    else:
        answers, give = [_answer(example) for example in examples], _with_answer
    generator = random.Random(seed)  # noqa: S311 - a reproducible control, no secret
    source = list(range(len(examples)))
    # Sattolo's shuffle: one cycle through all, so that no place keeps its own.
    for place in range(len(source) - 1, 0, -1):
        other = generator.randrange(place)
        source[place], source[other] = source[other], source[place]
    return [give(example, answers[i]) for example, i in zip(examples, source, strict=True)]


def _answer(example: Example) -> str:
    if example.messages:
        return example.messages[_last_assistant(example)]["content"]
    if not example.completion:
        fix = "use data.format=alpaca, chat or prompt_completion"
        raise TuneforgeError(
            "nothing-to-shuffle", f"{example.origin} has no answer to shuffle", path="data.format", fix=fix
        )
    return example.completion


def _with_answer(example: Example, answer: str) -> Example:
    if not example.messages:
        return replace(example, completion=answer)
    last = _last_assistant(example)
    turn: Message = {"role": "assistant", "content": answer}
    return replace(example, messages=(*example.messages[:last], turn, *example.messages[last + 1 :]))


def _last_assistant(example: Example) -> int:
    return max(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
