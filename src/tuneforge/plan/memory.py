"""How much device memory a fine-tune needs, in closed form from a model's config.json: no weights, no torch, no GPU.

The formulas count what PyTorch keeps alive at the worst moment of a step. They were fitted to traces of real models
under FakeTensorMode, where every storage is counted, and hold for one device without sharding.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple, Required, TypedDict, Unpack

from tuneforge.errors import TuneforgeError
from tuneforge.plan.shape import NAMES, ModelShape, Trainable

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
    gradient_checkpointing: bool | Literal["selective"]
    """Keep only each layer's input, and recompute the layer in the backward pass; true. selective: keep the results of
    attention and of the base's products too."""
    activation_offload: bool
    """What layers keep waits in host memory; false."""
    logits_rows_fraction: float
    """Share of the tokens whose logits are computed; 1. The supervised ones, where the others skip the head."""
    attention: str
    """transformers' name of the kernel; sdpa. `eager` keeps scores, `sdpa` a mask and expanded keys and values."""
    split_over: int
    """Devices that weights, gradients and optimizer states are split over; 1."""
    parts_in_host: bool
    """A device's part of those waits in host memory; false."""
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
    gradient_checkpointing: bool | Literal["selective"] = True
    activation_offload: bool = False
    logits_rows_fraction: float = 1.0
    attention: str = "sdpa"
    split_over: int = 1
    parts_in_host: bool = False
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
    weights, share = _weight_bytes(shape, run), 0.0 if run.parts_in_host else 1 / run.split_over
    return Footprint(
        weights=weights * share,
        adapter=0 if method.kind == "full" else trained * run.trainable_bytes * share,
        gradients=gradients * share,
        optimizer=trained * run.optimizer_bytes_per_param * share,
        activations=moment.activations,
        logits=moment.logits,
        workspace=moment.workspace + overhead + _gathered_bytes(shape, run, weights),
    )


def _gathered_bytes(shape: ModelShape, run: _Run, weights: float) -> float:
    """Where weights are split: this layer and the next, and all that is outside of layers, whole; in full training a
    layer's gradients too, until they are sent."""
    if run.split_over == 1 and not run.parts_in_host:
        return 0.0
    outside = weights * (1 - shape.linear_parameters() / shape.num_parameters())
    layer = (weights - outside) / shape.num_layers
    return 2 * layer + outside + (layer + outside) * run.full


def _weight_bytes(shape: ModelShape, run: _Run) -> float:
    """Trained weights in their own type; frozen ones in `weight_bits`, of which NF4 takes the layers' matrices only."""
    if run.full:
        return shape.num_parameters() * run.trainable_bytes
    bits = run.weight_bits
    if run.method.quantised and bits >= 16:
        bits = NF4_BITS[run.method.double_quant] if run.method.bits == 4 else float(run.method.bits)
    linears = shape.linear_parameters()
    return (linears * bits + (shape.num_parameters() - linears) * max(run.weight_bits, 16)) / 8


