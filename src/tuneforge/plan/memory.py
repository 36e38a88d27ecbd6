"""How much device memory a fine-tune needs, in closed form from a model's config.json: no weights, no torch, no GPU.

The formulas count what PyTorch keeps alive at the worst moment of a step. They were fitted to traces of real models
under FakeTensorMode, where every storage is counted, and hold for one device without sharding.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Required, TypedDict, Unpack

from tuneforge.errors import TuneforgeError, did_you_mean

GIB = 2**30
NF4_BITS = {True: 4.127, False: 4.5}
"""Bits a parameter in NF4 with and without double quantisation: 4, and a scale for each block of 64 in 32 bits, or in 8
with another scale in 32 bits for 256 of those (QLoRA, arXiv 2305.14314, section 3)."""
CONTEXT_BYTES = {"cuda": 0.75 * GIB, "rocm": 0.75 * GIB, "mps": 0.0, "cpu": 0.0}
"""Driver context, loaded kernels and cuBLAS workspace: about 0.5 GiB bare, up to 1.4 with NCCL and Triton. The process
of a CPU run itself (0.5 GiB of imported libraries) is not counted."""
FRAGMENTATION = {"cuda": 0.04, "rocm": 0.04, "mps": 0.04, "cpu": 0.0}
"""Share of what comes and goes that a caching allocator cannot reuse: 3 to 5 % with expandable segments."""
SHORTEST = 256
"""Tokens below which a shorter row is no advice worth giving."""


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


_NAMES = {
    "llama": _Names(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
    ),
    "phi3": _Names(("self_attn.qkv_proj",), "self_attn.o_proj", ("mlp.gate_up_proj",), "mlp.down_proj"),
    "gpt2": _Names(("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    "gpt_neox": _Names(("attention.query_key_value",), "attention.dense", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
}

_GEMMA = {"tied_embeddings": True, "head_dim": 256}
_BIASED = {"gated_mlp": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "norm_bias": True}
_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"qkv_bias": True},
    "qwen3": {"head_dim": 128, "qk_norm": True},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "norms_per_layer": 4},
    "gemma3_text": {**_GEMMA, "norms_per_layer": 4, "qk_norm": True},
    "phi3": {"names": "phi3"},
    "gpt2": {**_BIASED, "names": "gpt2", "tied_embeddings": True, "learned_positions": True, "activation_copies": 4},
    "gpt_neox": {**_BIASED, "names": "gpt_neox"},
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
    "softcap": ("final_logit_softcapping",),
}
_OUTSIDE = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte")
"""Matrices that belong to no layer: the output head and the embedding, by the names of the families above."""
_REQUIRED = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")
_NOT_COVERED = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "kv_lora_rank": "a model with latent attention",
}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder-only transformer that decide its memory."""

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
    names: Literal["llama", "phi3", "gpt2", "gpt_neox"] = "llama"
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
    activation_copies: int = 1
    """Tensors of the MLP's width that its activation keeps; 4 for GPT-2's, which is written out in elementary steps."""

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Read a Hugging Face config.json, or `config.to_dict()`.

        Raises:
            TuneforgeError: a size is missing, or the formulas do not cover the architecture.
        """
        kind = config.get("model_type", "the model")
        for key in (k for k in _NOT_COVERED if config.get(k)):
            raise TuneforgeError(
                f"{kind} is {_NOT_COVERED[key]} ({key}={config[key]}): its memory is not estimated",
                path="model.path",
                fix="set batch.per_device to a number",
            )
        said = {n: config[k] for n, keys in _KEYS.items() for k in keys if config.get(k) is not None}
        if kind == "gpt2" and "hidden_size" in said:
            said.setdefault("intermediate_size", 4 * said["hidden_size"])
        for name in (n for n in _REQUIRED if n not in said):
            raise TuneforgeError(
                f"the config of {kind} has no {' or '.join(_KEYS[name])}, so its memory cannot be estimated",
                path="model.path",
                fix="give a text-only decoder model, or set batch.per_device to a number",
            )
        heads = said["num_heads"]
        unsaid = {"num_kv_heads": heads, "head_dim": said["hidden_size"] // heads, "tied_embeddings": False}
        return cls(**{**unsaid, "gated_mlp": True, **_FAMILIES.get(kind, {}), **said})

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys, and of the values, of all heads."""
        return self.num_kv_heads * self.head_dim

    def linear_layers(self) -> list[Linear]:
        """The weight matrices of one layer, in the order of the forward pass."""
        names, hidden, inner = _NAMES[self.names], self.hidden_size, self.intermediate_size
        qkv = (self.query_size, self.kv_size, self.kv_size)
        mlp = (inner, inner) if self.gated_mlp else (inner,)
        return [
            *(Linear(n, hidden, width) for n, width in zip(names.qkv, _merged(qkv, names.qkv), strict=True)),
            Linear(names.out, self.query_size, hidden),
            *(Linear(n, hidden, width) for n, width in zip(names.mlp_in, _merged(mlp, names.mlp_in), strict=True)),
            Linear(names.mlp_out, inner, hidden),
        ]

    def linear_parameters(self) -> int:
        """Weights in the matrices of all layers: what 4-bit loading quantises."""
        return self.num_layers * sum(linear.size for linear in self.linear_layers())

    def num_parameters(self) -> int:
        """All weights; a tied head is counted once."""
        norm = self.hidden_size * (1 + self.norm_bias)
        biases = self.qkv_bias * (self.query_size + 2 * self.kv_size) + self.out_bias * self.hidden_size
        biases += self.mlp_bias * ((1 + self.gated_mlp) * self.intermediate_size + self.hidden_size)
        layer = biases + self.norms_per_layer * norm + self.qk_norm * 2 * self.head_dim
        tables = (2 - self.tied_embeddings) * self.vocab_size + self.learned_positions * self.max_positions
        return self.linear_parameters() + self.num_layers * layer + norm + tables * self.hidden_size


