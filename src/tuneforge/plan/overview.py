"""What `tuneforge plan` shows: the choices, the numbers that matter, and whether they fit the hardware profile."""

from collections.abc import Callable
from typing import Any

from tuneforge.compose import Composed
from tuneforge.errors import TuneforgeError
from tuneforge.explain import show
from tuneforge.locate import read_architecture
from tuneforge.plan.device import PlannedDevice, planned_device
from tuneforge.plan.memory import GIB, Setting, estimate, largest_per_device
from tuneforge.plan.setting import compute_precision, memory_setting
from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.plan.speed import expected_tokens_per_s, flops_per_token, generated_tokens_per_s
from tuneforge.provenance import origin_of
from tuneforge.rules import classifies, may_split, parts_in_host, splits_weights
from tuneforge.schema import Config

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
            for group in sorted(composed.choices, key=_order(composed))
        },
        "settings": {
            path: {"value": _at(composed.tree, path), "origin": origin_of(composed.origins, path)} for path in SHOWN
        },
        "estimate": _estimate(composed),
        "warnings": [str(w) for w in composed.warnings],
    }


def _order(composed: Composed) -> Callable[[str], int]:
    """Groups in the order of the config; `experiment` and `sweep`, which have no node of their own, come last."""
    order = list(composed.tree)
    return lambda group: order.index(group) if group in order else len(order)


def overview_text(composed: Composed, shown: dict[str, Any]) -> str:
    """The same for a console."""
    lines = [f"{g:<12} {c['option']:<18} {c['picked_by']}".rstrip() for g, c in shown["choices"].items()]
    lines.append("")
    lines += [f"{p:<27} {show(s['value']):<12} {s['origin']}" for p, s in shown["settings"].items()]
    found = shown["estimate"]
    if "problem" in found:
        return "\n".join([*lines, "", f"memory: {found['problem']}"])
    on = found["device"]
    if found["devices"] > 1:
        on = f"each of {found['devices']} x {on} under strategy={found['strategy']}"
    lines += [
        "",
        f"model       {found['parameters'] / 1e6:,.1f} M parameters, {found['trainable'] / 1e6:,.2f} M of them trained",
        f"memory      {found['one_row_gib']:.2f} GiB for one row of {found['max_length']} tokens on {on}",
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
    device = planned_device(config)
    precision = compute_precision(config, kind=device.kind, bf16=device.bf16)
    length = config.data.max_length
    checkpointing = config.trainer.gradient_checkpointing
    setting = memory_setting(
        config,
        method,
        kind=device.kind,
        precision=precision,
        max_length=min(shape.max_positions, config.task_recipe.max_length) if length == "auto" else int(length),
        checkpointing=device.kind != "cpu" if checkpointing == "auto" else checkpointing,
        split_over=device.count if splits_weights(composed.tree) else 1,
        parts_in_host=parts_in_host(composed.tree),
    )
    setting, strategy = _spread(composed, shape, setting, device)
    one = estimate(shape, per_device=1, **setting)
    on_one = estimate(shape, per_device=1, **(setting | {"split_over": 1, "parts_in_host": False}))
    flops = flops_per_token(shape, method)
    speed = expected_tokens_per_s(hardware, flops)
    price = hardware.usd_per_hour
    return {
        "device": device.name,
        "devices": device.count,
        "strategy": strategy,
        "parameters": shape.num_parameters(),
        "trainable": method.num_parameters(shape),
        "max_length": setting["max_length"],
        "one_row_gib": one.total / GIB,
        "parts": str(one),
        "available_gib": device.memory_bytes / GIB,
        **_fit(config, shape, setting, device.memory_bytes),
        "tokens_per_s": speed,
        "usd_per_million_tokens": price / 3600 / speed * 1e6 if price and speed else None,
        "generated_tokens_per_s": generated_tokens_per_s(hardware, on_one.weights),
    }


def _spread(composed: Composed, shape: ModelShape, setting: Setting, device: PlannedDevice) -> tuple[Setting, str]:
    """The setting under the strategy that runs; `auto` becomes what a run would make of it on so many devices."""
    name = composed.choices.get("strategy", composed.tree["strategy"]["name"])
    if name != "auto":
        return setting, name
    if device.count == 1:
        return setting, "single"
    holds_all = _fit(composed.config, shape, setting, device.memory_bytes)["holds"]
    if holds_all or not may_split(composed.tree):
        return setting, "ddp"
    return {**setting, "split_over": device.count}, "fsdp"


def _fit(config: Config, shape: ModelShape, setting: Setting, available: float) -> dict[str, Any]:
    """Whether `batch.per_device` sequences fit on a device, or with auto how many do."""
    wanted = config.batch.per_device if isinstance(config.batch.per_device, int) else None
    try:
        rows = largest_per_device(shape, available_bytes=available, at_most=wanted or 256, **setting)
    except TuneforgeError as error:
        return {"fits": f"no: {error.problems[0].fix}", "holds": False}
    if wanted is None:
        return {"fits": f"{rows} rows a device" + (" or more" if rows == 256 else ""), "holds": True}
    if rows < wanted:
        return {"fits": f"no: set batch.per_device={rows}, the most that fit of the {wanted} asked for", "holds": False}
    return {"fits": f"{wanted} rows a device, as batch.per_device asks for", "holds": True}


def _at(tree: dict[str, Any], path: str) -> Any:
    node: Any = tree
    for part in path.split("."):
        node = node[part]
    return node
