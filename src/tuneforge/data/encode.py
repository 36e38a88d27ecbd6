"""From text to token ids with a loss mask; nothing is ever masked by token id, so pad == eos is harmless."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from tuneforge.console import warn
from tuneforge.data.chat_spans import Span
from tuneforge.data.formats import Example
from tuneforge.data.renderer import Renderer
from tuneforge.data.rendering import ROW_CODES
from tuneforge.data.rows import first_few
from tuneforge.data.template import Rendered
from tuneforge.errors import Problem, TuneforgeError

IGNORE = -100
"""The label of a token without loss: the value that `torch.nn.functional.cross_entropy` ignores by default."""

Ids = npt.NDArray[np.int64]
T = TypeVar("T")

_SHOWN = 5
"""Refused rows that a message spells out; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Document:
    """One tokenised document."""

    input_ids: Ids
    """Shape [tokens]."""
    labels: Ids
    """Shape [tokens]: the token itself where it is supervised, else -100. Not shifted."""
    origin: str

    @property
    def num_labels(self) -> int:
        """Tokens that the loss is taken on: the first has nothing before it to be predicted from."""
        return int((self.labels[1:] != IGNORE).sum())


def last_label(document: Document) -> int:
    """The last supervised token: where an answer is whole, the one that ends it."""
    return int(document.labels[document.labels != IGNORE][-1])


@dataclass
class Encoded:
    """Documents that fit, and the count of those that did not."""

    documents: list[Document]
    truncated: int = 0
    dropped: int = 0
    """Longer than a row with `data.overlong=drop`, or without any supervised token left."""


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: str,
    max_length: int,
    overlong: str,
    on_bad: str = "error",
    special_tokens: str = "warn",
    max_turn_documents: int = 16,
) -> Encoded:
    """Tokenise examples into documents of at most `max_length` tokens.

    Raises:
        TuneforgeError: rows that the template refuses, or not one document has a supervised token.
    """
    renderer = Renderer(
        tokenizer, train_on=train_on, special_tokens=special_tokens, max_turn_documents=max_turn_documents
    )
    rendered = _render(examples, renderer, on_bad)
    encoded = Encoded([])
    for document in tokenise(rendered, tokenizer):
        encoded.documents += list(_fit(document, max_length, overlong, encoded))
    if not encoded.documents:
        where = ", ".join(dict.fromkeys(r.origin for r in rendered[:5]))
        raise TuneforgeError(
            "nothing-supervised",
            f"no row has a supervised token within data.max_length={max_length} (rows {where}, ...): nothing to learn",
            path="data",
            fix="raise data.max_length, shorten the prompts, or check that the answers are not empty",
        )
    return encoded


def _render(examples: Sequence[Example], renderer: Renderer, on_bad: str) -> list[Rendered]:
    """All documents; the rows that the template refuses are one error, or with on_bad="skip" counted and left out."""
    rendered = [r for documents in usable(examples, renderer.render, on_bad) for r in documents]
    renderer.report(len(examples))
    return rendered


def usable(examples: Sequence[Example], make: Callable[[Example], T], on_bad: str) -> list[T]:
    """What `make` makes of each example that it does not refuse.

    Raises:
        TuneforgeError: it refuses some, and `on_bad` is not "skip"; or all.
    """
    made: list[T] = []
    refused: list[Problem] = []
    for example in examples:
        try:
            made.append(make(example))
        except TuneforgeError as error:
            if error.problems[0].code not in ROW_CODES:
                raise
            refused += error.problems[:1]
    if refused and (on_bad == "error" or not made):
        first = refused[0]
        others = first_few([problem.message for problem in refused[1:]], _SHOWN)
        more = f"\n{len(refused)} of {len(examples)} rows are refused:{others}" if others else ""
        raise TuneforgeError.of([replace(first, message=first.message + more)])
    if refused:
        message = f"{len(refused)} of {len(examples)} rows were skipped; the first: {refused[0].message}"
        warn(replace(refused[0], message=message, fix=""))
    return made


def tokenise(rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    """Documents of whatever length, with labels on the spans that the loss, or a score, is taken on."""
    bos = tokenizer.bos_token_id if rendered and _adds_bos(tokenizer) else None
    for r, (ids, offsets) in zip(rendered, _tokens(rendered, tokenizer), strict=True):
        tokens = np.asarray(ids, dtype=np.int64)
        starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
        supervised = np.zeros(len(tokens), dtype=bool)
        for start, end in r.spans:
            # A token that straddles the prompt's end carries the answer's first letters: left out, a prompt that ends
            # in a space would lose them.
            supervised |= (starts < end) & (ends > start)
        labels = np.where(supervised, tokens, IGNORE)
        if bos is not None and (len(tokens) == 0 or tokens[0] != bos):
            tokens, labels = np.insert(tokens, 0, bos), np.insert(labels, 0, IGNORE)
        yield Document(tokens, labels, r.origin)


def _tokens(rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], list[Span]]]:
    """Ids and character offsets of each text; texts with cuts are tokenised piece by piece."""
    whole = [r.text for r in rendered if not r.cuts]
    # verbose: a document longer than the model's positions is not worth a warning, it is about to be cut.
    options: dict[str, Any] = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    batch = tokenizer(whole, **options) if whole else {"input_ids": [], "offset_mapping": []}
    found = iter(zip(batch["input_ids"], batch["offset_mapping"], strict=True))
    for r in rendered:
        yield _pieces(r, tokenizer, options) if r.cuts else next(found)


def _pieces(r: Rendered, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> tuple[list[int], list[Span]]:
    """Ids and offsets of a text whose tokens do not cross its cuts.

    Each piece is tokenised after a line break, which is then left out: at the start of a text some tokenizers add a
    space, which in the middle would be one too many.
    """
    ids: list[int] = []
    offsets: list[Span] = []
    places = [0, *r.cuts, len(r.text)]
    pieces = [r.text[a:b] for a, b in pairwise(places)]
    after_break = [f"\n{piece}" for piece in pieces[1:]]
    batch = tokenizer([pieces[0], *after_break], **options)
    for number, place in enumerate(places[:-1]):
        before = 1 if number else 0
        for token, (start, end) in zip(batch["input_ids"][number], batch["offset_mapping"][number], strict=True):
            if start >= before:
                ids.append(token)
                offsets.append((start - before + place, end - before + place))
            elif end > before:
                raise TuneforgeError(
                    "cannot-escape",
                    f"{r.origin}: this tokenizer joins a line break with {pieces[number][:8]!r}, so it cannot escape",
                    path="data.special_tokens_in_text",
                    fix="use data.special_tokens_in_text=refuse data.on_bad=skip, or correct the row",
                )
    return ids, offsets


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer starts a text with BOS by itself: then every document starts with exactly one."""
    return tokenizer.bos_token_id is not None and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]


def _fit(document: Document, max_length: int, overlong: str, encoded: Encoded) -> Iterator[Document]:
    length = len(document.input_ids)
    if length > max_length and overlong == "drop":
        encoded.dropped += 1
        return
    if length > max_length:
        encoded.truncated += 1
    pieces = range(0, length, max_length) if overlong == "chunk" else range(min(length, 1))
    for start in pieces:
        end = start + max_length
        piece = Document(document.input_ids[start:end], document.labels[start:end], document.origin)
        if piece.num_labels:
            yield piece
        elif overlong != "chunk":
            encoded.dropped += 1