def _merged(widths: tuple[int, ...], names: tuple[str, ...]) -> tuple[int, ...]:
    return widths if len(widths) == len(names) else (sum(widths),)


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """Which weights a method trains, and how it stores the others."""

    kind: Literal["full", "lora"]
    """Every weight, or adapters of rank `r` beside frozen ones."""
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

    @classmethod
    def of_method(cls, method: Mapping[str, Any]) -> "Trainable":
        """Read a config's `method` node. One without a rank counts as training everything, which errs upwards."""
        if "r" not in method:
            return cls(kind="full")
        return cls(
            kind="lora",
            r=method["r"],
            targets=method.get("target_modules", "all-linear"),
            dropout=method.get("lora_dropout", 0.0),
            quantised="double_quant" in method,
            double_quant=method.get("double_quant", True),
        )

    def linears(self, shape: ModelShape) -> list[Linear]:
        """The matrices of a layer that are trained, or have an adapter.

        Raises:
            TuneforgeError: a target is no matrix of this model.
        """
        layer = shape.linear_layers()
        if self.kind == "full" or self.targets == "all-linear":
            return layer
        if isinstance(self.targets, str):
            # A pattern may pick layers too. Those it picks at all are counted everywhere, which errs upwards.
            found = [linear for linear in layer if re.fullmatch(self.targets, f"model.layers.0.{linear.name}")]
            return found or layer
        known = [linear.name.rpartition(".")[2] for linear in layer] + list(_OUTSIDE)
        for target in (t for t in self.targets if t not in _OUTSIDE and not any(_ends(i.name, t) for i in layer)):
            raise TuneforgeError(
                f"{target!r} is no linear module of this model",
                path="method.target_modules",
                fix=did_you_mean(target, known),
            )
        return [linear for linear in layer if any(_ends(linear.name, t) for t in self.targets)]

    @property
    def outside(self) -> int:
        """How many adapters are on the embedding or the output head."""
        return 0 if isinstance(self.targets, str) else len(set(_OUTSIDE).intersection(self.targets))

    def num_parameters(self, shape: ModelShape) -> int:
        """Weights that have a gradient: r * (in + out) for each adapter."""
        if self.kind == "full":
            return shape.num_parameters()
        layer = sum(i.in_features + i.out_features for i in self.linears(shape))
        return self.r * (shape.num_layers * layer + self.outside * (shape.hidden_size + shape.vocab_size))


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on the device at the worst moment of an optimizer step, by what they are for."""

    weights: float
    """The model's own weights."""
    adapter: float
    """Adapters; 0 where the weights themselves are trained."""
    gradients: float
    """One for each trained weight: they are there from the second micro-batch of a step on."""
    optimizer: float
    """The optimizer's states."""
    activations: float
    """What the forward pass keeps for the backward pass."""
    logits: float
    """Scores over the vocabulary, their copies in the loss and their gradient."""
    workspace: float
    """Unpacked 4-bit weights, casts, gradients in passing, the driver's context and the allocator's gaps."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(float(getattr(self, f.name)) for f in fields(self))

    def __str__(self) -> str:
        parts = ((f.name, float(getattr(self, f.name)) / GIB) for f in fields(self))
        return ", ".join(f"{name} {size:.2f}" for name, size in parts if size >= 0.005)


class Setting(TypedDict, total=False):
    """What the memory of a run depends on besides the model and the rows of a forward pass."""

    method: Required[Trainable]
    """What is trained."""
    max_length: Required[int]
    """Tokens in a row."""
    weight_bits: float
    """Bits of a frozen weight; 16. Below 16 it is that of a quantised layer's matrices, and the rest is in 16."""
    trainable_bytes: int
    """Bytes of a trained weight and of its gradient; 4. Other than `compute_bytes`, autocast makes copies."""
    optimizer_bytes_per_param: float
    """Bytes of optimizer states for a trained weight; 8 (AdamW: two fp32), about 2 for 8-bit AdamW."""
    compute_bytes: int
    """Bytes of an activation; 2."""
    gradient_checkpointing: bool
    """Keep only each layer's input, and recompute the layer in the backward pass; true."""
    logits_rows_fraction: float
    """Share of the tokens whose logits are computed; 1. The supervised ones, where the others skip the head."""
    attention: str
    """transformers' name of the kernel; sdpa. `eager` keeps scores, `sdpa` a mask and expanded keys and values."""
    device_kind: str
    """cuda, rocm, mps or cpu; cuda."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A `Setting` with its defaults, and what follows from it for a shape."""

    method: Trainable
    max_length: int
    weight_bits: float = 16
    trainable_bytes: int = 4
    optimizer_bytes_per_param: float = 8
    compute_bytes: int = 2
    gradient_checkpointing: bool = True
    logits_rows_fraction: float = 1.0
    attention: str = "sdpa"
    device_kind: str = "cuda"

    @property
    def full(self) -> bool:
        return self.method.kind == "full"

    @property
    def casts(self) -> bool:
        """Autocast converts trained weights, and PEFT the inputs of adapters."""
        return self.trainable_bytes != self.compute_bytes

    @property
    def own_inputs(self) -> bool:
        """Whether matrices that read the same tensor each keep a copy of it."""
        return self.casts or self.method.dropout > 0


