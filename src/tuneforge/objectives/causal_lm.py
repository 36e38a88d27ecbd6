"""Next-token prediction with a loss mask: supervised fine-tuning and pretraining."""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tuneforge.compat import compile_layers, enable_checkpointing, is_4bit
from tuneforge.context import Context
from tuneforge.data.batches import Batch
from tuneforge.data.encode import IGNORE
from tuneforge.models import load_model
from tuneforge.objectives.parameters import parameter_groups
from tuneforge.objectives.regularisers import Consolidation, divergence
from tuneforge.objectives.routers import RouterBalance
from tuneforge.targets import make


class CausalLM(pl.LightningModule):
    """A causal language model under a method.

    The loss of an optimizer step is the sum over its supervised tokens divided by their number, over all micro-batches
    and devices: a mean of means would weigh a token by how few others share its micro-batch.
    """

    # Only trainable weights are in a checkpoint; `on_load_checkpoint` asserts that all of those came back.
    strict_loading = False

    def __init__(self, context: Context, /) -> None:
        super().__init__()
        self.context = context
        self.model: nn.Module | None = None
        self._sums: list[Tensor] = []
        self._step_loss: Tensor | None = None
        self._rate = 0.0
        self._step_seconds = 0.0
        self._grad_norm: Tensor | None = None
        self._consolidation: Consolidation | None = None
        self._balance: RouterBalance | None = None

    # ---- building

    def configure_model(self) -> None:
        """Load the weights and apply the method; Lightning calls it once a process, again before each stage."""
        if self.model is not None:
            return
        context = self.context
        # New weights, an adapter's among them, are drawn here: the same on every device and in every run of this seed.
        seed_at(context.config.seed, 0)
        dtype = getattr(torch, context.settled.base_dtype)
        stored = torch.float32 if context.method.stores_fp32 else dtype
        base = load_model(context.config.model, context.architecture, stored, context.method.quantization_config(dtype))
        if context.method.num_observed and context.config.model.adapter is None:
            self._observe(base)
        model = context.method.apply(base, context.config.model.adapter)
        if context.settled.gradient_checkpointing:
            enable_checkpointing(base)
        if context.config.model.torch_compile:
            compile_layers(model)
        context.method.on_start(model, context.settled.num_steps)
        if context.config.regularise.ewc:
            self._consolidation = Consolidation(context.config.regularise.ewc)
        self._balance = RouterBalance.of(base, context.config.regularise.router_aux_loss_coef)
        self.model = model
        # transformers hands models out in eval mode and Lightning never calls train(): without this, checkpointing
        # and dropout are silently off (Lightning issue 20105).
        self.train()

    def _observe(self, base: PreTrainedModel) -> None:
        """Show the method the train rows it starts from, on the device where the run will be."""
        method = self.context.method
        if method.quantises == 0:
            base.to(self.context.machine.device)  # type: ignore[arg-type]
        method.observe(base, self.context.first_batches(method.num_observed, base.device))

    def train(self, mode: bool = True) -> "CausalLM":
        """Switch between training and evaluation; 4-bit layers always stay in train mode.

        The layers have no dropout; what eval mode does to them is told at `is_4bit`.
        """
        super().train(mode)
        for module in filter(is_4bit, self.modules()):
            module.training = True
        return self

    def configure_optimizers(self) -> Any:
        """The optimizer of conf/optim over two parameter groups, and the schedule of conf/scheduler by step."""
        assert self.model is not None
        config = self.context.config
        scale = self.context.method.learning_rate_scale
        groups = parameter_groups(self.model, config.optim.weight_decay, config.optim.lr, scale)
        optimizer = make(self.context.tree["optim"], groups)
        scheduler = make(self.context.tree["scheduler"], optimizer, self.context.settled.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- the loss

    def loss_sum(self, batch: Batch) -> Tensor:
        """Summed cross-entropy over the supervised tokens of a micro-batch; shape []."""
        return self._loss_and_logits(batch)[0]

    def _loss_and_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss, the logits it comes from ([kept, vocabulary]) and where they are ([rows, tokens])."""
        keep = batch["labels"] != IGNORE
        if not bool(keep.any()):
            # A batch of padding alone (another device had a row more): nothing to learn, and no NaN from a mean over 0.
            keep = torch.zeros_like(keep)
            keep[0, 0] = True
            logits = self._logits(batch, keep)
            return logits.sum() * 0.0, logits, keep
        logits = self._logits(batch, keep).float()
        return self.loss_of_logits(logits, batch["labels"][keep], batch), logits, keep

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

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed every generator from the position in the run: dropout is then the same after a resume."""
        settled = self.context.settled
        seed_at(self.context.config.seed, 1 + batch_idx * settled.world_size + self.global_rank)
        self._started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's loss, scaled against Lightning's and DDP's own averaging."""
        with self._balance.watching() if self._balance is not None else nullcontext():
            loss, logits, keep = self._loss_and_logits(batch)
        share = loss / batch["num_labels"]
        detached = share.detach()
        self._step_loss = detached if self._step_loss is None else self._step_loss + detached
        passes = self.context.settled.accumulate * self.context.settled.world_size
        total = share * passes
        if self.context.config.regularise.kl:
            near = divergence(self._base_logits(batch, keep), logits) / batch["num_labels"]
            total = total + self.context.config.regularise.kl * near * passes
        for penalty in self._penalties():
            total = total + penalty
        if self._balance is not None:
            total = total + self._balance.loss(batch)
        return total

    def _penalties(self) -> Iterator[Tensor]:
        """Terms that hang on weights alone: the same in each micro-batch, and averaged over them by Lightning."""
        own = self.context.method.penalty(self.model)
        if own is not None:
            yield own
        if self._consolidation is not None:
            assert self.model is not None
            yield self._consolidation.penalty(self.model)

    @torch.no_grad()
    def _base_logits(self, batch: Batch, keep: Tensor) -> Tensor:
        """Logits of the model without its adapter; a rule refuses methods under which that is not the base."""
        assert isinstance(self.model, PeftModel)
        self.eval()
        try:
            with self.model.disable_adapter():
                return self._logits(batch, keep).float()
        finally:
            self.train()

    def on_train_start(self) -> None:
        """With `regularise.ewc`: which weights the general rows need."""
        if self._consolidation is not None:
            self._consolidation.measure(self, self.context)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the config's norm, and keep the norm for the log; 0 only measures."""
        self._rate = float(optimizer.param_groups[0]["lr"])
        limit = self.context.config.trainer.gradient_clip_val or float("inf")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = nn.utils.clip_grad_norm_(parameters, limit)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After an optimizer step: what metrics.jsonl shows of it."""
        self._step_seconds += time.perf_counter() - self._started
        settled = self.context.settled
        if (batch_idx + 1) % settled.accumulate:
            return
        assert self._step_loss is not None
        assert self._grad_norm is not None
        self.context.method.on_step_end(self.model, self.trainer.global_step)
        loss = self.trainer.strategy.reduce(self._step_loss, reduce_op="sum")
        labels = int(batch["num_labels"])
        tokens = settled.rows_per_step * settled.max_length
        self.log_dict(
            {
                "train/loss": loss,
                "train/grad_norm": self._grad_norm,
                "train/lr": self._rate,
                "train/tokens_per_s": labels / self._step_seconds,
                "train/supervised_fraction": labels / tokens,
                **self._progress(),
            }
        )
        self._step_loss, self._step_seconds = None, 0.0

    def _progress(self) -> dict[str, float]:
        """Where the run is: optimizer steps done (Lightning counts from 0), and passes over the train rows."""
        step = self.trainer.global_step
        return {"step": float(step), "epoch": step * self.context.settled.rows_per_step / len(self.context.train_rows)}

    # ---- evaluation

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last evaluation."""
        self._sums = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum of losses and count of supervised tokens, kept on the device."""
        count = (batch["labels"] != IGNORE).sum()
        self._sums.append(torch.stack([self.loss_sum(batch).float(), count.float()]))

    def on_validation_epoch_end(self) -> None:
        """Loss a supervised token over the whole eval split and all devices, and its exponential."""
        total = self.trainer.strategy.reduce(torch.stack(self._sums).double().sum(0), reduce_op="sum")
        loss = total[0] / total[1]
        self.log_dict({"eval/loss": loss, "eval/perplexity": loss.exp(), **self._progress()})

    # ---- checkpoints

    def trainable_names(self) -> set[str]:
        """Names of the weights that training moves: all that a checkpoint holds."""
        return {name for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trainable weights only: the frozen base is where it was."""
        names = self.trainable_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}
        checkpoint["method"] = self.context.method.state(self.model)
        if self._consolidation is not None:
            checkpoint["consolidation"] = self._consolidation.state()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Every trainable weight must come back: a partial load would train on in silence with fresh ones."""
        missing = self.trainable_names() - set(checkpoint["state_dict"])
        self.context.method.load_state(self.model, checkpoint["method"])
        if self._consolidation is not None:
            self._consolidation.load_state(checkpoint["consolidation"], self.device)
        assert not missing, f"checkpoint lacks {len(missing)} trainable weights, {sorted(missing)[:3]} among them"


@contextmanager
def rows_before_head(model: nn.Module, keep: Tensor) -> Iterator[None]:
    """Within, the output head sees only the hidden states where `keep` ([rows, tokens]) is true, as one row.

    Whatever the architecture does to logits after the head still happens, and the product with the vocabulary, most
    of the memory of a tuning step, is made for supervised tokens alone.
    """
    head = base_model(model).get_output_embeddings()

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][keep].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model under PEFT's wrapper, or the model itself."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def seed_at(seed: int, position: int) -> None:
    """Seed Python, NumPy and torch from (seed, position); position 0 is the building of the model."""
    mixed = int(np.random.SeedSequence((seed, position)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
