"""Keys that mean the same in several tools: batches, steps, schedules, optimizers, strategies, where rows lie."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneforge.importers.common import Draft, number, read_json_beside

PLACEHOLDER = "PUT_YOUR_ROWS_HERE.jsonl"
"""Stands for data that could not be carried. The run stops at it, instead of training on the bundled rows."""
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
ALPACA, CHAT, TEXT = "alpaca", "chat", "text"


def listed(value: Any) -> list[str]:
    """Names, given as a list or with commas between."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [str(part).strip() for part in parts if str(part).strip()]


# Batch and length of a run


def batch(draft: Draft, rows_key: str, steps_key: str, packed_length: Any) -> None:
    """Rows a device and accumulation. With packing their rows are full of tokens, and ours are counted in documents."""
    rows, steps = draft.number(rows_key) or 1, draft.number(steps_key) or 1
    total = int(rows) * int(steps)
    draft.set("batch.per_device", int(rows), rows_key)
    if isinstance(packed_length, int):
        draft.set("batch.effective_tokens", total * packed_length, rows_key, steps_key)
        draft.note(
            f"packed rows: one step there is {total} rows of {packed_length} tokens; batch.effective counts documents "
            "here, so batch.effective_tokens says the same; the document count a step is printed by a run"
        )
    else:
        draft.set("batch.effective", total, rows_key, steps_key)
    path = "batch.effective_tokens" if isinstance(packed_length, int) else "batch.effective"
    draft.note(
        f"the file does not say on how many GPUs it runs: {path} is for one; multiply it by their number, "
        "because it counts over all devices here"
    )


def length_of_run(draft: Draft, epochs_key: str) -> None:
    """Epochs, and steps where they are given; steps win on both sides."""
    epochs = draft.number(epochs_key)
    if epochs is not None and epochs > 0:
        draft.set("trainer.max_epochs", epochs, epochs_key)
    steps = draft.number("max_steps")
    if steps is not None and steps > 0:
        draft.set("trainer.max_steps", int(steps), "max_steps")
    draft.same("max_steps")


def warmup(draft: Draft, otherwise: float = 0.0) -> None:
    """Our schedules know a share of the run only; a count of steps becomes one where the run's length is known."""
    steps, ratio = draft.number("warmup_steps"), draft.number("warmup_ratio")
    total = draft.result.values.get("trainer.max_steps")
    path = "scheduler.warmup_ratio"
    if steps and steps >= 1:
        draft.same("warmup_ratio")
        if total is None:
            draft.leave(
                "warmup_steps",
                "warm-up is a share of the run here, and the run's number of steps is not in the file: "
                "set scheduler.warmup_ratio to these steps divided by it (0.03 stands)",
            )
        elif steps >= total:
            draft.leave("warmup_steps", f"is not shorter than the run of {total} steps")
        else:
            draft.set(path, _share(int(steps), total), "warmup_steps", "max_steps")
    elif steps:
        draft.set(path, steps, "warmup_steps")  # transformers 5: a fraction is a share of the run
        draft.same("warmup_ratio")
    elif ratio is not None:
        draft.set(path, ratio, "warmup_ratio")
        draft.same("warmup_steps")
    else:
        draft.set(path, otherwise if steps is None else 0.0, *(["warmup_steps"] if steps == 0 else ["warmup_ratio"]))
        draft.same("warmup_steps")


def _share(steps: int, total: int) -> float:
    """A share that our rounding up turns into exactly this many steps."""
    share = round(steps / total, 6)
    return share if math.ceil(share * total) == steps else round((steps - 0.5) / total, 6)


SCHEDULERS = {
    "cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine", "cosine_with_restarts": "cosine_with_restarts", "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt", "warmup_stable_decay": "wsd",
}  # fmt: skip
"""Their name -> the option, present or to come, that follows the same curve."""


def scheduler(draft: Draft, key: str) -> None:
    """The curve; `constant` ignores warm-up in transformers, and ours does not."""
    name = str(draft.get(key))
    option = SCHEDULERS.get(name, name)
    if not draft.choose("scheduler", option, key, why=f"there is no scheduler={option} here; cosine stands in for it"):
        draft.choose("scheduler", "cosine")
    if name == "constant":
        for given in ("warmup_steps", "warmup_ratio"):
            if draft.number(given):
                draft.leave(given, "transformers' `constant` ignores it, and so does what is written here")
        draft.set("scheduler.warmup_ratio", 0.0, key)
        draft.same("warmup_steps", "warmup_ratio")
        return
    _minimum(draft, name)