class _Moment(NamedTuple):
    """What is alive at one point of a step beside weights, gradients and optimizer states, in bytes."""

    activations: float
    logits: float
    workspace: float


class _Terms(NamedTuple):
    """What the moments are put together from, in bytes; `scores` in numbers."""

    kept: float
    """Saved by the forward pass."""
    backward: float
    """That, and what a layer's backward pass adds."""
    scores: float
    """Logits computed."""
    loss: float
    """Logits and their copies in the loss."""


def estimate(shape: ModelShape, *, per_device: int, **setting: Unpack[Setting]) -> Footprint:
    """The memory of one optimizer step with micro-batches of `per_device` rows of `max_length` tokens.

    Raises:
        TuneforgeError: an adapter's target is no matrix of this model.
    """
    run = _Run(**setting)
    method, trained = run.method, run.method.num_parameters(shape)
    moment = max(_moments(shape, run, _terms(shape, run, per_device * run.max_length)), key=sum)
    gradients = trained * run.trainable_bytes
    passing = gradients + sum(moment)
    overhead = CONTEXT_BYTES[run.device_kind] + FRAGMENTATION[run.device_kind] * passing
    return Footprint(
        weights=_weight_bytes(shape, run),
        adapter=0 if method.kind == "full" else trained * run.trainable_bytes,
        gradients=gradients,
        optimizer=trained * run.optimizer_bytes_per_param,
        activations=moment.activations,
        logits=moment.logits,
        workspace=moment.workspace + overhead,
    )


