"""From an example to text, with the character spans that are supervised."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tuneforge.console import say, warn
from tuneforge.data.chat_spans import Chat, Located, Span, answer_alone, answer_spans
from tuneforge.data.control_text import (
    CUT,
    escape,
    first_name,
    map_answers,
    map_texts,
    refuse_name,
    report_names,
    texts_of,
    with_one_end,
    without_end,
)
from tuneforge.data.formats import Example
from tuneforge.data.template import Rendered
from tuneforge.data.turn_marks import control_tokens, end_texts, turn_marks
from tuneforge.errors import Problem, TuneforgeError

_LIKE_A_TOKEN = re.compile(r"<[|/][^<>\s]+>")


@dataclass
class Counts:
    """What was found while rendering: the rows concerned, in their order."""

    named: dict[str, str] = field(default_factory=dict)
    """Row -> the first control token that its text names."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Row -> the role of the first turn whose text the template leaves out."""
    rewritten: int = 0
    """Conversations that became a document an answer, ..."""
    documents: int = 0
    """... those documents, ..."""
    growth: float = 0.0
    """... the characters in them, ..."""
    characters: int = 0
    """... and in the conversations rendered once."""
    left_out: int = 0
    """Answers beyond `data.max_turn_documents`."""


class Renderer:
    """Renders examples as documents and counts what the user should know about them."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_on: str,
        special_tokens: str = "warn",
        max_turn_documents: int = 16,
    ) -> None:
        """Look at the template once.

        Args:
            tokenizer: has the template.
            train_on: `data.train_on`.
            special_tokens: `data.special_tokens_in_text`.
            max_turn_documents: `data.max_turn_documents`.
        """
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.special_tokens = special_tokens
        self.max_turn_documents = max_turn_documents
        self.marks = turn_marks(tokenizer)
        self.ends = end_texts(tokenizer, self.marks)
        self.names = control_tokens(tokenizer, self.marks)
        self.counts = Counts()

    def render(self, example: Example) -> list[Rendered]:
        """The documents of an example: one, or one an answer where the template shows earlier turns differently.

        Raises:
            TuneforgeError: the template, or `data.special_tokens_in_text=refuse`, refuses the row.
        """
        if example.messages:
            # `<|im_end|>` is ordinary text to some tokenizers, and an answer of the data may bring it too.
            ends = (*self.ends, self.marks.end) if _LIKE_A_TOKEN.fullmatch(self.marks.end) else self.ends
            plain, escaped = self._checked(map_answers(example, lambda text: without_end(text, ends)))
            return [_uncut(r) if escaped else r for r in self._chat(plain)]
        bos, eos = str(self.tokenizer.bos_token or ""), str(self.tokenizer.eos_token or "")
        ended = {
            name: with_one_end(text, self.ends, eos).removeprefix(without_end(text, self.ends))
            for name, text in (("completion", example.completion), ("text", example.text))
        }
        plain, escaped = self._checked(map_answers(example, lambda text: without_end(text, self.ends)), bos)
        if plain.completion:
            text = plain.prompt + plain.completion + ended["completion"]
            start = len(plain.prompt) if self.train_on == "assistant" else 0
        else:
            text, start = plain.text + ended["text"], 0
        rendered = Rendered(text, ((start, len(text)),), example.origin)
        return [_uncut(rendered) if escaped else rendered]

    def _checked(self, example: Example, bos: str = "") -> tuple[Example, bool]:
        """The example with the names of control tokens in its texts counted, escaped or refused; whether escaped."""
        texts = texts_of(example)
        name = first_name([text.removeprefix(bos) for text in texts], self.names) if self.names else ""
        if not name or self.names is None:
            return example, False
        names = self.names
        refuse_name(example.origin, name, self.special_tokens, texts)
        self.counts.named[example.origin] = name
        if self.special_tokens != "escape":
            return example, False
        return map_texts(example, lambda text: escape(text, names)), True

    def _chat(self, example: Example) -> list[Rendered]:
        origin = example.origin
        if self.marks.always_prompts:
            raise TuneforgeError(
                "template-always-prompts",
                "the chat template asks for another answer at the end of every chat, also where it is not told to, "
                f"so the model would learn to write {self.marks.end[-32:]!r} after each answer",
                path="model.chat_template",
                fix="write what asks for an answer inside {% if add_generation_prompt %} ... {% endif %} and give the "
                "file (model.chat_template=FILE.jinja), or use model.chat_template=plain",
            )
        chat = Chat(self.tokenizer, [dict(m) for m in example.messages], origin)
        whole = chat.rendered()
        if self.train_on == "all":
            self._count_dropped(chat.messages, whole, origin)
            return [Rendered(whole, _outside(chat, whole, example.without_loss), origin)]
        learnt = example.answers
        others = [m for m in chat.messages if m["role"] != "assistant"]
        spans = answer_spans(chat, whole, self.marks)
        if spans is not None:
            self._count_dropped(others, whole, origin)
            asked = tuple(span for i, span in zip(chat.answers, spans, strict=True) if i in learnt)
            return [Rendered(whole, asked, origin)]
        # Templates that drop earlier reasoning, or move the system prompt, write an old turn differently from a new
        # one: then each answer becomes a document with the history it will really be generated after.
        found = [answer_alone(chat, i, self.marks) for i in _spread(learnt, self.max_turn_documents)]
        before = [m for m in chat.messages[: learnt[-1]] if m["role"] != "assistant"]
        self._count_dropped(before, found[-1].text, origin)
        self._count_rewritten(whole, found, len(learnt))
        return [Rendered(one.text, (one.span,), origin) for one in found]

    def _count_dropped(self, messages: Sequence[dict[str, Any]], text: str, origin: str) -> None:
        written = "".join(text.split())
        lost = next((m["role"] for m in messages if "".join(m["content"].split()) not in written), None)
        if lost is not None:
            self.counts.dropped[origin] = str(lost)

    def _count_rewritten(self, whole: str, found: Sequence[Located], answers: int) -> None:
        if answers > 1:
            self.counts.rewritten += 1
            self.counts.documents += len(found)
            self.counts.growth += sum(len(one.text) for one in found)
            self.counts.characters += len(whole)
            self.counts.left_out += answers - len(found)

    def report(self, rows: int) -> None:
        """Print what was counted over `rows` rows."""
        counts = self.counts
        report_names(counts.named, rows, self.special_tokens)
        if counts.dropped:
            origin, role = next(iter(counts.dropped.items()))
            dropped = f"{len(counts.dropped)} of {rows} rows (a {role} turn of {origin} first)"
            message = f"the chat template leaves out text of {dropped}"
            fix = "look at a rendered row; use another template, or a model whose template has this role"
            warn(Problem("template-drops-text", message, "model.chat_template", fix=fix))
        if counts.rewritten:
            self._report_rewritten()

    def _report_rewritten(self) -> None:
        counts = self.counts
        message = (
            "the chat template writes earlier turns differently, so each answer is a document with its own history: "
            f"{counts.rewritten} conversations became {counts.documents} documents with "
            f"{counts.growth / counts.characters:.1f} times the text"
        )
        if not counts.left_out:
            say(message)
            return
        left = (
            f"; {counts.left_out} answers beyond data.max_turn_documents={self.max_turn_documents} are not learnt from"
        )
        fix = "raise data.max_turn_documents, split long conversations, or use a template that keeps earlier turns"
        warn(Problem("answers-left-out", message + left, "data.max_turn_documents", fix=fix))


def _outside(chat: Chat, whole: str, without_loss: frozenset[int]) -> tuple[Span, ...]:
    """The rendered chat less the turns that are marked to be without loss.

    Raises:
        TuneforgeError: the template writes such a turn differently with later turns after it.
    """
    spans, start = [], 0
    for i in sorted(without_loss):
        before, upto = chat.rendered(i) if i else "", chat.rendered(i + 1)
        if not whole.startswith(upto) or not upto.startswith(before):
            raise TuneforgeError(
                "template-splits-wrongly",
                f"the chat template writes turn {i + 1} of {chat.origin} differently with the turns after it, "
                "so it cannot be left out of the loss",
                path="model.chat_template",
                fix="use data.train_on=assistant, another template (model.chat_template=plain, or a Jinja file), or "
                "leave such rows out: data.on_bad=skip",
            )
        spans.append((start, max(start, len(before))))
        start = len(upto)
    return tuple((a, b) for a, b in (*spans, (start, len(whole))) if a < b)


def _spread(turns: Sequence[int], at_most: int) -> list[int]:
    """Up to `at_most` of the turns, evenly apart, the last one among them."""
    if len(turns) <= at_most:
        return list(turns)
    places = np.linspace(len(turns) - 1, 0, at_most).round().astype(int)
    return [turns[k] for k in sorted(set(places.tolist()))]


def _uncut(rendered: Rendered) -> Rendered:
    """The text without the marks of its cuts, which become places in it."""
    pieces = rendered.text.split(CUT)
    cuts = np.cumsum([len(piece) for piece in pieces])[:-1].tolist()
    spans = tuple((a - rendered.text.count(CUT, 0, a), b - rendered.text.count(CUT, 0, b)) for a, b in rendered.spans)
    return Rendered("".join(pieces), spans, rendered.origin, tuple(cuts))
