"""What is learnt, with what optimizer, schedule, batch and loop."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tuneforge.schema.types import (
    Count,
    Decay,
    Factor,
    Fraction,
    LearningRate,
    LocalPath,
    NonNegative,
    Pluggable,
    PositiveInt,
    Probability,
    Range,
    Size,
)


@dataclass(frozen=True, kw_only=True)
class TaskRecipe(Pluggable):
    """What is learnt: the objective, and hints that methods read."""

    group: ClassVar[str] = "task_recipe"

    name: str
    """The option's name."""
    objective: str
    """sft, pretrain, continued or classification; the key into a method's learning-rate table."""
    rank: Size = 16
    """Adapter rank that suits the task: 8 standard, 16 instruction and chat, 32 code, 64 domain."""
    alpha: Size = 32
    """Adapter scale; 2 x rank, so that the learning rate is the one thing to tune."""
    dropout: Probability = 0.0
    """Adapter dropout: 0 above 100k rows, 0.05 to 0.1 below."""
    targets: str | list[str] = "all-linear"
    """Modules an adapter attaches to: all-linear, or names of linear modules."""
    lr_scale: Factor = 1.0
    """Multiplies the method's learning rate: 0.5 for code, 0.25 for a domain, 1.5 for a few hundred rows."""
    max_length: PositiveInt = 1024
    """What `data.max_length=auto` becomes where the model has the positions: longer rows cost memory few rows need."""
    min_batch: PositiveInt = 32
    """Fewest documents in an optimizer step that the quality gates accept."""


@dataclass(frozen=True, kw_only=True)
class Optim(Pluggable):
    """The optimizer; its own knobs come from its `_target_`."""

    group: ClassVar[str] = "optim"

    lr: LearningRate
    """Peak learning rate."""
    weight_decay: Decay = 0.01
    """Decoupled decay of weight matrices; norms, biases and embeddings are never decayed."""
    state_bytes: NonNegative = 8
    """Bytes of optimizer state a trained weight costs, for the memory estimate: AdamW keeps two fp32 numbers."""


@dataclass(frozen=True, kw_only=True)
class Scheduler(Pluggable):
    """The learning rate over time."""

    group: ClassVar[str] = "scheduler"

    warmup_ratio: Probability = 0.03
    """Share of the optimizer steps in which the rate rises linearly from 0."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How much one optimizer step sees."""

    effective: PositiveInt = 32
    """Documents in one optimizer step, over all devices and accumulation steps."""
    effective_tokens: PositiveInt | None = None
    """Tokens in one optimizer step, instead of `effective`."""
    per_device: Literal["auto"] | PositiveInt = "auto"
    """Largest micro-batch, in sequences (rows). auto: the most that fit in memory. It does not change which sequences a
    step takes: they are split evenly over as few micro-batches as it allows."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The loop, in Lightning's own names."""

    max_epochs: Annotated[float, Range(gt=0, le=1_000_000)] = 1.0
    """Passes over the train rows; fractions are allowed."""
    max_steps: PositiveInt | None = None
    """Optimizer steps; given, it wins over `max_epochs`."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device kind. auto: what is present."""
    devices: Literal["auto"] | PositiveInt = "auto"
    """Processes on this machine. auto: every GPU present, or one CPU process."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "auto"
    """Compute type. auto: bf16-mixed where the device has bf16, else 16-mixed on a GPU, else 32-true."""
    gradient_clip_val: NonNegative = 1.0
    """Global gradient norm to clip to; 0 switches clipping off."""
    gradient_checkpointing: Literal["auto", "selective"] | bool = "auto"
    """Recompute activations in backward. auto: on GPUs; on a CPU memory is plenty and time is not. selective: keep the
    results of attention and of the base's matrix products, and recompute the rest, which takes little time."""
    activation_offload: bool = False
    """Keep what the backward pass needs in host memory meanwhile: the least device memory, at the speed of the bus."""
    val_check_interval: Fraction | PositiveInt = 0.2
    """Evaluate every N optimizer steps (an integer: 1 is each step), or every fraction of the run (a number with a
    point: 0.2 is five times, 1.0 once at the end). 0: at the end alone."""
    log_every_n_steps: PositiveInt = 1
    """Optimizer steps between two lines of metrics.jsonl."""
    deterministic: bool = False
    """Refuse operations without a deterministic implementation."""


@dataclass(frozen=True, kw_only=True)
class Strategy(Pluggable):
    """How work is spread over devices."""

    group: ClassVar[str] = "strategy"

    name: str
    """The option's name."""
    process_group_backend: Literal["auto", "nccl", "gloo"] = "auto"
    """auto: nccl on CUDA, gloo on CPU."""


@dataclass(frozen=True, kw_only=True)
class Callback(Pluggable):
    """A Lightning callback picked by name; its options come from its `_target_`."""

    group: ClassVar[str] = "callbacks"


@dataclass(frozen=True, kw_only=True)
class Logger(Pluggable):
    """A Lightning logger picked by name; its options come from its `_target_`."""

    group: ClassVar[str] = "logger"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Prompts answered by the model before and after training."""

    num: Count = 3
    """How many eval prompts are answered; 0 switches it off."""
    max_new_tokens: PositiveInt = 48
    """Longest answer, in tokens."""


@dataclass(frozen=True, kw_only=True)
class Sanity:
    """Checks on the loaded model before the run; nothing of them stays."""

    overfit_one_batch: bool = False
    """Learn the first batch by heart, and stop with the likely causes where that fails (exit code 3)."""
    steps: PositiveInt = 100
    """Optimizer steps it may take."""
    below: Fraction = 0.2
    """Share of its first loss that the batch must come down to."""


@dataclass(frozen=True, kw_only=True)
class LrFind:
    """The range test of `tuneforge lr_find`; a run reads none of it."""

    lowest: LearningRate = 1e-6
    """Learning rate of the first step."""
    highest: LearningRate = 1.0
    """Learning rate of the last step, if the loss has not diverged before."""
    steps: PositiveInt = 80
    """Optimizer steps from one to the other."""
    share: Fraction = 0.01
    """Share of the train rows that is used."""
    at_least: PositiveInt = 256
    """Documents that are used at least."""


@dataclass(frozen=True, kw_only=True)
class Regularise:
    """Terms of the loss that hold a model near what it was, against forgetting."""

    ewc: NonNegative = 0.0
    """Strength of elastic weight consolidation (arXiv 1612.00796), which holds weights where general rows need them;
    0: off. It multiplies squared gradients, which are small, so that values that do something are large: 1e3 and up."""
    kl: NonNegative = 0.0
    """Weight of the divergence of the base's predictions from the tuned model's on the train rows. 0: off."""
    router_aux_loss_coef: Literal["auto"] | NonNegative = "auto"
    """Weight of the loss that balances a mixture's routers. auto: the model's own; 0: off. It is no part of the
    evaluation's loss, nor of `train/loss`."""
    path: LocalPath = "bundled"
    """A file of general rows for `ewc`; bundled: the standard library's documentation as text."""
    rows: PositiveInt = 64
    """General rows that the weights' importance is measured on."""
