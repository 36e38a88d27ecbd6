"""Texts with labels into batches: one text a row, padded on the right, under an attention mask."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tuneforge.data.batches import Rows
from tuneforge.data.control_text import first_name, refuse_name, report_names
from tuneforge.data.encode import IGNORE, Document, Encoded, Ids, usable
from tuneforge.data.formats import Example
from tuneforge.data.labels import Labels
from tuneforge.data.turn_marks import TurnMarks, control_tokens
from tuneforge.errors import TuneforgeError


class LabelledBatch(TypedDict):
    """One micro-batch."""

    input_ids: Tensor
    """[rows, tokens]"""
    attention_mask: Tensor
    """[rows, tokens]: 1 for tokens of the text, 0 for the padding behind it."""
    labels: Tensor
    """[rows]: the id of the class; or [rows, classes], 1 for each that the text has. -100 in a row without a text."""
    num_labels: Tensor
    """[]: texts of the whole optimizer step, over all micro-batches and devices."""


class LabelledDocument(Document):
    """A tokenised text; `labels` is of shape [] (the class) or [classes] (1 for each that it has)."""

    @property
    def num_labels(self) -> int:
        """Each text counts once, however long it is."""
        return 1


def encode_labelled(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels,
    *,
    max_length: int,
    overlong: str,
    on_bad: str = "error",
    special_tokens: str = "warn",
) -> Encoded:
    """Tokenise texts as the tokenizer does by itself (BOS, [CLS] and [SEP] included), so that a pipeline sees the same.

    Raises:
        TuneforgeError: not one text fits, or texts name control tokens and are refused.
    """
    examples = _without_refused(examples, tokenizer, on_bad, special_tokens)
    texts = [example.text for example in examples]
    # Of a text only: what the tokenizer puts around it ([CLS], [SEP]) is not looked for in it.
    options = {"split_special_tokens": True} if special_tokens == "escape" else {}
    lengths = [len(ids) for ids in tokenizer(texts, verbose=False, **options)["input_ids"]]
    cut = tokenizer(texts, truncation=True, max_length=max_length, **options)["input_ids"]
    fits = [length <= max_length or overlong != "drop" for length in lengths]
    documents: list[Document] = [
        LabelledDocument(np.asarray(ids, dtype=np.int64), _target(labels, example), example.origin)
        for ids, example, fit in zip(cut, examples, fits, strict=True)
        if fit and ids
    ]
    if not documents:
        raise TuneforgeError(
            "nothing-supervised",
            f"no text fits into data.max_length={max_length} tokens",
            path="data",
            fix="raise data.max_length, or set data.overlong=truncate",
        )
    longer = sum(length > max_length for length in lengths)
    return Encoded(documents, truncated=longer if overlong != "drop" else 0, dropped=len(examples) - len(documents))


def _without_refused(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, on_bad: str, special_tokens: str
) -> list[Example]:
    """The examples less those that `data.special_tokens_in_text=refuse` refuses; others that name tokens are told."""
    names = control_tokens(tokenizer, TurnMarks())
    named: dict[str, str] = {}

    def checked(example: Example) -> Example:
        name = first_name([example.text], names) if names else ""
        if name:
            refuse_name(example.origin, name, special_tokens, [example.text])
            named[example.origin] = name
        return example

    found = usable(examples, checked, on_bad)
    report_names(named, len(examples), special_tokens)
    return found


def _target(labels: Labels, example: Example) -> Ids:
    ids = labels.ids(example)
    if not labels.multi:
        return np.asarray(ids[0], dtype=np.int64)
    several = np.zeros(len(labels.names), dtype=np.int64)
    several[ids] = 1
    return several


class LabelledRows(Rows):
    """One text a row."""

    def __init__(self, documents: Sequence[Document], max_length: int, labels: Labels) -> None:
        super().__init__(documents, max_length, packing=False)
        self.labels = labels

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Ids, Ids, Ids, int]:
        """Ids, label and mask of a text, and the number of texts of the step it is part of."""
        row, step_labels = index if isinstance(index, tuple) else (index, 0)
        if row == self.EMPTY:
            shape = (len(self.labels.names),) if self.labels.multi else ()
            return np.zeros(1, np.int64), np.full(shape, IGNORE, np.int64), np.ones(1, np.int64), step_labels
        document = self.documents[row]
        return document.input_ids, document.labels, np.ones_like(document.input_ids), step_labels


class CollateLabelled:
    """Texts into a batch, padded on the right."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[tuple[Ids, Ids, Ids, int]]) -> LabelledBatch:
        """Tensors of a micro-batch; see `LabelledBatch` for their shapes."""
        # Lengths in steps of 8, as for packed rows.
        width = -(-max(len(ids) for ids, *_ in items) // 8) * 8
        ids = np.full((len(items), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(items), width), dtype=np.int64)
        for i, (row, _, row_mask, _) in enumerate(items):
            ids[i, : len(row)], mask[i, : len(row)] = row, row_mask
        return LabelledBatch(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            labels=torch.from_numpy(np.stack([label for _, label, _, _ in items])),
            num_labels=torch.tensor(items[0][3]),
        )
