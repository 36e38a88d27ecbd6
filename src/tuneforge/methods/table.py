"""docs/methods.md: `python -m tuneforge.methods.table > docs/methods.md`.

Trainable weights are counted on the real model class with PEFT's own layers, on torch's meta device, with one and with
two layers: what a layer adds, 31 more times, is the 7B model's number.
"""

from importlib import resources
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tuneforge.compat import import_bitsandbytes
from tuneforge.compose import compose
from tuneforge.console import quiet_libraries
from tuneforge.method import Method
from tuneforge.plan.memory import NF4_BITS
from tuneforge.plugins.discovery import core_options
from tuneforge.schema.facts import method_facts
from tuneforge.targets import make

LAYERS = 32
SIZES: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
"""Llama 2 7B (arXiv 2307.09288)."""

HEAD = """\
# Methods

How each way of changing a model (`method=NAME`) differs, on the shape of a 7B Llama (32 layers, 4096 wide) with the
defaults of `task_recipe=instruct`. Made by `python -m tuneforge.methods.table > docs/methods.md`, checked by a test.

Memory is that of weights (frozen ones in bf16, or quantised; trained ones in fp32), gradients and the states of the
method's own optimizer. Activations come on top and depend on rows and recomputation: `python -m tuneforge plan` says
how much. GB are 10^9 bytes.

| method | trained | of all | weights | gradients | optimizer | what it is, and its source |
|---|--:|--:|--:|--:|--:|---|
"""


def table() -> str:
    """The page."""
    order = ["full", "freeze", "lora", "qlora"]
    names = [*order, *sorted(core_options()["method"].difference(order))]
    return HEAD + "".join(_row(name) for name in names)


def trained_weights(method: str) -> tuple[int, int]:
    """Trained and all weights of the 7B shape under a method."""
    (one, whole_one), (two, whole_two) = (_count(method, layers) for layers in (1, 2))
    more = LAYERS - 2
    # `freeze` trains its last two layers however many there are.
    trained = two if method == "freeze" else two + more * (two - one)
    return trained, whole_two + more * (whole_two - whole_one)


def _count(method: str, layers: int) -> tuple[int, int]:
    config = LlamaConfig(num_hidden_layers=layers, **SIZES)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        assert isinstance(base, PreTrainedModel)
        whole = sum(p.numel() for p in base.parameters())
        # Which weights the adapters start from needs real ones, and does not change their number.
        node = {**compose([f"method={method}"]).tree["method"]}
        if "init_lora_weights" in node:
            node["init_lora_weights"] = "default"
        if method == "freeze":
            node["last_layers"] = min(layers, node["last_layers"])
        built = make("method", node, Method)
        if built.num_observed:
            # What starts from train rows needs weights to look at them through; its sizes are LoRA's.
            built = make("method", {**node, "_target_": "tuneforge.methods.lora.Lora"}, Method)
        model = built.apply(base)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), whole


def _row(method: str) -> str:
    trained, whole = trained_weights(method)
    composed = compose([f"method={method}"])
    node = composed.tree["method"]
    layer = 4 * SIZES["hidden_size"] ** 2 + 3 * SIZES["hidden_size"] * SIZES["intermediate_size"]
    facts = method_facts(node)
    quantised = LAYERS * layer if facts["quantises"] else 0
    bits = NF4_BITS[True] if facts["quantises"] == 4 else 8
    own = trained if facts["trains_base"] else 0
    weights = (whole - own - quantised) * 2 + quantised * bits / 8 + trained * 4
    state = trained * composed.tree["optim"]["state_bytes"]
    numbers = (f"{_count_text(trained)} | {trained / whole:.3%}", *map(_gb, (weights, trained * 4, state)))
    return f"| `{method}` | {' | '.join(numbers)} | {description(method)} |\n"


def description(method: str) -> str:
    """What the option's file says of itself: its comment after the command."""
    text = resources.files("tuneforge.conf").joinpath("method", f"{method}.yaml").read_text(encoding="utf-8")
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if not line.startswith("# @")]
    said = []
    for line, raw in zip(lines[1:], [r for r in text.splitlines() if not r.startswith("# @")][1:], strict=True):
        if not raw.startswith("#"):
            break
        said.append(line)
    return " ".join(said)


def _count_text(number: float) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e5 else f"{number / 1e3:,.1f} k"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    quiet_libraries()
    import_bitsandbytes()
    print(table(), end="")  # noqa: T201
