"""What models, known by their config.json, can be made to do."""

from collections.abc import Iterator, Mapping
from typing import Any

from tuneforge.errors import Problem
from tuneforge.schema import Config
from tuneforge.schema.facts import method_facts

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
