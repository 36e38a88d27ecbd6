"""What cannot go together across groups: one small function a rule, all of them asked before any weight loads.

A rule sees the checked config, and the tree with the options of every `_target_`. Its docstring's first line is what
`tuneforge doctor --rules` shows. What only a loaded file can tell (the device that is there, the model's architecture)
is asked again by `device_problems` and `architecture_problems` when it is known.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuneforge.errors import Problem, did_you_mean
from tuneforge.schema import Config
from tuneforge.schema.facts import method_facts
from tuneforge.schema.signature import UnreadableTargetError, read_signature
from tuneforge.targets import why_borrowed, why_untrusted

Rule = Callable[[Config, Mapping[str, Any]], Problem | None]
_RULES: list[Rule] = []

COPYING_STRATEGIES = ("auto", "single", "ddp")
QUANTISED_STRATEGIES = {
    4: (*COPYING_STRATEGIES, "fsdp", "deepspeed_zero2", "deepspeed_zero3"),
    8: COPYING_STRATEGIES,
}
"""Bits of a quantised base -> strategies under which it gives the losses of one process (tests/distributed). The
scales of 8-bit weights do not survive their being split."""

SPLITTING_STRATEGIES = frozenset({"tuneforge.strategies.fsdp.fsdp"})
"""Targets of strategies that give each device a part of every weight."""
SPLITTING_OPTIMIZERS = frozenset({"tuneforge.optim.adamw", "tuneforge.optim.muon"})
"""Optimizers that take such parts (tests/distributed tries the others)."""


def may_split(tree: Mapping[str, Any]) -> bool:
    """Whether the method and the optimizer work on parts of weights."""
    facts = method_facts(tree["method"])
    return facts["splits"] and facts["quantises"] != 8 and tree["optim"]["_target_"] in SPLITTING_OPTIMIZERS


ZERO = "tuneforge.strategies.deepspeed.deepspeed"
"""The `_target_` of DeepSpeed's strategies."""

ZERO_PRECISIONS = ("32-true", "bf16-mixed")
"""Under DeepSpeed weights stay fp32 between steps, and products are in bf16 at most."""

ELEMENTWISE = ("tuneforge.optim.adamw", "tuneforge.optim.lion")
"""Optimizers that treat each weight by itself, and so the same in a flat part of several matrices."""


def splits_weights(tree: Mapping[str, Any]) -> bool:
    """Whether the strategy gives each device a part of every weight."""
    strategy = tree["strategy"]
    return strategy["_target_"] in SPLITTING_STRATEGIES or (strategy["_target_"] == ZERO and strategy["stage"] == 3)


def parts_in_host(tree: Mapping[str, Any]) -> bool:
    """Whether those parts wait in host memory."""
    return splits_weights(tree) and tree["strategy"].get("offload", "none") != "none"


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Keys of a mixture's config.json that count its experts."""

CONV1D = frozenset({"gpt2", "imagegpt", "openai-gpt"})
"""transformers' `model_type`s whose linear layers are Conv1D, with transposed weights."""

RECURRENT = frozenset(
    {
        *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "minimax"),
        *("nemotron_h", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2"),
    }
)
"""transformers' `model_type`s with layers that carry a state along the row, across documents."""


def rule(check: Rule) -> Rule:
    """Register a rule; its docstring is what a listing of the rules shows."""
    assert check.__doc__, f"rule {check.__name__} has no docstring"
    _RULES.append(check)
    return check