def _minimum(draft: Draft, name: str) -> None:
    options = draft.get("lr_scheduler_kwargs")
    if not isinstance(options, Mapping) or not options:
        return
    rest = dict(options)
    rate = draft.number("learning_rate")
    if name == "cosine_with_min_lr":
        ratio = rest.pop("min_lr_rate", None)
        floor = rest.pop("min_lr", None)
        try:
            if ratio is None and floor is not None and rate:
                ratio = round(number(floor) / rate, 6)
            if ratio is not None:
                draft.set("scheduler.min_lr_ratio", float(number(ratio)), "lr_scheduler_kwargs")
        except (ValueError, OverflowError):
            draft.leave("lr_scheduler_kwargs", "its min_lr and min_lr_rate are no numbers")
    for option, value in rest.items():
        draft.leave(f"lr_scheduler_kwargs.{option}", "this option of the schedule is not known here", value)


OPTIMIZERS: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw"), (("adamw",), "")),
    **dict.fromkeys(
        ("adamw_8bit", "adamw_bnb_8bit"),
        (("adamw_8bit", "paged_adamw_8bit"), "the same update; its states may move to host memory under pressure"),
    ),
    "paged_adamw_8bit": (("paged_adamw_8bit",), ""),
    **dict.fromkeys(
        ("paged_adamw_32bit", "paged_adamw"),
        (("paged_adamw", "adamw"), "the same update with states in fp32; they are not paged to host memory"),
    ),
    **dict.fromkeys(("lion_32bit", "lion"), (("lion",), "")),
    **dict.fromkeys(("paged_lion_32bit", "paged_lion"), (("paged_lion",), "")),
    "adafactor": (("adafactor",), ""), "sgd": (("sgd",), ""), "muon": (("muon",), ""), "lomo": (("lomo",), ""),
    "schedule_free_adamw": (("schedule_free_adamw", "adamw_schedulefree"), ""),
}  # fmt: skip
"""Their name -> the options that do the same, first choice first, and what is different about those after it."""


def optimizer(draft: Draft, key: str) -> None:
    """The optimizer and Adam's constants."""
    name = str(draft.get(key)).removeprefix("OptimizerNames.").lower()
    wanted, different = OPTIMIZERS.get(name, ((name,), ""))
    there = [option for option in wanted if option in draft.options.get("optim", ())]
    if there:
        draft.choose("optim", there[0], key)
        if there[0] != wanted[0]:
            draft.note(f"{key}: {name} became optim={there[0]}: {different}")
    else:
        draft.choose("optim", "adamw")
        draft.leave(
            key, f"there is no optim={wanted[0]} here; adamw stands in, and its learning rate is not this one's"
        )
    first, second = draft.number("adam_beta1"), draft.number("adam_beta2")
    if draft.has("adam_beta1") or draft.has("adam_beta2"):
        draft.set("optim.betas", [first or 0.9, second or 0.999], "adam_beta1", "adam_beta2")
    if draft.number("weight_decay") and draft.result.choices.get("method") == "full":
        draft.note("weight decay skips embeddings here, beside norms and biases; transformers decays embeddings")


# Evaluation


def eval_share(draft: Draft, key: str) -> None:
    """The held-out share; a count of rows has no equal here, and no evaluation at all is refused."""
    share = draft.number(key)
    held_by_file = "data.split.eval_path" in draft.result.values
    if share is None or held_by_file:
        draft.same(key)
        return
    if 0 < share < 1:
        draft.set("data.split.eval_fraction", float(share), key)
        draft.note("the held-out rows are chosen by hash here, so they are other rows than there, as many")
    elif share == 0:
        why = "a run here always holds rows out, to pick the best checkpoint: data.split.eval_fraction=0.1 stands"
        draft.leave(key, why)
        if not draft.has(key):
            draft.note(f"{draft.dialect.title} holds no rows out unless told ({key} 0); {why}")
    else:
        draft.leave(key, "is a count of rows; here the held-out part is a share: data.split.eval_fraction=0.1 stands")


