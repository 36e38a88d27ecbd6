"""What every objective shares: building the model, the optimizer, the bookkeeping of a step, checkpoints and resume."""

import random
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel

from tuneforge import adapters
from tuneforge.activations import offloaded
from tuneforge.compat import compile_layers, enable_checkpointing, is_4bit
from tuneforge.context import Context
from tuneforge.objectives.parameters import parameter_groups
from tuneforge.objectives.regularisers import Consolidation
from tuneforge.sharding import ClippingInStep, ReadingParts, Sharding, clip_gradients
from tuneforge.steps import StepFacts, Watcher
from tuneforge.streamed import Streamed
from tuneforge.targets import make
from tuneforge.vocabulary import make_room


class Objective(pl.LightningModule):
    """A model under a method, and a loss.

    The loss of an optimizer step is the sum over what is learnt from (supervised tokens, or examples) divided by their
    number, over all micro-batches and devices: a mean of means would weigh one by how few others share its micro-batch.
    A batch holds that number as `num_labels`.
    """

    streams: ClassVar[bool] = False
    """`load_base` gives the model that the files hold, and nothing beside it."""
    predicts_tokens: ClassVar[bool] = False
    """It writes text, and has `log_likelihoods`."""

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
        self._facts: StepFacts | None = None
        self.watchers: list[Watcher] = []
        """Who is told of each optimizer step before it is taken."""
        self._consolidation: Consolidation | None = None

    # ---- what an objective says of itself

    def load_base(self, dtype: torch.dtype, quantization_config: Any) -> PreTrainedModel:
        """The model with the head that the objective needs."""
        raise NotImplementedError

    def loss_sum(self, batch: Any) -> Tensor:
        """Summed loss of a micro-batch; shape []."""
        raise NotImplementedError

    def count(self, batch: Any) -> Tensor:
        """How many of what is learnt from a micro-batch holds; shape []."""
        raise NotImplementedError

    def log_likelihoods(self, batch: Any) -> Tensor:
        """Of each supervised token, by row and place, in fp32; shape [tokens]. All processes call it alike often."""
        raise NotImplementedError

    def throughput(self, batch: Any, seconds: float) -> dict[str, float]:
        """What the log says of a step's speed, given its last micro-batch and how long it took."""
        raise NotImplementedError

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
        streamed = self._streamed(stored)
        base = streamed.model if streamed else self.load_base(stored, context.method.quantization_config(dtype))
        # Loading may have drawn numbers, or not: adapters must not depend on how the base was read.
        seed_at(context.config.seed, 0)
        if context.method.num_observed and not context.config.model.adapter:
            self._observe(base)
        make_room(base, context.tokenizer, context.config.model.add_tokens or [])
        model = adapters.build(context.method, base, context.config.model)
        if context.settled.gradient_checkpointing:
            enable_checkpointing(base, context.settled.gradient_checkpointing == "selective")
        if context.config.model.torch_compile:
            compile_layers(model)
        context.method.on_start(model, context.settled.num_steps)
        if context.config.regularise.ewc:
            self._consolidation = Consolidation(context.config.regularise.ewc)
        strategy = self.trainer.strategy
        if isinstance(strategy, Sharding):
            to_read = streamed.names_in(model) if streamed else {}
            strategy.shard(model, trains_base=context.method.trains_base)
            if streamed and isinstance(strategy, ReadingParts):
                strategy.read(model, to_read, streamed.files.read)
                streamed.files.close()
        self.model = model
        # transformers hands models out in eval mode and Lightning never calls train(): without this, checkpointing
        # and dropout are silently off (Lightning issue 20105).
        self.train()

    def _streamed(self, dtype: torch.dtype) -> Streamed | None:
        """The base without weights, to be read part by part, where the strategy splits it and the method allows it."""
        model, method = self.context.config.model, self.context.method
        whole = (
            method.reads_base or method.quantises or model.init == "scratch" or model.adapter or model.frozen_adapters
        )
        if whole or model.add_tokens or not isinstance(self.trainer.strategy, ReadingParts) or not self.streams:
            return None
        return Streamed.of(model, self.context.architecture, dtype)

    def _observe(self, base: PreTrainedModel) -> None:
        """Show the method the train rows it starts from, on the device where the run will be."""
        method = self.context.method
        if method.quantises == 0:
            base.to(self.context.machine.device)  # type: ignore[arg-type]
        batches = self.context.first_batches(method.num_observed, base.device)
        attention = base.config._attn_implementation
        if base.dtype != torch.float32 or attention != "flash_attention_2":
            method.observe(base, batches)
            return
        # Flash attention computes fp32 weights under autocast alone, where what is observed could not be decomposed.
        base.set_attn_implementation("sdpa")
        method.observe(base, batches)
        base.set_attn_implementation(attention)

    def train(self, mode: bool = True) -> Self:
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
        optimizer = make("optim", self.context.tree["optim"], Optimizer, groups)
        scheduler = make(
            "scheduler", self.context.tree["scheduler"], LRScheduler, optimizer, self.context.settled.num_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- training

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed every generator from the position in the run: dropout is then the same after a resume."""
        settled, rank = self.context.settled, self.context.machine.data_parallel_rank
        seed_at(self.context.config.seed, 1 + batch_idx * settled.world_size + rank)
        self._started = time.perf_counter()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's loss, scaled against Lightning's and DDP's own averaging."""
        with self.saving_activations():
            loss = self.loss_sum(batch)
        return self.penalised(self.scaled_share(loss, batch))

    def saving_activations(self) -> AbstractContextManager[None]:
        """What a forward pass that will be differentiated stands in: where its activations wait for that."""
        return offloaded(self) if self.context.settled.activation_offload else nullcontext()

    def scaled_share(self, loss: Tensor, batch: Any) -> Tensor:
        """Of a micro-batch's summed loss: its share in the step's mean, noted for the log, times the step's passes."""
        share: Tensor = loss / batch["num_labels"]
        detached = share.detach()
        self._step_loss = detached if self._step_loss is None else self._step_loss + detached
        return share * self.passes

    @property
    def passes(self) -> int:
        """Micro-batches of an optimizer step over all devices: what Lightning and DDP divide by."""
        return self.context.settled.accumulate * self.context.settled.world_size

    def penalised(self, loss: Tensor) -> Tensor:
        """With the terms that hang on weights alone: the same in each micro-batch, averaged over them by Lightning."""
        own = self.context.method.penalty(self.model)
        if own is not None:
            loss = loss + own
        if self._consolidation is not None:
            assert self.model is not None
            loss = loss + self._consolidation.penalty(self.model)
        return loss

    def hold_nearer(self, factor: float) -> list[str]:
        """Multiply the strength of each term of the loss that holds the model near its base; the overrides that do."""
        if self._consolidation is None:
            return []
        self._consolidation.strength *= factor
        return [f"regularise.ewc={self._consolidation.strength:g}"]

    def on_train_start(self) -> None:
        """Set the learning rate of the first step; with `regularise.ewc`, measure which weights general rows need.

        A checkpoint holds the rate that its own schedule had next, which is 0 at the end of a cosine: a run that is
        continued for more steps takes what the longer schedule says.
        """
        for configured in self.trainer.lr_scheduler_configs:
            follow_schedule(configured.scheduler)
        if self._consolidation is not None:
            self._consolidation.measure(self, self.context)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the config's norm (0 only measures), and tell the watchers what the step is."""
        self._rate = float(optimizer.param_groups[0]["lr"])
        if isinstance(self.trainer.strategy, ClippingInStep):
            return
        unscale(self.trainer.precision_plugin, optimizer)
        limit = self.context.config.trainer.gradient_clip_val or float("inf")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._tell(self.trainer.global_step + 1, clip_gradients(parameters, limit), optimizer)

    def _tell(self, step: int, norm: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Put down what the step is, and pass it on."""
        assert self._step_loss is not None
        self._facts = StepFacts(
            step=step,
            loss=self.trainer.strategy.reduce(self._step_loss, reduce_op="sum"),
            # Where weights wait in host memory, so do their gradients.
            grad_norm=norm.to(self._step_loss.device),
        )
        self._step_loss = None
        for watch in self.watchers:
            watch(self._facts, optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an optimizer step: what metrics.jsonl shows of it."""
        self._step_seconds += time.perf_counter() - self._started
        if (batch_idx + 1) % self.context.settled.accumulate:
            return
        if isinstance(self.trainer.strategy, ClippingInStep):
            self._tell(self.trainer.global_step, self.trainer.strategy.norm_of_step(), self.trainer.optimizers[0])
        assert self._facts is not None
        self.context.method.on_step_end(self.model, self.trainer.global_step)
        self.log_dict(
            {
                "train/loss": self._facts.loss,
                "train/grad_norm": self._facts.grad_norm,
                "train/lr": self._rate,
                **self.throughput(batch, self._step_seconds),
                **self.progress(),
            }
        )
        self._step_seconds = 0.0

    def progress(self) -> dict[str, float]:
        """Where the run is: optimizer steps done (Lightning counts from 0), and passes over the train rows."""
        step = self.trainer.global_step
        return {"step": float(step), "epoch": step * self.context.settled.rows_per_step / len(self.context.train_rows)}

    # ---- evaluation

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last evaluation."""
        self._sums = []

    def summed(self) -> Tensor:
        """What the evaluation steps put into `_sums`, added up over batches and devices, in double precision."""
        total = torch.stack(self._sums).double().sum(0)
        return self.trainer.strategy.reduce(total, reduce_op="sum")

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
        """Every trainable weight must come back: a partial load would train on in silence with fresh ones.

        Lightning's place in the run counts micro-batches, of which a step may have another number now.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            shift = checkpoint["global_step"] * self.context.settled.accumulate - counts["ready"]
            counts.update({name: count + shift for name, count in counts.items()})
        missing = self.trainable_names() - set(checkpoint["state_dict"])
        self.context.method.load_state(self.model, checkpoint["method"])
        if self._consolidation is not None:
            self._consolidation.load_state(checkpoint["consolidation"], self.device)
        assert not missing, f"checkpoint lacks {len(missing)} trainable weights, {sorted(missing)[:3]} among them"


def follow_schedule(scheduler: Any) -> None:
    """Give the optimizer the learning rates that a schedule of steps has at its present step."""
    if isinstance(scheduler, LambdaLR):
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, factors, strict=True):
            group["lr"] = base * factor


def unscale(precision: Precision, optimizer: torch.optim.Optimizer) -> None:
    """Under fp16's loss scaling, bring the gradients of an optimizer that unscales within its step to their own size.

    Lightning leaves those (fused AdamW) alone, and they would be clipped, and logged, tens of thousands of times too
    large.
    """
    scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)


def seed_at(seed: int, position: int) -> None:
    """Seed Python, NumPy and torch from (seed, position); position 0 is the building of the model."""
    mixed = int(np.random.SeedSequence((seed, position)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
