"""What strategies, which copy weights or split them, need of methods, optimizers and precisions."""

from collections.abc import Mapping
from typing import Any

from tuneforge.errors import Problem
from tuneforge.rules.registry import rule
from tuneforge.schema import Config
from tuneforge.schema.facts import method_facts

COPYING_STRATEGIES = ("auto", "single", "ddp")

QUANTISED_STRATEGIES = {
    4: (*COPYING_STRATEGIES, "fsdp", "fsdp_offload", "deepspeed_zero2", "deepspeed_zero3"),
    8: COPYING_STRATEGIES,
}
"""Bits of a quantised base -> strategies under which it gives the losses of one process (tests/distributed). The
scales of 8-bit weights do not survive their being split."""

SINGLE, AUTO = "tuneforge.strategies.single.single", "tuneforge.strategies.auto.auto"
"""The `_target_`s of the strategy of one process, and of the one that picks another."""

COPYING_TARGETS = frozenset({SINGLE, AUTO, "tuneforge.strategies.ddp.ddp"})
"""The `_target_`s of `COPYING_STRATEGIES`."""

TENSOR_PARALLEL = "tuneforge.strategies.fsdp_tp.fsdp_tp"
"""The `_target_` of the strategy under which several devices compute a row together."""

TENSOR_PARALLEL_METHODS = frozenset(
    {
        "tuneforge.methods.freeze.Freeze",
        "tuneforge.methods.full.Full",
        "tuneforge.methods.lora.Lora",
        "tuneforge.methods.prompts.PromptTuning",
    }
)
"""Methods that give the losses of one process there (tests/distributed)."""

SPLITTING_STRATEGIES = frozenset({"tuneforge.strategies.fsdp.fsdp", TENSOR_PARALLEL})
"""Targets of strategies that give each device a part of every weight."""

SPLITTING_OPTIMIZERS = frozenset({"tuneforge.optim.adamw", "tuneforge.optim.muon"})
"""Optimizers that take such parts (tests/distributed tries the others)."""

ZERO = "tuneforge.strategies.deepspeed.deepspeed"
"""The `_target_` of DeepSpeed's strategies."""

ZERO_PRECISIONS = ("32-true", "bf16-mixed")
"""Under DeepSpeed weights stay fp32 between steps, and products are in bf16 at most."""

ELEMENTWISE = ("tuneforge.optim.adamw", "tuneforge.optim.lion")
"""Optimizers that treat each weight by itself, and so the same in a flat part of several matrices."""


def one_process(tree: Mapping[str, Any]) -> bool:
    """Whether the strategy runs one process, whatever it is named."""
    return bool(tree["strategy"]["_target_"] == SINGLE)


def _proven_for(bits: int, strategy: Mapping[str, Any]) -> bool:
    """Whether what the strategy does, and not its name, gives the losses of one process with a quantised base."""
    target = strategy["_target_"]
    if target in COPYING_TARGETS or bits != 4:
        return target in COPYING_TARGETS
    in_zero = target == ZERO and strategy["stage"] in (2, 3) and strategy.get("offload", "none") == "none"
    return target == "tuneforge.strategies.fsdp.fsdp" or in_zero


def may_split(tree: Mapping[str, Any]) -> bool:
    """Whether method, optimizer and regularisers work on parts of weights."""
    facts = method_facts(tree["method"])
    method = facts["splits"] and facts["quantises"] != 8
    return method and tree["optim"]["_target_"] in SPLITTING_OPTIMIZERS and not tree["regularise"]["ewc"]


def splits_weights(tree: Mapping[str, Any]) -> bool:
    """Whether the strategy gives each device a part of every weight."""
    strategy = tree["strategy"]
    return strategy["_target_"] in SPLITTING_STRATEGIES or (strategy["_target_"] == ZERO and strategy["stage"] == 3)


def tensor_parallel_size(tree: Mapping[str, Any]) -> int:
    """Devices that compute a row together."""
    size: int = tree["strategy"].get("tensor_parallel_size", 1)
    return size


def parts_in_host(tree: Mapping[str, Any]) -> bool:
    """Whether those parts wait in host memory."""
    return splits_weights(tree) and tree["strategy"].get("offload", "none") != "none"