def evaluation(draft: Draft, epochs_key: str) -> None:
    """How often eval loss is measured: steps, or a share of the run."""
    strategy_key = "eval_strategy" if draft.has("eval_strategy") else "evaluation_strategy"
    strategy = str(draft.get(strategy_key)).lower()
    every_n = draft.number("eval_steps")
    epochs = draft.number(epochs_key)
    if strategy in ("no", "false"):  # YAML reads a bare `no` as false
        why = "a run here always evaluates, to pick the best checkpoint: five times, as trainer.val_check_interval says"
        draft.leave(strategy_key, why)
    elif strategy == "epoch":
        if epochs and epochs >= 1 and "trainer.max_steps" not in draft.result.values:
            draft.set("trainer.val_check_interval", round(1 / epochs, 6), strategy_key)
        else:
            draft.leave(
                strategy_key, "an evaluation an epoch needs the number of epochs, and the run's length is in steps"
            )
    elif every_n and every_n >= 1:
        draft.set("trainer.val_check_interval", int(every_n), "eval_steps", strategy_key)
    elif every_n:
        draft.set("trainer.val_check_interval", float(every_n), "eval_steps", strategy_key)
    elif strategy == "steps":
        draft.leave(
            strategy_key, "without eval_steps their logging interval is used; five evaluations a run stand here"
        )
    if strategy in ("no", "false", "epoch"):
        draft.same("eval_steps")


# What changes in the weights

OFF_SWITCH = (None, False)


BITS = {"load_in_4bit": "qlora", "load_in_8bit": "qlora_8bit"}
"""A switch that quantises the base, by its name in Axolotl and TRL -> the method over such a base."""
QUANTISED_VARIANTS = {("qlora", "dora"): "qdora"}
"""Method over a quantised base, variant -> the option that is both."""


def method(
    draft: Draft, kind: str, kind_keys: Sequence[str], quantised: Mapping[str, str], variants: Mapping[str, str]
) -> bool:
    """Choose the method; returns whether it trains an adapter. Switches -> options: of a base's bits, of variants."""
    if kind == "full":
        draft.choose("method", "full", *kind_keys)
        return False
    base = next((option for key, option in quantised.items() if draft.on(key)), "lora")
    chosen = False
    for key, variant in variants.items():
        option = variant if base == "lora" else QUANTISED_VARIANTS.get((base, variant))
        if draft.get(key) in OFF_SWITCH:
            draft.same(key)
        elif option is None:
            draft.leave(
                key, f"goes with an unquantised base only here: method={base} stands, method={variant} is without"
            )
        elif chosen:
            draft.leave(key, f"method={draft.result.choices['method']} is already picked, and a run has one method")
        else:
            chosen = draft.choose("method", option, key)
    if not chosen:
        draft.choose("method", base, *kind_keys)
    draft.same(*kind_keys, *quantised)
    return True


# How work is spread


WHOLE = "each device holds the whole model, as with DDP"


def strategy(draft: Draft) -> None:
    """DeepSpeed by its config file or its name, FSDP by either of its spellings."""
    if draft.has("deepspeed") and draft.given["deepspeed"]:
        _deepspeed(draft, draft.given["deepspeed"])
    draft.same("deepspeed")
    parallel = draft.given.get("fsdp") or draft.given.get("fsdp_config") or draft.given.get("fsdp_version")
    if parallel and draft.given.get("fsdp") is not False:
        _fsdp(draft)
    draft.same("fsdp", "fsdp_config", "fsdp_version")


def _deepspeed(draft: Draft, config: Any) -> None:
    stage, offload = _stage(draft.file, config)
    if stage not in (1, 2, 3):
        what = "its stage cannot be told from the name, and the file is not here" if stage is None else f"stage {stage}"
        draft.leave("deepspeed", f"{what}: ZeRO-1, ZeRO-2 and ZeRO-3 are what could be carried")
        return
    option = f"deepspeed_zero{stage}{'_offload' if offload and stage > 1 else ''}"
    if draft.choose("strategy", option, "deepspeed", why=f"there is no strategy={option} here; {WHOLE}"):
        draft.note("the rest of the DeepSpeed file (buckets, precision, its own optimizer, NVMe) is not read")
        if offload and stage == 1:
            draft.set("strategy.offload", "cpu", "deepspeed")