def _weight_bytes(shape: ModelShape, run: _Run) -> float:
    """Trained weights in their own type; frozen ones in `weight_bits`, of which NF4 takes the layers' matrices only."""
    if run.full:
        return shape.num_parameters() * run.trainable_bytes
    bits = run.weight_bits
    if run.method.quantised and bits >= 16:
        bits = NF4_BITS[run.method.double_quant]
    linears = shape.linear_parameters()
    return (linears * bits + (shape.num_parameters() - linears) * max(run.weight_bits, 16)) / 8


def _terms(shape: ModelShape, run: _Run, tokens: int) -> _Terms:
    compute, hidden = run.compute_bytes, shape.hidden_size
    layer = tokens * _saved_per_token(shape, run)
    stream = run.trainable_bytes if run.full else compute
    kept = shape.num_layers * (tokens * hidden * stream if run.gradient_checkpointing else layer)
    # Behind the last layer: the final norm's fp32 copy and the head's input. Before the first: one mask for all.
    kept += tokens * (hidden * (4 + compute) + (run.max_length if run.attention == "sdpa" else 0))
    # The layer just recomputed, and gradients of the MLP's width; PEFT's casts and dropout put more of those there.
    backward = kept + (layer if run.gradient_checkpointing else 0)
    widths = 3.5 + 1.5 * run.casts + 1.5 * (run.method.dropout > 0)
    backward += tokens * shape.intermediate_size * compute * widths
    scores = run.logits_rows_fraction * tokens * shape.vocab_size
    # Naive cross-entropy: the logits, their log-softmax in fp32, its gradient and that of its input, also in fp32.
    # The caller who lets go of the logits before the backward pass needs `compute` less.
    copies = bool(shape.softcap) + run.method.outside
    return _Terms(kept, backward, scores, scores * (compute * (1 + copies) + 12))


def _moments(shape: ModelShape, run: _Run, terms: _Terms) -> list[_Moment]:
    """The points of a step at which memory can peak."""
    compute, held_logits = run.compute_bytes, terms.scores * run.compute_bytes
    widest = max(linear.size for linear in shape.linear_layers())
    if run.full:
        return _moments_of_full(shape, run, terms, widest)
    workspace = run.method.num_parameters(shape) * compute if run.casts else 0
    if run.method.quantised:
        # bitsandbytes unpacks one matrix at a time, and casts it where it was quantised from another type.
        workspace += 2 * compute * widest
    return [_Moment(terms.kept, terms.loss, workspace), _Moment(terms.backward, held_logits, workspace)]


def _moments_of_full(shape: ModelShape, run: _Run, terms: _Terms, widest: int) -> list[_Moment]:
    """Training every weight adds autocast's copies of them, and gradients on their way into the accumulated ones."""
    compute, stored, head = run.compute_bytes, run.trainable_bytes, shape.vocab_size * shape.hidden_size
    # Autocast caches its copies until the forward pass ends; without checkpointing the backward pass needs them all.
    copies = (shape.linear_parameters() + head) * compute if run.casts else 0
    held = 0 if run.gradient_checkpointing else copies
    # The two gradients of a tied embedding are summed before they are accumulated: the head's waits for the other.
    waiting = head * stored if shape.tied_embeddings else 0
    scores = terms.scores * compute
    return [
        _Moment(terms.kept, terms.scores * (compute + 8), copies),
        _Moment(terms.kept, terms.loss, max(held, head * compute if run.casts else 0)),
        _Moment(terms.kept, 2 * scores, held + head * (compute + stored)),
        _Moment(terms.backward, scores, held + waiting + widest * (compute + stored)),
        _Moment(0, scores, 2 * waiting + head * stored),
    ]


