"""The shape of a model and of what a method trains of it, from config.json alone: no weights and no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from tuneforge.bounded import matching
from tuneforge.errors import TuneforgeError, did_you_mean
from tuneforge.schema.facts import method_facts
from tuneforge.schema.types import LARGEST


class Linear(NamedTuple):
    """One weight matrix of a decoder layer."""

    name: str
    """As in the model, below the layer: `self_attn.q_proj`."""
    in_features: int
    out_features: int

    @property
    def size(self) -> int:
        """Its weights."""
        return self.in_features * self.out_features


class _Names(NamedTuple):
    """How a family names the matrices of a layer; one name where it fuses several."""

    qkv: tuple[str, ...]
    out: str
    mlp_in: tuple[str, ...]
    mlp_out: str


NAMES = {
    "llama": _Names(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
    ),
    "phi3": _Names(("self_attn.qkv_proj",), "self_attn.o_proj", ("mlp.gate_up_proj",), "mlp.down_proj"),
    "gpt2": _Names(("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    "bert": _Names(
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        ("intermediate.dense",),
        "output.dense",
    ),
    "gpt_neox": _Names(("attention.query_key_value",), "attention.dense", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
}

_GEMMA = {"tied_embeddings": True, "head_dim": 256}
_BIASED = {"gated_mlp": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "norm_bias": True}
_BERT = {**_BIASED, "names": "bert", "tied_embeddings": True, "learned_positions": True, "pooler": True}
_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"qkv_bias": True},
    "qwen3": {"head_dim": 128, "qk_norm": True},
    "qwen3_moe": {"qk_norm": True},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "norms_per_layer": 4},
    "gemma3_text": {**_GEMMA, "norms_per_layer": 4, "qk_norm": True},
    "phi3": {"names": "phi3"},
    "gpt2": {**_BIASED, "names": "gpt2", "tied_embeddings": True, "learned_positions": True, "activation_copies": 4},
    "gpt_neox": {**_BIASED, "names": "gpt_neox"},
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
}
"""model_type -> what its config.json may leave unsaid: fixed by the modelling code, or the config class's default.
Types not listed are read as llama (two norms, a gated MLP, no biases, an output head of its own); most are smaller."""

_KEYS = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "n_inner"),
    "max_positions": ("max_position_embeddings", "n_positions"),
    "num_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "tied_embeddings": ("tie_word_embeddings",),
    "qkv_bias": ("attention_bias",),
    "out_bias": ("attention_bias",),
    "mlp_bias": ("mlp_bias",),
    "token_types": ("type_vocab_size",),
    "softcap": ("final_logit_softcapping",),
    "num_experts": ("num_local_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_size": ("moe_intermediate_size",),
}
_OUTSIDE = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte")
"""Matrices that belong to no layer: the output head and the embedding, by the names of the families above."""
_REQUIRED = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")
_MIXTURES = ("mixtral", "qwen3_moe")
"""model_types whose experts are counted: fused, all of one size, no shared ones."""
_NOT_COVERED = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "mlp_only_layers": "a mixture with some dense layers",
    "kv_lora_rank": "a model with latent attention",
}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a transformer without cross-attention that decide its memory."""

    vocab_size: int
    """Rows of the embedding and of the output head."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width inside the MLP."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; fewer than `num_heads` under grouped-query attention."""
    head_dim: int
    """Width of one head; `num_heads * head_dim` need not equal `hidden_size` (gemma, qwen3)."""
    tied_embeddings: bool
    """The output head is the embedding matrix."""
    gated_mlp: bool
    """SwiGLU or GeGLU (three matrices) rather than two."""
    max_positions: int
    """Longest sequence; a table of that many rows where positions are learned."""
    names: Literal["llama", "phi3", "gpt2", "gpt_neox", "bert"] = "llama"
    """Whose names the matrices of a layer have."""
    qkv_bias: bool = False
    """Query, key and value projections have biases."""
    out_bias: bool = False
    """The attention's output projection has one."""
    mlp_bias: bool = False
    """The MLP's matrices have them."""
    norms_per_layer: int = 2
    """Norms over the residual stream in a layer; 4 where outputs are normalised too (gemma2, gemma3)."""
    norm_bias: bool = False
    """LayerNorm (weight and bias) rather than RMSNorm."""
    qk_norm: bool = False
    """Queries and keys are normalised per head."""
    learned_positions: bool = False
    """Positions are an embedding table."""
    softcap: float = 0.0
    """Logits become cap * tanh(logits / cap), which keeps one more copy of them; 0: they do not."""
    num_classes: int = 0
    """Classes of a classification head, which stands in for the output head; 0: a language model."""
    pooler: bool = False
    """A classifier has a matrix of the stream's width before its head, trained with it; both have biases (BERT)."""
    token_types: int = 0
    """Rows of a table that is added to the embeddings (BERT: first and second text)."""
    num_experts: int = 0
    """Experts in the place of each layer's MLP; 0: one MLP."""
    experts_per_token: int = 0
    """How many of them a token goes through."""
    expert_size: int = 0
    """Width inside an expert."""
    activation_copies: int = 1
    """Tensors of the MLP's width that its activation keeps; 4 for GPT-2's, which is written out in elementary steps."""

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Read a Hugging Face config.json, or `config.to_dict()`.

        Raises:
            TuneforgeError: a size is missing, or the formulas do not cover the architecture.
        """
        kind = str(config.get("model_type", "the model"))
        counted = ("num_local_experts", "num_experts") if kind in _MIXTURES else ()
        if config.get("decoder_sparse_step") not in (None, 0, 1):
            config = {**config, "mlp_only_layers": f"decoder_sparse_step {config['decoder_sparse_step']}"}
        for key in (k for k in _NOT_COVERED if config.get(k) and k not in counted):
            raise TuneforgeError(
                "no-memory-estimate",
                f"{kind} is {_NOT_COVERED[key]} ({key}={config[key]}): its memory is not estimated",
                path="model.path",
                fix="set batch.per_device to a number",
            )
        said = {n: config[k] for n, keys in _KEYS.items() for k in keys if config.get(k) is not None}
        if kind == "gpt2" and isinstance(said.get("hidden_size"), int):
            said.setdefault("intermediate_size", 4 * said["hidden_size"])
        for name in (*_REQUIRED, *said):
            value, keys = said.get(name, 0), " or ".join(_KEYS[name])
            if isinstance(value, int | float) and 0 <= value <= LARGEST and (value or name not in _REQUIRED):
                continue
            what = f"{str(value)[:40]!r} for {keys}" if name in said else f"no {keys}"
            raise TuneforgeError(
                "no-memory-estimate",
                f"the config of {kind} has {what}, so its memory cannot be estimated",
                path="model.path",
                fix="give a text-only decoder model, or set batch.per_device to a number",
            )
        heads = said["num_heads"]
        if "num_experts" in said:
            said.setdefault("expert_size", said["intermediate_size"])
        unsaid = {"num_kv_heads": heads, "head_dim": said["hidden_size"] // heads, "tied_embeddings": False}
        return cls(**{**unsaid, "gated_mlp": True, **_FAMILIES.get(kind, {}), **said})

    def with_classes(self, number: int) -> "ModelShape":
        """The model with a classification head of so many classes; 0 leaves it a language model."""
        return replace(self, num_classes=number)

    @property
    def head_width(self) -> int:
        """Scores that the head gives for a token."""
        return self.num_classes or self.vocab_size

    @property
    def classifier_parameters(self) -> int:
        """Weights of a classification head, which every method trains."""
        if not self.num_classes:
            return 0
        pooler = self.hidden_size**2 + self.hidden_size + self.num_classes
        return self.num_classes * self.hidden_size + self.pooler * pooler

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys, and of the values, of all heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def inner_size(self) -> int:
        """Width inside the MLP that a token sees: of all experts it goes through, in a mixture."""
        return self.experts_per_token * self.expert_size if self.num_experts else self.intermediate_size

    def expert_layers(self) -> list[Linear]:
        """The matrices of one expert, of which a layer has `num_experts` in one weight each."""
        if not self.num_experts:
            return []
        return [
            Linear("mlp.experts.gate_up_proj", self.hidden_size, 2 * self.expert_size),
            Linear("mlp.experts.down_proj", self.expert_size, self.hidden_size),
        ]

    def linear_layers(self) -> list[Linear]:
        """The weight matrices of one layer, in the order of the forward pass; experts are no such matrices."""
        names, hidden, inner = NAMES[self.names], self.hidden_size, self.intermediate_size
        qkv = (self.query_size, self.kv_size, self.kv_size)
        mlp = (inner, inner) if self.gated_mlp else (inner,)
        attention = [
            *(Linear(n, hidden, width) for n, width in zip(names.qkv, _merged(qkv, names.qkv), strict=True)),
            Linear(names.out, self.query_size, hidden),
        ]
        if self.num_experts:
            return attention
        return [
            *attention,
            *(Linear(n, hidden, width) for n, width in zip(names.mlp_in, _merged(mlp, names.mlp_in), strict=True)),
            Linear(names.mlp_out, inner, hidden),
        ]

    def linear_parameters(self) -> int:
        """Weights in the matrices of all layers: what 4-bit loading quantises."""
        return self.num_layers * sum(linear.size for linear in self.linear_layers())

    def expert_parameters(self) -> int:
        """Weights in the experts of all layers: what 4-bit loading leaves as it is."""
        return self.num_layers * self.num_experts * sum(linear.size for linear in self.expert_layers())

    def active_parameters(self) -> int:
        """Weights that a token goes through: those of the experts it is not sent to are left out."""
        idle = self.num_experts - self.experts_per_token
        return self.num_parameters() - (self.expert_parameters() // self.num_experts * idle if self.num_experts else 0)

    def num_parameters(self) -> int:
        """All weights; a tied head is counted once."""
        norm = self.hidden_size * (1 + self.norm_bias)
        biases = self.qkv_bias * (self.query_size + 2 * self.kv_size) + self.out_bias * self.hidden_size
        biases += self.mlp_bias * ((1 + self.gated_mlp) * self.intermediate_size + self.hidden_size)
        layer = biases + self.norms_per_layer * norm + self.qk_norm * 2 * self.head_dim
        layer += self.num_experts * self.hidden_size  # the router
        heads = 0 if self.num_classes or self.tied_embeddings else 1
        tables = (1 + heads) * self.vocab_size + self.learned_positions * self.max_positions + self.token_types
        inside = self.linear_parameters() + self.expert_parameters() + self.num_layers * layer + norm
        return inside + tables * self.hidden_size + self.classifier_parameters


def _merged(widths: tuple[int, ...], names: tuple[str, ...]) -> tuple[int, ...]:
    return widths if len(widths) == len(names) else (sum(widths),)


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """Which weights a method trains, and how it stores the others."""

    kind: Literal["full", "lora", "layers", "bottleneck", "vectors"]
    """Every weight; adapters of rank `r` beside frozen ones; the last `layers`; networks behind sublayers, narrower by
    `reduction`; or a few vectors a layer."""
    r: int = 16
    """Rank of the adapters."""
    targets: str | Sequence[str] = "all-linear"
    """Matrices with an adapter, as PEFT reads them: all-linear (every one but the head), ends of their names, or a
    pattern for their full names."""
    dropout: float = 0.0
    """Dropout on the adapters' inputs; above 0, each keeps a mask and an input of its own."""
    quantised: bool = False
    """Frozen matrices of the layers are stored in NF4 and unpacked for each product."""
    double_quant: bool = True
    """The quantisation's scales are quantised too."""
    experts: bool = False
    """The fused experts of a mixture have adapters too, of rank `r` each."""
    layers: int = 0
    """How many of the last layers are trained, where `kind` is layers."""
    reduction: int = 16
    """The model's width over that of a bottleneck adapter."""
    bits: int = 4
    """Bits of a quantised weight: 4 (NF4) or 8 (LLM.int8)."""

    @classmethod
    def of_method(cls, method: Mapping[str, Any]) -> "Trainable":
        """Read a config's `method` node, and what the method's class says of itself."""
        facts = method_facts(method)
        kind, bits = facts["footprint"], facts["quantises"]
        if kind == "layers" and method.get("pattern") is None:
            return cls(kind="layers", r=1, layers=method["last_layers"])
        if kind == "bottleneck":
            ends = "houlsby" if method.get("placement") == "houlsby" else "pfeiffer"
            reduction, dropout = method["reduction_factor"], method.get("dropout", 0.0)
            return cls(kind="bottleneck", targets=ends, reduction=reduction, dropout=dropout)
        if kind == "vectors":
            # Their trained numbers are few; what they keep for the backward pass is as much as rank 1 keeps.
            return cls(kind="vectors", r=1)
        if kind != "lora":
            return cls(kind="full")
        wanted = method.get("target_parameters", "auto")
        everything = method.get("target_modules", "all-linear") == "all-linear"
        return cls(
            kind="lora",
            experts=facts["adapts_experts"] and (everything if wanted == "auto" else bool(wanted)),
            # AdaLoRA starts higher than it ends.
            r=method.get("init_r", method["r"]),
            targets=method.get("target_modules", "all-linear"),
            dropout=method.get("lora_dropout", 0.0),
            quantised=bits > 0,
            double_quant=method.get("double_quant", True),
            bits=bits or 4,
        )

    def linears(self, shape: ModelShape) -> list[Linear]:
        """The matrices of a layer that are trained, or have an adapter.

        Raises:
            TuneforgeError: a target is no matrix of this model.
        """
        layer = shape.linear_layers()
        if self.kind == "bottleneck":
            ends = {NAMES[shape.names].mlp_out, *([NAMES[shape.names].out] if self.targets == "houlsby" else [])}
            return [linear for linear in layer if linear.name in ends]
        if self.kind != "lora" or self.targets == "all-linear":
            return layer
        if isinstance(self.targets, str):
            # A pattern may pick layers too. Those it picks at all are counted everywhere, which errs upwards.
            names = [f"model.layers.0.{linear.name}" for linear in layer]
            matched = matching(self.targets, names, "method.target_modules")
            found = [linear for linear, name in zip(layer, names, strict=True) if name in matched]
            return found or layer
        known = [linear.name.rpartition(".")[2] for linear in layer] + list(_OUTSIDE)
        for target in (t for t in self.targets if t not in _OUTSIDE and not any(_ends(i.name, t) for i in layer)):
            raise TuneforgeError(
                "unknown-module",
                f"{target!r} is no linear module of this model",
                path="method.target_modules",
                fix=did_you_mean(target, known),
            )
        return [linear for linear in layer if any(_ends(linear.name, t) for t in self.targets)]

    def width(self, shape: ModelShape) -> int:
        """Numbers a token inside an adapter."""
        return max(1, shape.hidden_size // self.reduction) if self.kind == "bottleneck" else self.r

    @property
    def outside(self) -> int:
        """How many adapters are on the embedding or the output head."""
        return 0 if isinstance(self.targets, str) else len(set(_OUTSIDE).intersection(self.targets))

    def num_parameters(self, shape: ModelShape) -> int:
        """Weights that have a gradient: r * (in + out) for each adapter."""
        if self.kind == "full":
            return shape.num_parameters()
        head = shape.classifier_parameters
        if self.kind == "layers":
            matrices = shape.linear_parameters() + shape.expert_parameters()
            return head + min(self.layers, shape.num_layers) * matrices // shape.num_layers
        if self.kind == "bottleneck":
            size, hidden = self.width(shape), shape.hidden_size
            stacks = shape.num_layers * (2 if self.targets == "houlsby" else 1)
            return head + stacks * (2 * hidden * size + hidden + size)
        if self.kind == "vectors":
            return head + shape.num_layers * sum(i.out_features for i in self.linears(shape))
        layer = sum(i.in_features + i.out_features for i in self.linears(shape))
        if self.experts:
            layer += shape.num_experts * sum(i.in_features + i.out_features for i in shape.expert_layers())
        return head + self.r * (shape.num_layers * layer + self.outside * (shape.hidden_size + shape.vocab_size))


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
