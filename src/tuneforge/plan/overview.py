"""What `tuneforge plan` shows: the choices, the numbers that matter, and whether they fit the hardware profile."""

import shutil
from typing import Any

import psutil

from tuneforge.compose import Composed
from tuneforge.errors import TuneforgeError
from tuneforge.explain import show
from tuneforge.locate import read_architecture
from tuneforge.plan.memory import GIB, Setting, estimate, largest_per_device
from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.plan.speed import expected_tokens_per_s, flops_per_token, generated_tokens_per_s
from tuneforge.provenance import origin_of
from tuneforge.rules import classifies, parts_in_host, splits_weights

SHOWN = (
    *("optim.lr", "optim.weight_decay", "scheduler.warmup_ratio", "batch.effective", "batch.per_device"),
    *("data.max_length", "data.packing", "data.train_on", "trainer.max_epochs", "trainer.max_steps"),
    *("trainer.precision", "trainer.gradient_clip_val", "seed"),
)


def overview(composed: Composed) -> dict[str, Any]:
    """Choices, settings and the estimate, as `--json` prints them."""
    return {
        "choices": {
            group: {"option": composed.choices[group], "picked_by": composed.pickers.get(group, "")}
            for group in sorted(composed.choices, key=list(composed.tree).index)
        },
        "settings": {
            path: {"value": _at(composed.tree, path), "origin": origin_of(composed.origins, path)} for path in SHOWN
        },
        "estimate": _estimate(composed),
        "warnings": [str(w) for w in composed.warnings],
    }


def overview_text(composed: Composed, shown: dict[str, Any]) -> str:
    """The same for a console."""
    lines = [f"{g:<12} {c['option']:<18} {c['picked_by']}".rstrip() for g, c in shown["choices"].items()]
    lines.append("")
    lines += [f"{p:<27} {show(s['value']):<12} {s['origin']}" for p, s in shown["settings"].items()]
    found = shown["estimate"]
    if "problem" in found:
        return "\n".join([*lines, "", f"memory: {found['problem']}"])
    lines += [
        "",
        f"model       {found['parameters'] / 1e6:,.1f} M parameters, {found['trainable'] / 1e6:,.2f} M of them trained",
        f"memory      {found['one_row_gib']:.2f} GiB for one row of {found['max_length']} tokens on {found['device']}",
        f"            ({found['parts']}) of {found['available_gib']:.1f} GiB",
        f"fits        {found['fits']}",
    ]
    # Smaller models wait for kernels to be launched, and reach no such share.
    if found["tokens_per_s"] and found["parameters"] > 1e8:
        cost = f", {found['usd_per_million_tokens']:.2f} dollars a million" if found["usd_per_million_tokens"] else ""
        lines.append(f"speed       about {found['tokens_per_s']:,.0f} tokens a second{cost}, at 35 % of the peak")
    lines += [f"warning: {w}" for w in shown["warnings"]]
    return "\n".join(lines)


def _estimate(composed: Composed) -> dict[str, Any]:
    """Memory and speed on the profile's device; `problem` says why there is no estimate."""
    model = composed.config.model
    architecture = read_architecture(model.path, model.revision)
    if architecture is None:
        return {"problem": f"{model.path} is not on this machine yet, so its size is not known"}
    try:
        # How many classes the rows have is not known before they are read; the head is small whatever their number.
        classes = len(composed.config.data.labels or ("one", "two")) if classifies(composed.config) else 0
        shape = ModelShape.from_hf_config(architecture).with_classes(classes)
        return _of_shape(composed, shape, Trainable.of_method(composed.tree["method"]))
    except TuneforgeError as error:
        return {"problem": error.problems[0].message}


def _of_shape(composed: Composed, shape: ModelShape, method: Trainable) -> dict[str, Any]:
    config, hardware = composed.config, composed.config.hardware
    kind, available = _device(composed)
    wide = kind == "cpu" or config.trainer.precision == "32-true"
    length = config.data.max_length
    devices = config.trainer.devices if isinstance(config.trainer.devices, int) else 1
    setting: Setting = {
        "method": method,
        "max_length": min(shape.max_positions, config.task_recipe.max_length) if length == "auto" else int(length),
        "weight_bits": 32 if wide else 16,
        "optimizer_bytes_per_param": config.optim.state_bytes,
        "compute_bytes": 4 if wide else 2,
        "gradient_checkpointing": kind != "cpu"
        if config.trainer.gradient_checkpointing == "auto"
        else config.trainer.gradient_checkpointing,
        "activation_offload": config.trainer.activation_offload and kind not in ("cpu", "mps"),
        "split_over": devices if splits_weights(composed.tree) else 1,
        "parts_in_host": parts_in_host(composed.tree),
        "attention": config.model.attn_implementation,
        "device_kind": kind,
    }
    one = estimate(shape, per_device=1, **setting)
    flops = flops_per_token(shape, method)
    speed = expected_tokens_per_s(hardware, flops)
    price = hardware.usd_per_hour
    return {
        "device": hardware.name if hardware.kind != "auto" else f"this machine ({kind})",
        "parameters": shape.num_parameters(),
        "trainable": method.num_parameters(shape),
        "max_length": setting["max_length"],
        "one_row_gib": one.total / GIB,
        "parts": str(one),
        "available_gib": available / GIB,
        "fits": _fits(shape, setting, available),
        "tokens_per_s": speed,
        "usd_per_million_tokens": price / 3600 / speed * 1e6 if price and speed else None,
        "generated_tokens_per_s": generated_tokens_per_s(hardware, one.weights),
    }


def _fits(shape: ModelShape, setting: Setting, available: float) -> str:
    try:
        rows = largest_per_device(shape, available_bytes=available, at_most=256, **setting)
    except TuneforgeError as error:
        return f"no: {error.problems[0].fix}"
    return f"{rows} rows a device" + (" or more" if rows == 256 else "")


def _device(composed: Composed) -> tuple[str, float]:
    """Kind and memory to plan for, in bytes: the profile's, or this machine's as far as it shows without torch."""
    hardware = composed.config.hardware
    host = float(psutil.virtual_memory().total)
    if hardware.kind == "auto":
        return ("cuda" if shutil.which("nvidia-smi") else "cpu"), host
    return hardware.kind, hardware.vram_gb * GIB if hardware.vram_gb else host


def _at(tree: dict[str, Any], path: str) -> Any:
    node: Any = tree
    for part in path.split("."):
        node = node[part]
    return node