def _saved_per_token(shape: ModelShape, run: _Run) -> float:
    """Bytes one layer keeps for its backward pass, a token.

    Korthikanti et al. (arXiv 2205.05198, section 4.1) count 34 bytes a unit of width for a trained GPT layer. Redone
    here for gated MLPs, grouped queries, norms in fp32, frozen weights (whose inputs are not kept) and adapters.
    """
    compute, names, inner = run.compute_bytes, _NAMES[shape.names], shape.intermediate_size
    linears = run.method.linears(shape)
    trained = {linear.name for linear in linears}
    normed = shape.norms_per_layer * shape.hidden_size + shape.qk_norm * (shape.query_size + shape.kv_size)
    saved: float = normed * (4 + (run.trainable_bytes if run.full else 0))
    for group in (names.qkv, names.mlp_in):
        readers = len(trained.intersection(group))
        saved += compute * shape.hidden_size * (readers if run.own_inputs else min(readers, 1))
    saved += compute * inner * (shape.activation_copies + 2 * shape.gated_mlp + (names.mlp_out in trained))
    saved += compute * _attention_width(shape, run, names.out in trained)
    if not run.full:
        saved += compute * run.method.r * len(trained)
        if run.method.dropout:
            # A CPU's masks are of the input's type, a GPU's are boolean.
            mask = run.trainable_bytes if run.device_kind == "cpu" else 1
            saved += mask * sum(linear.in_features for linear in linears)
    if run.attention == "eager":
        # Scores in the compute type, their softmax in fp32 and its cast back.
        return saved + shape.num_heads * run.max_length * (4 + 2 * compute)
    return saved + (compute * run.max_length if run.attention == "sdpa" else 0)


def _attention_width(shape: ModelShape, run: _Run, out_trained: bool) -> int:
    """Numbers a token that attention keeps: its inputs, its output and, where that is another tensor, what reads it."""
    query, kv, fused = shape.query_size, shape.kv_size, len(_NAMES[shape.names].qkv) == 1
    expanded = query if run.attention in ("sdpa", "eager") else kv
    width = query + (query + 2 * kv if fused else 0)
    if not shape.learned_positions:
        width += query + expanded  # queries and keys after rotation
    if not fused or expanded != kv:
        width += expanded
    # Partial rotation (phi3, gpt_neox) leaves an output in an order that has to be copied.
    copied = (fused and not shape.learned_positions) or (run.own_inputs and not run.full)
    return width + (query if out_trained and copied else 0)


def largest_per_device(
    shape: ModelShape, *, available_bytes: float, at_most: int, headroom: float = 0.92, **same: Unpack[Setting]
) -> int:
    """The most rows a micro-batch can have, between 1 and `at_most`, in `headroom` of the device's memory.

    Raises:
        TuneforgeError: not even one row fits; names the parts and the smallest change that would help.
    """
    budget = available_bytes * headroom
    rows = bisect_right(range(1, at_most + 1), budget, key=lambda n: estimate(shape, per_device=n, **same).total)
    if rows:
        return rows
    needed = estimate(shape, per_device=1, **same)
    raise TuneforgeError(
        f"one row of {same['max_length']} tokens needs about {needed.total / GIB:.1f} GiB ({needed}) and "
        f"{budget / GIB:.1f} GiB are available ({available_bytes / GIB:.1f} less a margin of {1 - headroom:.0%})",
        path="batch.per_device",
        fix=_what_would_fit(shape, budget, same),
    )


def _what_would_fit(shape: ModelShape, budget: float, setting: Setting) -> str:
    """The first change that makes one row fit, cheapest first: time (checkpointing), context, then precision."""

    def fits(tried: Setting) -> bool:
        return estimate(shape, per_device=1, **tried).total <= budget

    said = ""
    changed: Setting = {**setting, "gradient_checkpointing": True}
    if not setting.get("gradient_checkpointing", True):
        said = "trainer.gradient_checkpointing=true"
        if fits(changed):
            return f"set {said}"
    length = _longest(changed, fits)
    if length:
        return " ".join(filter(None, ["set", said, f"data.max_length={length}"]))
    method = changed["method"]
    if not method.quantised:
        quantised = replace(method, kind="lora", quantised=True)
        changed = {**changed, "method": quantised}
        said = " ".join(filter(None, [said, "method=qlora"]))
        if fits(changed):
            return f"set {said}"
        length = _longest(changed, fits)
        if length:
            return f"set {said} data.max_length={length}"
    return "no single device of this size holds it: take a smaller model or a larger device"


def _longest(setting: Setting, fits: Callable[[Setting], bool]) -> int:
    """The longest row that fits, halving from the present length; 0 if none of a useful length does."""
    length = setting["max_length"] // 2
    while length >= SHORTEST:
        if fits({**setting, "max_length": length}):
            return length
        length //= 2
    return 0
