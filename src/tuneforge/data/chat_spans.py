"""Where the answers of a conversation are in its rendered text.

An answer starts where the template's generation prompt ends, and ends with its end-of-turn token. Both are known
exactly from two renderings: of the turns before the answer with the generation prompt, and of the turns up to the
answer. For all answers of a long conversation that is quadratic, so only some answers are located that way (the 1st,
2nd, 4th, 8th, ... and the last: about four times the work of rendering once), and the others by the text around them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneforge.data.rendering import apply_template
from tuneforge.data.turn_marks import PLACEHOLDER, TurnMarks
from tuneforge.errors import TuneforgeError

Span = tuple[int, int]

ALL_BELOW = 8
"""A conversation of up to this many answers has each located by its own two renderings."""
_OPEN, _CLOSE = "\U000f5a10", "\U000f5a11"
"""Mark an answer while it is located; characters of a private plane, which no text should have."""
_LONGEST_PROMPT = 256
"""Characters of a generation prompt that can be repeated by the answer."""


@dataclass(frozen=True, slots=True)
class Located:
    """The conversation up to and with an answer, and that answer's span in it."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, and what renders it."""

    tokenizer: PreTrainedTokenizerBase
    messages: list[dict[str, Any]]
    origin: str

    @property
    def answers(self) -> list[int]:
        """The turns that the model is to write."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    def rendered(self, turns: int | None = None, *, generate: bool = False) -> str:
        """The first `turns` turns as text; all of them by default."""
        return apply_template(self.tokenizer, self.messages[:turns], self.origin, generate)

    def with_contents(self, contents: dict[int, str]) -> "Chat":
        """The conversation with other contents of some turns."""
        changed = [{**m, "content": contents.get(i, m["content"])} for i, m in enumerate(self.messages)]
        return Chat(self.tokenizer, changed, self.origin)

    def locate(self, i: int) -> Located | None:
        """Locate answer `i`; None where the template does not write it in full after its own generation prompt."""
        prompt, upto = self.rendered(i, generate=True), self.rendered(i + 1)
        # What follows the end-of-turn token (a newline, usually) belongs to the layout, not to the answer.
        end = len(upto.rstrip())
        if not upto.startswith(prompt) or not _holds(prompt, upto[len(prompt) : end], self.messages[i]["content"]):
            return None
        return Located(upto, (len(prompt), end))


def answer_spans(chat: Chat, whole: str, marks: TurnMarks) -> list[Span] | None:
    """The spans of all answers in `whole`, the rendered chat; None where it writes earlier turns differently."""
    turns = chat.answers
    if len(turns) > ALL_BELOW:
        some = sorted({*(2**k - 1 for k in range(len(turns).bit_length())), len(turns) - 1})
        known = _located(chat, [turns[k] for k in some], whole, marks)
        if known is None:
            return None
        found = _by_surroundings(chat, known, whole)
        if found is not None:
            return found
    spans = _located(chat, turns, whole, marks)
    return None if spans is None else [spans[i] for i in turns]


def _located(chat: Chat, turns: Sequence[int], whole: str, marks: TurnMarks) -> dict[int, Span] | None:
    spans = {}
    for i in turns:
        located = chat.locate(i)
        if located is None:
            return None
        start, end = located.span
        if not whole.startswith(located.text):
            # Of `<|end|>\n<|endoftext|>`, some templates write the second where the chat ends only.
            kept = located.text[:end]
            if not marks.inner_end or not kept.endswith(marks.end):
                return None
            kept = kept.removesuffix(marks.end) + marks.inner_end
            if not whole.startswith(kept):
                return None
            end = len(kept)
        spans[i] = (start, end)
    return spans


def _holds(prompt: str, written: str, content: str) -> bool:
    """Whether prompt and text after it hold the whole content, whitespace aside; the prompt may hold its beginning."""
    wanted, found, before = _squeezed(content), _squeezed(written), _squeezed(prompt[-_LONGEST_PROMPT:])
    if wanted in found:
        return True
    overlaps = (k for k in range(1, min(len(wanted), len(before) + 1)) if before.endswith(wanted[:k]))
    return any(wanted[k:] in found for k in overlaps)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _by_surroundings(chat: Chat, known: dict[int, Span], whole: str) -> list[Span] | None:
    """All spans, from those known; None where the text around the answers is not alike."""
    places = _places(chat, whole)
    if places is None:
        return None
    first, last = min(known), max(known)
    start = known[last][0]
    asked = chat.rendered(last)
    prompt = whole[len(asked) : start] if whole.startswith(asked) else ""
    # Without a generation prompt, answers follow the whitespace that ends the turn before.
    prompt = prompt or whole[len(whole[:start].rstrip()) : start]
    head = whole[start - len(prompt) : places[last][0]].rstrip()
    tail = whole[places[first][1] : known[first][1]].lstrip()
    spans = {i: _around(whole, place, prompt, head, tail) for i, place in places.items()}
    spans[last] = known[last]  # it may end in more than the others
    if any(spans[i] != span for i, span in known.items()):
        return None
    found = [span for span in spans.values() if span is not None]
    return found if len(found) == len(spans) else None


def _around(whole: str, content: Span, prompt: str, head: str, tail: str) -> Span | None:
    """The span of an answer whose content is at `content`: from the end of the prompt to the end of the turn's end."""
    before, end = content
    while before and whole[before - 1].isspace():
        before -= 1
    start = before - len(head)
    if start < 0 or not whole.startswith(head, start) or not whole.startswith(prompt, start):
        return None
    while tail and end < len(whole) and whole[end].isspace():
        end += 1
    if not whole.startswith(tail, end):
        return None
    return start + len(prompt), end + len(tail)