def _stage(file: Path, config: Any) -> tuple[int | None, bool]:
    """ZeRO stage, and whether anything is offloaded: from the file if it is there, else from its usual names."""
    if isinstance(config, str):
        for path in (Path(config), file.parent / config):
            if path.is_file() and path.suffix == ".json":
                config = read_json_beside(path)
                if not isinstance(config, Mapping):
                    return None, False
                break
    if isinstance(config, Mapping):
        zero = config.get("zero_optimization")
        zero = zero if isinstance(zero, Mapping) else {}
        offloads = [zero.get(key) for key in ("offload_optimizer", "offload_param")]
        offloaded = any(isinstance(o, Mapping) and o.get("device", "none") != "none" for o in offloads)
        stage = zero.get("stage")
        return stage if isinstance(stage, int) else None, offloaded
    name = Path(str(config)).name.lower()
    found = re.search(r"(?:zero|z)[_-]?([0-3])", name)
    return (int(found.group(1)) if found else None), "offload" in name


def _fsdp(draft: Draft) -> None:
    keys = [key for key in ("fsdp", "fsdp_config", "fsdp_version") if draft.has(key)]
    config = draft.given.get("fsdp_config")
    config = dict(config) if isinstance(config, Mapping) else {}
    words = str(draft.given.get("fsdp", "")) + str(config.get("offload_params", config.get("fsdp_offload_params", "")))
    option = "fsdp_offload" if "offload" in words or "True" in words else "fsdp"
    if not draft.choose("strategy", option, *keys, why=f"there is no strategy={option} here; {WHOLE}"):
        return
    version = draft.given.get("fsdp_version", config.pop("fsdp_version", None))
    if str(version) != "2":
        draft.note(
            "fsdp is PyTorch's second FSDP here, whatever version the file asks for: the same sharding and numbers"
        )
    for key, value in config.items():
        if "offload_params" not in key:
            draft.leave(f"fsdp_config.{key}", "sharding follows the model's own layers here; this is not read", value)


# The model


def remote_code(draft: Draft) -> None:
    """Remote code runs at a pinned commit only."""
    if not draft.on("trust_remote_code"):
        draft.same("trust_remote_code")
        return
    revision = str(draft.result.values.get("model.revision", ""))
    if len(revision) == 40:
        draft.set("model.trust_remote_code", True, "trust_remote_code")
    else:
        draft.leave(
            "trust_remote_code", "code of a model runs here only at a commit you name: model.revision=<40 digits>"
        )


# Where rows lie


def is_local(path: str, file: Path) -> bool:
    """Whether a data path means this machine: by its look, or because it is there."""
    if "://" in path:
        return False
    looks = path.startswith((".", "/", "~")) or path.lower().endswith(DATA_FILES)
    return looks or Path(path).exists() or (file.parent / path).exists()


def rows_file(draft: Draft, path: Any, key: str) -> bool:
    """Carry one local file or folder of rows."""
    known = isinstance(path, str) and (Path(path).suffix == "" or path.lower().endswith(DATA_FILES))
    if not known or not is_local(path, draft.file):
        return False
    draft.choose("data", "file", key)
    draft.set("data.path", path, key)
    return True


def hub_rows(draft: Draft, name: str, key: str, value: Any = ...) -> None:
    """Carry a hub set where the option is there; else stand in a path that stops the run."""
    if "://" not in name and draft.choose("data", "hub"):
        draft.set("data.path", name, key)
        return
    no_rows(draft, key, f"{name} is on the hub, and data=file reads local files: download it and give data.path", value)


def no_rows(draft: Draft, key: str, why: str, value: Any = ...) -> None:
    """The data cannot be carried: say so, and let the run stop at a path that says it again."""
    draft.leave(key, why, value)
    draft.choose("data", "file")
    draft.set("data.path", PLACEHOLDER)
    draft.note(f"data.path={PLACEHOLDER} is a placeholder: without it the run would train on the bundled rows")


def wandb(draft: Draft, names: Mapping[str, str]) -> None:
    """Weights & Biases, where that logger is there; `names`: their key -> its option."""
    given = [key for key in ("use_wandb", *names) if draft.has(key)]
    if given and draft.given.get("use_wandb") is not False and draft.choose("logger", "wandb"):
        draft.same("use_wandb")
        for key, option in names.items():
            if draft.has(key):
                draft.set(f"logger.wandb.{option}", draft.given[key], key)


def report(draft: Draft, key: str = "report_to") -> None:
    """Loggers that are there; metrics.jsonl and TensorBoard always are."""
    for name in listed(draft.get(key)):
        if name in ("tensorboard", "none", "all", "False"):
            draft.same(key)
        elif not draft.choose("logger", name):
            draft.leave(key, f"there is no logger={name} here; metrics.jsonl and TensorBoard are written")
    draft.same(key)