def _terms(shape: ModelShape, run: _Run, tokens: int) -> _Terms:
    compute, hidden = run.compute_bytes, shape.hidden_size
    layer = tokens * _saved_per_token(shape, run)
    stream = run.trainable_bytes if run.full else compute
    between = tokens * hidden * stream if run.gradient_checkpointing else layer
    if run.gradient_checkpointing == "selective":
        between += tokens * compute * (shape.query_size + sum(linear.out_features for linear in shape.linear_layers()))
    kept = 0.0 if run.activation_offload else shape.num_layers * between
    # Behind the last layer: the final norm's fp32 copy and the head's input. Before the first: one mask for all.
    kept += tokens * (hidden * (4 + compute) + (run.max_length if run.attention == "sdpa" else 0))
    # The layer just recomputed, and gradients of the MLP's width; PEFT's casts and dropout put more of those there.
    backward = kept + (layer if run.gradient_checkpointing or run.activation_offload else 0)
    widths = 3.5 + 1.5 * run.casts + 1.5 * (run.method.dropout > 0)
    backward += tokens * shape.inner_size * compute * widths
    # A classifier scores every token and takes one of them.
    scores = (1 if shape.num_classes else run.logits_rows_fraction) * tokens * shape.head_width
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
    # PEFT adds the adapters of experts to a copy of their weights. A layer's copy and its gradient are there in its
    # backward pass, and without recomputation every layer's copy from the forward pass on.
    copy = shape.expert_parameters() // shape.num_layers * compute if run.method.experts else 0
    held = 0 if run.gradient_checkpointing else copy * shape.num_layers
    if run.method.quantised:
        # bitsandbytes unpacks one matrix at a time, and casts it where it was quantised from another type.
        workspace += 2 * compute * widest
    backward = workspace + copy + max(held, copy)
    return [_Moment(terms.kept, terms.loss, workspace + held), _Moment(terms.backward, held_logits, backward)]


def _moments_of_full(shape: ModelShape, run: _Run, terms: _Terms, widest: int) -> list[_Moment]:
    """Training every weight adds autocast's copies of them, and gradients on their way into the accumulated ones."""
    compute, stored, head = run.compute_bytes, run.trainable_bytes, shape.head_width * shape.hidden_size
    embedding = shape.vocab_size * shape.hidden_size
    # Lightning switches autocast's cache off: a copy lives as long as the backward pass of its product needs it. Under
    # checkpointing that is one layer at a time, and the head, which is never recomputed.
    copies = (shape.linear_parameters() + head) * compute if run.casts else 0
    held = 0 if run.gradient_checkpointing else copies
    forward = max(held, head * compute if run.casts else 0)
    # The two gradients of a tied embedding are summed before they are accumulated: the head's waits for the other.
    waiting = head * stored if shape.tied_embeddings and not shape.num_classes else 0
    scores = terms.scores * compute
    return [
        _Moment(terms.kept, terms.scores * (compute + 8), forward),
        _Moment(terms.kept, terms.loss, forward),
        _Moment(terms.kept, 2 * scores, held + head * (compute + stored)),
        _Moment(terms.backward, scores, held + waiting + widest * (compute + stored)),
        _Moment(0, scores, 2 * waiting + embedding * stored),
    ]


def _saved_per_token(shape: ModelShape, run: _Run) -> float:
    """Bytes one layer keeps for its backward pass, a token.

    Korthikanti et al. (arXiv 2205.05198, section 4.1) count 34 bytes a unit of width for a trained GPT layer. Redone
    here for gated MLPs, grouped queries, norms in fp32, frozen weights (whose inputs are not kept) and adapters.
    """
    compute, names, inner = run.compute_bytes, NAMES[shape.names], shape.inner_size
    linears = run.method.linears(shape)
    trained = {linear.name for linear in linears}
    normed = shape.norms_per_layer * shape.hidden_size + shape.qk_norm * (shape.query_size + shape.kv_size)
    saved: float = normed * (4 + (run.trainable_bytes if run.full else 0))
    for group in (names.qkv, names.mlp_in):
        readers = len(trained.intersection(group))
        saved += compute * shape.hidden_size * (readers if run.own_inputs else min(readers, 1))
    saved += compute * inner * (shape.activation_copies + 2 * shape.gated_mlp + (names.mlp_out in trained))
    if shape.num_experts:
        # Each expert's output, which its share is multiplied with; and the inputs of its matrices, where those learn.
        learns = run.full or run.method.experts
        saved += compute * shape.experts_per_token * shape.hidden_size * (1 + learns)
        saved += compute * inner * learns
    saved += compute * _attention_width(shape, run, names.out in trained)
    if not run.full:
        saved += compute * run.method.width(shape) * len(trained)
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
    query, kv, fused = shape.query_size, shape.kv_size, len(NAMES[shape.names].qkv) == 1
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
        "does-not-fit",
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