def _places(chat: Chat, whole: str) -> dict[int, Span] | None:
    """Where the answers' contents are in `whole`, without whitespace around them; None where the template edits them.

    They are rendered between marks, and the text without these marks must be the same.
    """
    if _OPEN in whole or _CLOSE in whole:
        return None
    contents = {i: str(chat.messages[i]["content"]) for i in chat.answers}
    marked = {i: _marked(content) for i, content in contents.items()}
    pieces = chat.with_contents(marked).rendered().split(_OPEN)
    if len(pieces) != len(marked) + 1:
        return None
    places, text = {}, [pieces[0]]
    length = len(pieces[0])
    for i, piece in zip(marked, pieces[1:], strict=True):
        body, close, after = piece.partition(_CLOSE)
        if not close or _CLOSE in after:
            return None
        places[i] = (length, length + len(body))
        text += [body, after]
        length += len(body) + len(after)
    return places if "".join(text) == whole else None


def _marked(content: str) -> str:
    """Marks inside the whitespace around a content: a template that strips it still does."""
    body = content.strip()
    start = content.find(body)
    return content[:start] + _OPEN + body + _CLOSE + content[start + len(body) :]


def answer_alone(chat: Chat, i: int, marks: TurnMarks) -> Located:
    """Answer `i` after the prompt that it is generated from, as a document of its own.

    Some templates write an answer differently once it is given than when it is asked for: they drop its reasoning, or
    write the system prompt before the last question only. Then the document is what generation sees and should write:
    the prompt, the content as it is, and the end of the turn.

    Raises:
        TuneforgeError: the template does not write an answer where its generation prompt asks for it.
    """
    located = chat.locate(i)
    if located is not None:
        return located
    prompt = chat.rendered(i, generate=True)
    content = str(chat.messages[i]["content"])
    shown = chat.with_contents({i: PLACEHOLDER}).rendered(i + 1)
    header, found, tail = shown.rpartition(PLACEHOLDER)
    written = _after(prompt, header, content.strip() if marks.trims else content, marks.generation_prompt)
    if not found or written is None:
        raise TuneforgeError(
            "template-splits-wrongly",
            f"the chat template does not write the answer of {chat.origin} after its own generation prompt, so answer "
            f"and prompt cannot be told apart: the prompt ends in {prompt[-24:]!r}, answers follow {header[-24:]!r}",
            path="model.chat_template",
            fix="use another template (model.chat_template=plain, or a Jinja file), or leave such rows out: "
            "data.on_bad=skip",
        )
    text = prompt + written + tail.rstrip()
    return Located(text, (len(prompt), len(text)))


def _after(prompt: str, header: str, content: str, generation_prompt: str) -> str | None:
    """What follows the prompt; None where the answer does not fit there.

    Args:
        prompt: what generation starts from.
        header: what the template writes before a given answer.
        content: the answer.
        generation_prompt: the end of `prompt` that asks for the answer.
    """
    shortest = len(generation_prompt) or 1
    for length in range(max(shortest, min(32, len(prompt))), shortest - 1, -1):
        _, found, lead = header.rpartition(prompt[-length:])
        if found and prompt[-length:].strip() and not lead.strip():
            return lead + content
    # The generation prompt opens what the answer begins with, `<think>` for the most part.
    for cut in range(len(generation_prompt), -1, -1):
        if header.endswith(generation_prompt[:cut]):
            return _without_opening(content, generation_prompt[cut:])
    return None


def _without_opening(content: str, opening: str) -> str | None:
    """The content without the text that it must start with, whitespace around that aside."""
    if content.startswith(opening):
        return content[len(opening) :]
    bare = opening.strip()
    return content[len(bare) :].lstrip() if bare and content.startswith(bare) else None
