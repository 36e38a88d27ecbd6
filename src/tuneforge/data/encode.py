"""From text to token ids with a loss mask; nothing is ever masked by token id, so pad == eos is harmless."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from tuneforge.data.formats import Example
from tuneforge.data.template import Rendered, render
from tuneforge.errors import TuneforgeError

IGNORE = -100
"""The label of a token without loss: the value that `torch.nn.functional.cross_entropy` ignores by default."""

Ids = npt.NDArray[np.int64]


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
) -> Encoded:
    """Tokenise examples into documents of at most `max_length` tokens.

    Raises:
        TuneforgeError: not one document has a supervised token.
    """
    rendered = [r for e in examples for r in render(e, tokenizer, train_on)]
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


def tokenise(rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    """Documents of whatever length, with labels on the spans that the loss, or a score, is taken on."""
    if not rendered:
        return
    # verbose: a document longer than the model's positions is not worth a warning, it is about to be cut.
    batch = tokenizer([r.text for r in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    bos = tokenizer.bos_token_id if _adds_bos(tokenizer) else None
    for r, ids, offsets in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
        starts = np.asarray([o[0] for o in offsets], dtype=np.int64)
        ends = np.asarray([o[1] for o in offsets], dtype=np.int64)
        tokens = np.asarray(ids, dtype=np.int64)
        supervised = np.zeros(len(tokens), dtype=bool)
        for start, end in r.spans:
            # A token that straddles the prompt's end carries the answer's first letters: left out, a prompt that ends
            # in a space would lose them.
            supervised |= (starts < end) & (ends > start)
        labels = np.where(supervised, tokens, IGNORE)
        if bos is not None and (len(tokens) == 0 or tokens[0] != bos):
            tokens, labels = np.insert(tokens, 0, bos), np.insert(labels, 0, IGNORE)
        yield Document(tokens, labels, r.origin)


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
