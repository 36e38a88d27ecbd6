"""Texts into classes: a trained head on the model's own pooled state, instead of the output head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import PreTrainedModel

from tuneforge.adapters import base_model
from tuneforge.data.encode import IGNORE, Document
from tuneforge.data.labelled import CollateLabelled, LabelledBatch, LabelledRows
from tuneforge.data.labels import Labels
from tuneforge.metrics import Classified
from tuneforge.models import classifier_config, load_classifier
from tuneforge.objectives.base import Objective


class Classification(Objective):
    """One class a text by cross-entropy, or several by a binary cross-entropy for each class.

    The loss is a mean over the texts of an optimizer step; of several classes it is their mean, as in transformers.
    """

    classified: Classified | None = None
    """The counts of the last evaluation."""

    @property
    def labels(self) -> Labels:
        """The classes of the run."""
        rows = self.context.train_rows
        assert isinstance(rows, LabelledRows)
        return rows.labels

    def load_base(self, dtype: torch.dtype, quantization_config: Any) -> PreTrainedModel:
        """With a head over the classes, whose names its config keeps."""
        context = self.context
        config = classifier_config(context.architecture, self.labels, int(context.tokenizer.pad_token_id))
        return load_classifier(context.config.model, config, dtype, quantization_config)

    # ---- the loss

    def loss_sum(self, batch: LabelledBatch) -> Tensor:
        """Summed loss of the texts of a micro-batch; shape []."""
        return self._loss(self.logits(batch), batch["labels"])

    def count(self, batch: LabelledBatch) -> Tensor:
        """Texts of a micro-batch; shape []."""
        return self._known(batch["labels"]).sum()

    def logits(self, batch: LabelledBatch) -> Tensor:
        """Scores in fp32; shape [rows, classes]."""
        assert self.model is not None
        ids, mask = batch["input_ids"], batch["attention_mask"]
        prompted = bool(self.context.method.virtual_tokens)
        with last_before_head(self.model, mask) if prompted else nullcontext():
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits.float()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not self.labels.multi:
            return cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
        known = self._known(labels)
        each = binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), reduction="none").mean(1)
        return (each * known).sum()

    def _known(self, labels: Tensor) -> Tensor:
        """Which rows hold a text: a device that has a row less than another gets one without; shape [rows]."""
        return labels.flatten(1)[:, 0] != IGNORE if labels.ndim > 1 else labels != IGNORE

    def throughput(self, batch: LabelledBatch, seconds: float) -> dict[str, float]:
        """Texts a second, and their tokens by the mean length of the train rows: every token is read."""
        rows = self.context.train_rows
        texts = int(batch["num_labels"]) / seconds
        return {"train/tokens_per_s": texts * float(rows.num_tokens.mean()), "train/examples_per_s": texts}

    # ---- evaluation

    def predicted(self, logits: Tensor) -> Tensor:
        """The class of the highest score, [rows]; or 1 for each class more likely than not, [rows, classes]."""
        return (logits > 0).long() if self.labels.multi else logits.argmax(-1)

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Loss, texts, texts that are all right, and the counts of the confusion matrix, kept on the device."""
        logits, labels = self.logits(batch), batch["labels"]
        known = self._known(labels)
        wanted, given = labels[known], self.predicted(logits)[known]
        right = (given == wanted).reshape(len(wanted), -1).all(1).sum()
        counts = _pairs(wanted, given) if self.labels.multi else _matrix(wanted, given, len(self.labels.names))
        loss = self._loss(logits, labels)
        self._sums.append(torch.cat([torch.stack([loss, known.sum(), right]), counts.flatten()]).double())

    def on_validation_epoch_end(self) -> None:
        """Mean loss a text, and what the confusion matrix says, over the whole eval split and all devices."""
        loss, texts, right, *counts = self.summed().tolist()
        shape = (len(self.labels.names), 4 if self.labels.multi else len(self.labels.names))
        matrix = np.asarray(counts, dtype=np.int64).reshape(shape)
        self.classified = Classified(self.labels, matrix, int(right), int(texts))
        metrics = {f"eval/{name}": value for name, value in self.classified.metrics().items()}
        self.log_dict({"eval/loss": loss / texts, **metrics, **self.progress()})

    @torch.no_grad()
    def predict(self, documents: Sequence[Document]) -> list[str]:
        """The predicted classes of tokenised texts, one text at a time, as `named` writes them."""
        collate, answers = CollateLabelled(int(self.context.tokenizer.pad_token_id)), []
        for document in documents:
            ids = document.input_ids
            batch: Any = collate([(ids, document.labels, np.ones_like(ids), 1)])
            moved: Any = {k: v.to(self.device) for k, v in batch.items()}
            # Callbacks run outside of Lightning's autocast: the evaluation's predictions are made within it.
            with self.trainer.precision_plugin.forward_context():
                (given,) = self.predicted(self.logits(moved))
            answers.append(self.named(given.cpu().numpy()))
        return answers

    def named(self, label: Any) -> str:
        """A target, as a document or a prediction holds it, in words."""
        if not self.labels.multi:
            return self.labels.names[int(label)]
        return ", ".join(name for name, has in zip(self.labels.names, label, strict=True) if has) or "(none)"


def _matrix(wanted: Tensor, given: Tensor, classes: int) -> Tensor:
    """Texts by wanted and given class; shape [classes, classes]."""
    return torch.bincount(wanted * classes + given, minlength=classes * classes)


def _pairs(wanted: Tensor, given: Tensor) -> Tensor:
    """Of each class: rightly given, wrongly given, wrongly not given, rightly not given; shape [classes, 4]."""
    yes, no = wanted == 1, wanted == 0
    both = [yes & (given == 1), no & (given == 1), yes & (given == 0), no & (given == 0)]
    return torch.stack([one.sum(0) for one in both], 1)


@contextmanager
def last_before_head(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Within, a decoder's head finds each text's last token in the last place, whatever padding is behind it.

    Virtual tokens make embeddings of the ids, and transformers then takes the last place, padding or not; a text alone,
    as at inference, has its last token there. Encoders pool the first place and are left as they are.
    """
    head = dict(base_model(model).named_children()).get("score")
    if head is None:
        yield
        return

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        behind = mask.shape[1] - mask.sum(1)
        last = hidden.shape[1] - 1 - behind
        return (hidden[torch.arange(len(hidden), device=hidden.device), last][:, None], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