@rule
def a_quantised_base_has_a_proven_strategy(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A quantised base runs only under strategies with a proven equal loss: some repack or split it in silence."""
    bits = method_facts(tree["method"])["quantises"]
    # The name is for messages and may be edited: what counts is the target with its options.
    if not bits or _proven_for(bits, tree["strategy"]):
        return None
    return Problem(
        "quantised-strategy",
        f"method={config.method.name} quantises the base, and strategy={config.strategy.name} has no proof of equal "
        "losses with one",
        "strategy",
        fix=f"use strategy={' or '.join(QUANTISED_STRATEGIES[bits])}, or method=lora",
    )


@rule
def a_method_works_on_split_weights(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """AdaLoRA's importance scores and VB-LoRA's vectors, which all layers share, cannot be split over devices."""
    if tree["strategy"]["_target_"] not in SPLITTING_STRATEGIES or method_facts(tree["method"])["splits"]:
        return None
    return Problem(
        "method-cannot-split",
        f"splits every weight over the devices, and method={config.method.name} fails on parts of weights",
        "strategy",
        fix="use strategy=ddp, or method=lora",
    )


@rule
def split_weights_have_an_optimizer_that_splits(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Where weights are split over devices, the optimizer must work on parts; bitsandbytes' and Adafactor do not."""
    if tree["strategy"]["_target_"] not in SPLITTING_STRATEGIES or tree["optim"]["_target_"] in SPLITTING_OPTIMIZERS:
        return None
    return Problem(
        "optimizer-cannot-split",
        f"{tree['optim']['_target_']} fails on parts of weights, and strategy={config.strategy.name} splits them all",
        "optim",
        fix="use optim=adamw: split over the devices, its states are as small as an 8-bit one's on one",
    )


@rule
def weights_held_in_place_are_whole(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Elastic weight consolidation measures what each weight is needed for, and fails on parts of weights."""
    target = tree["strategy"]["_target_"]
    if not config.regularise.ewc or target not in SPLITTING_STRATEGIES or target == TENSOR_PARALLEL:
        return None
    return Problem(
        "ewc-cannot-split",
        f"measures every weight, and strategy={config.strategy.name} splits them all",
        "regularise.ewc",
        fix="use regularise.kl instead, or strategy=ddp",
    )


@rule
def groups_are_whole(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Devices that compute rows together come in groups of one size."""
    devices = config.trainer.devices
    return None if devices == "auto" else uneven_groups(devices, tensor_parallel_size(tree))


def uneven_groups(devices: int, size: int) -> Problem | None:
    """What is wrong with groups of `size` among so many devices, typed or found."""
    if devices % size == 0:
        return None
    message = f"is {size}, and the run has {devices} device{'s' if devices > 1 else ''}: no whole number of groups"
    fix = f"set trainer.devices={size} or a multiple, or use strategy=fsdp without strategy.tensor_parallel_size"
    return Problem("uneven-groups", message, "strategy.tensor_parallel_size", fix=fix)


@rule
def what_is_proven_on_split_matrices(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Where devices compute rows together, what touches weights needs a proof of equal losses on such parts."""
    if tree["strategy"]["_target_"] != TENSOR_PARALLEL:
        return None
    method = tree["method"]
    unproven = {
        (f"method={config.method.name}", "method=lora"): method["_target_"] not in TENSOR_PARALLEL_METHODS,
        ("method.use_dora", "method.use_dora=false"): method.get("use_dora"),
        ("method.modules_to_save", "method.modules_to_save=null"): method.get("modules_to_save"),
        ("optim=muon", "optim=adamw"): tree["optim"]["_target_"] == "tuneforge.optim.muon",
        ("regularise.ewc", "regularise.ewc=0"): config.regularise.ewc,
        ("model.torch_compile", "model.torch_compile=false"): config.model.torch_compile,
    }
    what, instead = next((names for names, given in unproven.items() if given), ("", ""))
    if not what:
        return None
    return Problem(
        "no-tensor-parallel",
        f"{config.strategy.name} splits each layer's matrices, and {what} has no proof of equal losses on such parts",
        "strategy",
        # What fsdp does not split either needs ddp.
        fix=f"use strategy={'ddp' if config.regularise.ewc else 'fsdp'}, or set {instead}",
    )


@rule
def one_process_is_one_device(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """strategy=single is one process on one device."""
    devices = config.trainer.devices
    if not one_process(tree) or devices in ("auto", 1):
        return None
    return Problem(
        "single-is-one-device",
        f"trainer.devices={devices} asks for several processes, and strategy=single runs one",
        "strategy",
        fix="use strategy=ddp, or trainer.devices=1",
    )


@rule
def split_weights_have_an_elementwise_optimizer(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """DeepSpeed hands the optimizer flat parts: one that looks at matrices or blocks would compute other updates."""
    target = tree["optim"]["_target_"]
    if tree["strategy"]["_target_"] != ZERO or target in ELEMENTWISE:
        return None
    return Problem(
        "optimizer-on-flat-parts",
        f"{config.strategy.name} cuts matrices into flat parts, and {target} looks at more than one weight at a time",
        "strategy",
        fix="use optim=adamw or lion, or strategy=ddp",
    )


@rule
def split_gradients_are_not_read(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """DeepSpeed takes gradients away as they come: what reads them beside the optimizer would find none."""
    if tree["strategy"]["_target_"] != ZERO:
        return None
    if method_facts(tree["method"])["reads_gradients"]:
        reader = f"method={config.method.name}"
    elif config.regularise.ewc:
        reader = "regularise.ewc"
    else:
        return None
    return Problem(
        "gradients-split",
        f"{config.strategy.name} takes gradients away as they come, and {reader} reads them",
        "strategy",
        fix="use strategy=ddp, or method=lora without regularise.ewc",
    )


@rule
def learning_by_heart_has_whole_weights(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`sanity.overfit_one_batch` trains before the run does, outside of DeepSpeed, whose third stage splits weights."""
    stage = tree["strategy"].get("stage", 2)
    if not config.sanity.overfit_one_batch or tree["strategy"]["_target_"] != ZERO or stage < 3:
        return None
    return Problem(
        "sanity-on-split-weights",
        f"trains before the run, and strategy={config.strategy.name} has split the weights by then",
        "sanity.overfit_one_batch",
        fix="use strategy=deepspeed_zero2 for it, or drop it",
    )


@rule
def deepspeed_has_fp32_weights(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Under DeepSpeed weights stay fp32: its own half precisions would cast the frozen ones with them."""
    precision = config.trainer.precision
    if tree["strategy"]["_target_"] != ZERO or precision in ("auto", *ZERO_PRECISIONS):
        return None
    return zero_precision(config, precision)


def zero_precision(config: Config, precision: str) -> Problem:
    """What is wrong with another precision under DeepSpeed, typed or settled from the device."""
    message = f"{config.strategy.name} trains in {' or '.join(ZERO_PRECISIONS)}, and trainer.precision is {precision}"
    fix = f"set trainer.precision={ZERO_PRECISIONS[0]}, or use strategy=ddp"
    return Problem("zero-precision", message, "strategy", fix=fix)