def broken(config: Config, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """The problems of all rules that this config breaks. `tree` also holds the options of `_target_`s."""
    for check in _RULES:
        problem = check(config, tree)
        if problem is not None:
            yield problem


def listing() -> list[tuple[str, str]]:
    """Name and first line of the documentation of every rule."""
    return [(check.__name__, (check.__doc__ or "").splitlines()[0]) for check in _RULES]


# ---- weights and methods


@rule
def remote_code_is_pinned(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Code that comes with weights runs only at a full commit hash."""
    revision = config.model.revision or ""
    pinned = len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)
    if not config.model.trust_remote_code or pinned:
        return None
    return Problem(
        "remote-code-unpinned",
        f"model.trust_remote_code=true needs a pinned model.revision, got {config.model.revision!r}",
        "model.revision",
        fix="read the code at one commit, then set model.revision=<its 40-digit hash>: a branch can change under you",
    )


@rule
def adapters_need_pretrained_weights(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """An adapter on a frozen random base learns nothing worth keeping."""
    if config.model.init == "pretrained" or method_facts(tree["method"])["footprint"] == "full":
        return None
    return Problem(
        "adapter-on-random-base",
        f"method={config.method.name} trains an adapter, and model.init=scratch leaves a random base frozen under it",
        "method",
        fix="use method=full, or model.init=pretrained",
    )


@rule
def a_continued_adapter_has_its_method(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Adapters are continued, or kept beside a trained one; a method that trains none cannot use them."""
    key = "model.adapter" if config.model.adapter else "model.frozen_adapters"
    named = config.model.adapter or config.model.frozen_adapters
    if not named or not method_facts(tree["method"])["trains_base"]:
        return None
    return Problem(
        "adapter-without-method",
        f"names an adapter, and method={config.method.name} trains none",
        key,
        fix="use the method that made the adapter (adapter_config.json names it), or drop the key",
    )


@rule
def a_quantised_base_has_a_proven_strategy(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A quantised base runs only under strategies with a proven equal loss: some repack or split it in silence."""
    bits = method_facts(tree["method"])["quantises"]
    if not bits or config.strategy.name in QUANTISED_STRATEGIES[bits]:
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
def a_rewritten_base_is_unquantised(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """PiSSA and OLoRA move part of the base into the adapter, which a quantised base cannot give."""
    facts, init = method_facts(tree["method"]), tree["method"].get("init_lora_weights")
    if not facts["quantises"] or init not in facts["rewriting"]:
        return None
    return Problem(
        "rewritten-quantised-base",
        f"is {init}, which rewrites the base, and method={config.method.name} quantises it",
        "method.init_lora_weights",
        fix="use method=lora with it, or drop the key",
    )


@rule
def a_divergence_has_its_base(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`regularise.kl` compares with the model without its adapter, which must be the base that was loaded."""
    if not config.regularise.kl:
        return None
    facts, init = method_facts(tree["method"]), tree["method"].get("init_lora_weights")
    if facts["trains_base"]:
        why = f"method={config.method.name} changes the base itself"
    elif init in facts["rewriting"]:
        why = f"method={config.method.name} rewrites the base (init_lora_weights={init})"
    elif tree["method"].get("bias", "none") != "none":
        why = f"method.bias={tree['method']['bias']} trains the base's biases"
    else:
        return None
    return Problem(
        "no-base-to-compare",
        f"compares with the base, and {why}",
        "regularise.kl",
        fix="use method=lora, or regularise.ewc instead",
    )


@rule
def prompts_are_not_packed(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Prompt methods ignore positions: documents of a packed row would see each other."""
    if method_facts(tree["method"])["packs"] or not config.data.packing:
        return None
    return Problem(
        "prompt-packing",
        f"packs documents, and method={config.method.name} puts virtual tokens before the first and ignores positions",
        "data.packing",
        fix="set data.packing=false, or use another method",
    )


@rule
def prefixes_are_not_recomputed(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Prefix tuning travels in the cache, which recomputing a layer would fill twice."""
    asked = config.trainer.gradient_checkpointing in (True, "selective")
    if method_facts(tree["method"])["checkpoints"] or not asked:
        return None
    return Problem(
        "prefix-checkpointing",
        f"recomputes layers, and method={config.method.name} puts a prefix into their cache",
        "trainer.gradient_checkpointing",
        fix="set it to auto, or use method=prompt_tuning",
    )


@rule
def compiled_layers_have_no_adapter_dropout(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """torch.compile with recomputed layers and adapter dropout crashes inductor (peft issue 3020)."""
    dropout = tree["method"].get("lora_dropout", 0)
    checkpoints = config.trainer.gradient_checkpointing is not False and config.hardware.kind != "cpu"
    if not config.model.torch_compile or not dropout or not checkpoints:
        return None
    return Problem(
        "compile-dropout",
        f"compiles layers that may be recomputed, and method.lora_dropout={dropout} in them crashes torch's compiler",
        "model.torch_compile",
        fix="set task_recipe.dropout=0, or trainer.gradient_checkpointing=false",
    )


# ---- data and batches


@rule
def a_path_has_a_reader(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`data.path` and `data.split.eval_path` are for sources that read files: another would train on its own rows."""
    if "path" in read_signature(tree["data"]["_target_"]).fields:
        return None
    key = "data.path" if config.data.path is not None else "data.split.eval_path"
    if config.data.path is None and config.data.split.eval_path is None:
        return None
    return Problem(
        "path-without-reader",
        f"names a file, and the chosen source ({tree['data']['_target_']}) reads none: its own rows would be used",
        key,
        fix="add data=file, or drop the path",
    )


@rule
def the_format_is_there(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`data.format` is one of ours, or a function of a trusted package."""
    wanted = config.data.format
    known = ("auto", "alpaca", "chat", "prompt_completion", "text", "classification")
    if wanted in known:
        return None
    if "." not in wanted:
        message = f"must be {' or '.join(map(repr, known))}, or the dotted path of a function, got {wanted!r}"
        return Problem("unknown-format", message, "data.format", fix=did_you_mean(wanted, known))
    refusal = why_untrusted(wanted)
    try:
        refusal = refusal or why_borrowed(read_signature(wanted))
    except UnreadableTargetError as error:
        refusal = f"{wanted} cannot be found: {error}"
    return Problem("unknown-format", refusal, "data.format", fix=f"or one of {', '.join(known)}") if refusal else None


@rule
def labels_have_their_objective(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Rows with labels are for the classification objective, and it learns from no others."""
    labelled, wanted = config.data.format == "classification", config.data.format
    if labelled == classifies(config) or "." in wanted:
        return None
    if labelled:
        message = f"reads labels, and task_recipe.objective={config.task_recipe.objective} learns from none"
        fix = "use task_recipe=classification, or data.format=text for the text alone"
    else:
        message = f"is {wanted}, and task_recipe.objective=classification learns labels"
        fix = "set data.format=classification, with rows of text and label (or labels: a list)"
    return Problem("labels-without-objective", message, "data.format", fix=fix)


@rule
def texts_to_classify_stay_whole(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A text with a label is one row: packed, one label would stand for several, and chunked, for parts."""
    if not classifies(config) or not (config.data.packing or config.data.overlong == "chunk"):
        return None
    if config.data.packing:
        message, key, fix = "packs texts into rows", "data.packing", "set data.packing=false"
    else:
        message, key, fix = "cuts texts into pieces", "data.overlong", "use data.overlong=truncate or drop"
    return Problem("labelled-row", f"{message}, and a label is of one whole text", key, fix=fix)


@rule
def next_tokens_are_for_language_models(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Replayed rows, `regularise.*` and starts from data are about next tokens; a classification head predicts none."""
    if not classifies(config):
        return None
    if method_facts(tree["method"])["observes"]:
        message = (
            f"method={config.method.name} starts from rows of next tokens, and a classification head predicts none"
        )
        return Problem("no-next-tokens", message, "method", fix="use method=lora")
    given = {
        "data.replay.fraction": config.data.replay.fraction,
        "regularise.ewc": config.regularise.ewc,
        "regularise.kl": config.regularise.kl,
    }
    key = next((name for name, value in given.items() if value), None)
    if key is None:
        return None
    message = f"is {given[key]}, which is about next tokens, and a classification head predicts none"
    return Problem("no-next-tokens", message, key, fix="set it to 0")


@rule
def an_eval_split_is_there(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """The best checkpoint is picked by eval loss, so some rows must be held out."""
    split = config.data.split
    if split.eval_path is not None or split.eval_fraction > 0 or split.by == "source":
        return None
    return Problem(
        "no-eval-split",
        "is 0 and there is no data.split.eval_path: nothing would show overfitting or pick the best checkpoint",
        "data.split.eval_fraction",
        fix="set data.split.eval_fraction=0.1, or data.split.eval_path=FILE",
    )


@rule
def chunks_are_raw_text(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Cutting a long conversation into rows leaves answers without their questions."""
    if config.data.overlong != "chunk" or config.data.train_on == "all":
        return None
    return Problem(
        "chunked-answers",
        "chunk cuts a document into rows, and data.train_on=assistant would train on answers cut off from their "
        "questions",
        "data.overlong",
        fix="use data.overlong=truncate or drop; or data.train_on=all for raw text",
    )


@rule
def the_batch_divides(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Without packing a row is a document, so the effective batch must be whole forward passes on every device."""
    batch, devices = config.batch, config.trainer.devices
    if config.data.packing or batch.effective_tokens is not None or devices == "auto":
        return None
    per_pass = devices * (batch.per_device if isinstance(batch.per_device, int) else 1)
    if batch.effective % per_pass == 0:
        return None
    below, above = batch.effective // per_pass * per_pass, (batch.effective // per_pass + 1) * per_pass
    return Problem(
        "batch-does-not-divide",
        f"is {batch.effective}, which is no whole number of passes of {per_pass} rows (batch.per_device="
        f"{batch.per_device} x trainer.devices={devices})",
        "batch.effective",
        fix=f"set batch.effective={above}{f' or {below}' if below else ''}, or data.packing=true",
    )


# ---- guards

MEASURES = {
    "eval/loss": "min",
    "eval/perplexity": "min",
    "eval/accuracy": "max",
    "eval/macro_f1": "max",
    "eval/micro_f1": "max",
    "eval/subset_accuracy": "max",
}
"""What our objectives measure, and which way it is better."""


@rule
def a_watched_measure_is_measured(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """What picks the best checkpoint, or ends a run early, is something that the objective measures."""
    if not tree["task_recipe"]["_target_"].startswith("tuneforge."):
        return None  # an objective of a plugin measures what it likes
    known = [m for m in MEASURES if m == "eval/loss" or (m != "eval/perplexity") == classifies(config)]
    for name, monitor, _ in _watching(tree):
        if monitor not in known:
            message = f"is {monitor}, which task_recipe.objective={config.task_recipe.objective} does not measure"
            return Problem("unknown-measure", message, f"callbacks.{name}.monitor", fix=did_you_mean(monitor, known))
    return None


@rule
def a_watched_measure_is_the_right_way_up(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Of a loss the lowest is the best, of an accuracy the highest: the other way the worst would be kept."""
    for name, monitor, mode in _watching(tree):
        if MEASURES.get(monitor, mode) != mode:
            message = f"is {mode}, and {monitor} is better the other way"
            return Problem(
                "measure-upside-down", message, f"callbacks.{name}.mode", fix=f"set it to {MEASURES[monitor]}"
            )
    return None


@rule
def a_run_has_one_best(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Early stopping watches what the best checkpoint is picked by: what is restored is then what it waited for."""
    watched = {name: (monitor, mode) for name, monitor, mode in _watching(tree)}
    one, other = watched.get("early_stopping"), watched.get("checkpoints")
    if one is None or other is None or one == other:
        return None
    return Problem(
        "two-bests",
        f"is {one[0]} ({one[1]}), and callbacks.checkpoints keeps the best by {other[0]} ({other[1]})",
        "callbacks.early_stopping.monitor",
        fix="drop it, and set callbacks.checkpoints.monitor and mode: early stopping follows them",
    )


@rule
def what_ends_a_run_has_a_best_to_restore(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A guard that may end the run leaves the best checkpoint, so there must be checkpoints."""
    nodes = tree["callbacks"]
    if any(str(node["_target_"]).endswith(".Checkpoints") for node in nodes.values()):
        return None
    for name, node in nodes.items():
        if node.get("action") == "stop" or (name == "early_stopping" and node.get("patience")):
            key = "patience" if name == "early_stopping" else "action"
            message = "ends the run and restores the best checkpoint, and there are no checkpoints"
            fix = "use callbacks=default, or action=warn"
            return Problem("nothing-to-restore", message, f"callbacks.{name}.{key}", fix=fix)
    return None


def _watching(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, monitor and mode of each callback that watches a measure and is on."""
    for name, node in tree["callbacks"].items():
        if "monitor" in node and (name != "early_stopping" or node.get("patience")):
            yield name, node["monitor"], node.get("mode", "min")


# ---- devices


@rule
def one_process_is_one_device(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """strategy=single is one process on one device."""
    devices = config.trainer.devices
    if config.strategy.name != "single" or devices in ("auto", 1):
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


@rule
def metal_is_one_device(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """An Apple machine has one GPU, and torch has no collective operations for it."""
    metal = "mps" in (config.hardware.kind, config.trainer.accelerator)
    if not metal or config.trainer.devices in ("auto", 1):
        return None
    return Problem(
        "metal-is-one-device",
        f"is {config.trainer.devices}, and an Apple machine has one GPU",
        "trainer.devices",
        fix="drop it, or set trainer.accelerator=cpu",
    )


@rule
def required_hardware_is_used(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`hardware.require` insists on a GPU that `trainer.accelerator=cpu` would leave idle."""
    if not config.hardware.require or config.trainer.accelerator != "cpu" or config.hardware.kind in ("cpu", "auto"):
        return None
    return Problem(
        "required-hardware-unused",
        f"is cpu, and hardware.require=true insists on {config.hardware.name}",
        "trainer.accelerator",
        fix="drop one of the two",
    )


@rule
def the_profile_can_compute_it(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Precision and attention must exist on the device: bf16 from Ampere on, fp16 and FlashAttention on GPUs alone."""
    hardware = config.hardware
    kind = {"rocm": "cuda"}.get(hardware.kind, hardware.kind)
    if config.trainer.accelerator == "cpu":
        kind = "cpu"
    if kind == "auto":
        return None
    level = float(hardware.compute_capability) if hardware.compute_capability else None
    bf16 = "bf16" in hardware.precisions or not hardware.precisions
    return next(device_problems(config, f"hardware={hardware.name}", kind, bf16, level), None)


def device_problems(config: Config, name: str, kind: str, bf16: bool, level: float | None) -> Iterator[Problem]:
    """What this config asks for and the device `name` cannot do.

    Args:
        config: the config.
        name: the device, for the message.
        kind: cuda, mps or cpu.
        bf16: whether it computes in bfloat16; a CPU always can, slowly.
        level: NVIDIA's compute capability, None for other devices.
    """
    precision, attention = config.trainer.precision, config.model.attn_implementation
    if precision.startswith("bf16") and kind == "cuda" and not bf16:
        fix = "set trainer.precision=16-mixed, or auto"
        yield Problem("precision-not-there", f"is {precision}, and {name} has no bf16", "trainer.precision", fix=fix)
    if precision == "16-mixed" and kind == "cpu":
        # Lightning would take bf16-mixed instead, with a warning.
        fix = "set trainer.precision=bf16-mixed, or auto"
        message = f"is 16-mixed, and there is no fp16 training on a CPU ({name})"
        yield Problem("precision-not-there", message, "trainer.precision", fix=fix)
    if attention == "flash_attention_2" and (kind != "cuda" or (level is not None and level < 8.0)):
        message = f"is flash_attention_2, which needs an Ampere GPU or newer, and {name} is none"
        yield Problem("attention-not-there", message, "model.attn_implementation", fix="use sdpa")
    if attention == "flex_attention" and kind == "cpu":
        message = f"is flex_attention, which has no backward pass on a CPU ({name})"
        yield Problem("attention-not-there", message, "model.attn_implementation", fix="use sdpa")


def architecture_problems(config: Config, architecture: Mapping[str, Any], method: Mapping[str, Any]) -> list[Problem]:
    """What this config asks for and a model with this config.json cannot do."""
    found, facts = [], method_facts(method)
    kind = str(architecture.get("model_type"))
    if config.data.packing and kind in RECURRENT:
        message = f"packs documents into rows, and {kind} carries a state from one document into the next"
        found.append(Problem("packing-leaks", message, "data.packing", fix="set data.packing=false"))
    why = facts["not_on_conv1d"].get(method.get("init_lora_weights", ""), facts["not_on_conv1d"].get(""))
    if kind in CONV1D and why:
        message = f"method={config.method.name} cannot change {kind}, whose linear layers are Conv1D: {why}"
        found.append(Problem("method-not-for-model", message, "method", fix="use method=lora"))
    found += _expert_problems(config, architecture, method)
    quantised = architecture.get("quantization_config")
    if quantised and (facts["quantises"] or facts["footprint"] != "lora"):
        how = dict(quantised).get("quant_method", "some way")
        message = f"{config.model.path} is already quantised ({how}); {config.method.name} needs the original weights"
        fix = "give the unquantised model, or use method=lora on this one"
        found.append(Problem("already-quantised", message, "model.path", fix=fix))
    return found


def classifies(config: Config) -> bool:
    """Whether the run learns labels of texts."""
    return config.task_recipe.objective == "classification"


def _expert_problems(config: Config, architecture: Mapping[str, Any], method: Mapping[str, Any]) -> Iterator[Problem]:
    """What PEFT's adapters on fused experts, which are parameters and no modules, do not take; and routers' loss."""
    experts = next((f"{k}={architecture[k]}" for k in EXPERTS if architecture.get(k)), "")
    if not experts and config.regularise.router_aux_loss_coef not in ("auto", 0):
        message = f"balances the routers of a mixture, and {architecture.get('model_type')} has none"
        yield Problem("no-routers", message, "regularise.router_aux_loss_coef", fix="drop it")
    facts, wanted = method_facts(method), method.get("target_parameters", "auto")
    chosen = method.get("target_modules") == "all-linear" if wanted == "auto" else bool(wanted)
    if not experts or not facts["adapts_experts"] or not chosen:
        return
    init = method.get("init_lora_weights")
    reasons = (
        ("lora_dropout", "drops inputs, which cannot be told from the weight of an expert's adapter", "0"),
        ("use_dora", "norms the columns of a matrix, and experts are a stack of them", "false"),
        *([("init_lora_weights", f"{init} decomposes a matrix, and experts are a stack of them", "default")]
          if init in facts["rewriting"] else []),
    )  # fmt: skip
    for key, why, to in reasons:
        if method.get(key):
            message = (
                f"is {method[key]}, and adapters on the experts of this mixture ({experts}) cannot have it: it {why}"
            )
            fix = f"set method.{key}={to}, or method.target_parameters=[] to adapt the attention alone"
            yield Problem("not-on-experts", message, f"method.{key}", fix=fix)
