"""Next-token prediction with a loss mask: supervised fine-tuning and pretraining."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tuneforge import adapters
from tuneforge.context import Context
from tuneforge.data.batches import Batch
from tuneforge.data.encode import IGNORE
from tuneforge.models import load_model
from tuneforge.objectives.base import Objective
from tuneforge.objectives.regularisers import divergence
from tuneforge.objectives.routers import RouterBalance


class CausalLM(Objective):
    """A causal language model under a method; the loss is a mean over the supervised tokens of an optimizer step."""

    streams = True
    predicts_tokens = True

    def __init__(self, context: Context, /) -> None:
        super().__init__(context)
        self._balance: RouterBalance | None = None
        self._kl = context.config.regularise.kl

    def load_base(self, dtype: torch.dtype, quantization_config: Any) -> PreTrainedModel:
        """With its output head over the vocabulary."""
        return load_model(self.context.config.model, self.context.architecture, dtype, quantization_config)

    def configure_model(self) -> None:
        """Beside the model: what keeps the routers of a mixture balanced."""
        super().configure_model()
        if self._balance is None:
            assert self.model is not None
            coefficient = self.context.config.regularise.router_aux_loss_coef
            self._balance = RouterBalance.of(adapters.base_model(self.model), coefficient)

    # ---- the loss

    def loss_sum(self, batch: Batch) -> Tensor:
        """Summed cross-entropy over the supervised tokens of a micro-batch; shape []."""
        return self._loss_and_logits(batch)[0]

    def count(self, batch: Batch) -> Tensor:
        """Supervised tokens of a micro-batch; shape []."""
        return (batch["labels"] != IGNORE).sum()

    def _loss_and_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss, the logits it comes from ([kept, vocabulary]) and where they are ([rows, tokens])."""
        logits, keep, empty = self._kept_logits(batch)
        if empty:
            return logits.sum() * 0.0, logits, keep
        return self.loss_of_logits(logits, batch["labels"][keep], batch), logits, keep

    def _kept_logits(self, batch: Batch) -> tuple[Tensor, Tensor, bool]:
        """Logits in fp32 where there are labels, where that is, and whether there are none: then one place is taken."""
        keep = batch["labels"] != IGNORE
        empty = not bool(keep.any())
        if empty:
            # A batch of padding alone (another device had a row more): nothing to learn, and no NaN from a mean over 0.
            keep = torch.zeros_like(keep)
            keep[0, 0] = True
        return self._logits(batch, keep).float(), keep, empty

    def log_likelihoods(self, batch: Batch) -> Tensor:
        """Of each supervised token, by row and place, in fp32; shape [tokens]."""
        logits, keep, empty = self._kept_logits(batch)
        return logits[:0, 0] if empty else -cross_entropy(logits, batch["labels"][keep], reduction="none")

    def loss_of_logits(self, logits: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        """Summed loss of the supervised tokens: logits [tokens, vocabulary] in fp32, labels [tokens]; shape [].

        For objectives that change the loss and keep the rest.
        """
        return cross_entropy(logits, labels, reduction="sum")

    def _logits(self, batch: Batch, keep: Tensor) -> Tensor:
        """Logits at the kept positions alone; shape [kept, vocabulary]."""
        assert self.model is not None
        if self.context.method.virtual_tokens:
            # Those in front of the row have hidden states too, and nothing to predict.
            keep = nn.functional.pad(keep, (self.context.method.virtual_tokens, 0), value=False)
        with rows_before_head(self.model, keep):
            # No attention mask and no cache: with either, transformers stops reading documents from positions.
            output = self.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        return output.logits.flatten(0, 1)  # type: ignore[no-any-return]

    # ---- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's loss, scaled against Lightning's and DDP's own averaging."""
        with self.saving_activations(), self._balance.watching() if self._balance is not None else nullcontext():
            loss, logits, keep = self._loss_and_logits(batch)
        total = self.scaled_share(loss, batch)
        if self._kl:
            near = divergence(self._base_logits(batch, keep), logits) / batch["num_labels"]
            # Without labels, one placeholder position is in `keep`.
            total = total + self._kl * near * self.passes * self.count(batch).clamp(max=1)
        if self._balance is not None:
            # A mean over the passes that have rows: a step of few sequences leaves some devices without one.
            with_rows = min(self.passes, self.context.settled.rows_per_step)
            total = total + self._balance.loss(batch) * self.passes / with_rows
        return self.penalised(total)

    def hold_nearer(self, factor: float) -> list[str]:
        """The divergence from the base as well."""
        self._kl *= factor
        return super().hold_nearer(factor) + ([f"regularise.kl={self._kl:g}"] if self._kl else [])

    @torch.no_grad()
    def _base_logits(self, batch: Batch, keep: Tensor) -> Tensor:
        """Logits of the model without its adapter; a rule refuses methods under which that is not the base."""
        assert isinstance(self.model, PeftModel)
        self.eval()
        try:
            with adapters.switched_off(self.model):
                return self._logits(batch, keep).float()
        finally:
            self.train()

    def throughput(self, batch: Batch, seconds: float) -> dict[str, float]:
        """Supervised tokens a second, and their share of the places that the rows have for tokens."""
        labels, settled = int(batch["num_labels"]), self.context.settled
        return {
            "train/tokens_per_s": labels / seconds,
            "train/supervised_fraction": labels / (settled.rows_per_step * settled.max_length),
        }

    # ---- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum of losses and count of supervised tokens, kept on the device."""
        self._sums.append(torch.stack([self.loss_sum(batch).float(), self.count(batch).float()]))

    def on_validation_epoch_end(self) -> None:
        """Loss a supervised token over the whole eval split and all devices, and its exponential."""
        total = self.summed()
        loss = total[0] / total[1]
        self.log_dict({"eval/loss": loss, "eval/perplexity": loss.exp(), **self.progress()})


@contextmanager
def rows_before_head(model: nn.Module, keep: Tensor) -> Iterator[None]:
    """Within, the output head sees only the hidden states where `keep` ([rows, tokens]) is true, as one row.

    Whatever the architecture does to logits after the head still happens, and the product with the vocabulary, most
    of the memory of a tuning step, is made for supervised tokens alone.
    """
    head = adapters.base_model(model).get_output_embeddings()

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][keep].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
