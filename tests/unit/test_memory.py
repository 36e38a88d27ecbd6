"""The closed-form memory estimate, against real models, traces of them, and published figures."""

import subprocess
import sys
import weakref
from typing import Any

import peft
import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tuneforge.compat import enable_checkpointing
from tuneforge.errors import TuneforgeError
from tuneforge.plan.memory import GIB, Setting, estimate, largest_per_device
from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.plan.speed import flops_per_token

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_05B = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}  # fmt: skip
GEMMA_2B = {
    "model_type": "gemma", "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384,
    "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "max_position_embeddings": 8192,
}  # fmt: skip
GEMMA2_2B = {
    "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 8192,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
PHI3_MINI = {
    "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_inner": None, "n_layer": 12, "n_head": 12,
    "n_positions": 1024,
}  # fmt: skip
LORA, FULL = Trainable(kind="lora"), Trainable(kind="full")
QLORA = Trainable(kind="lora", quantised=True)
DROPOUT, Q_AND_V = Trainable(kind="lora", dropout=0.05), Trainable(kind="lora", targets=["q_proj", "v_proj"])
SHALLOW = LLAMA_8B | {"num_hidden_layers": 8}


def shape_of(config: dict[str, Any]) -> ModelShape:
    return ModelShape.from_hf_config(config)


# transformers 5.23 renames checkpointing; peft 0.21.2 reads the old names, and 5.17 has no others. They go in 6.
OLD_NAMES = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning")

# ---- sizes

SMALL: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 96, "intermediate_size": 208, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
REAL = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama-tied": transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "llama-biased": transformers.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "llama-wide-heads": transformers.LlamaConfig(**GROUPED, head_dim=32),
    "mistral": transformers.MistralConfig(**GROUPED),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "qwen2-tied": transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**GROUPED),
    "gemma": transformers.GemmaConfig(**GROUPED),
    "gemma2": transformers.Gemma2Config(**GROUPED),
    "gemma3": transformers.Gemma3TextConfig(**GROUPED),
    "phi3": transformers.Phi3Config(**GROUPED),
    "gpt2": transformers.GPT2Config(vocab_size=320, n_embd=96, n_layer=3, n_head=6, n_positions=128),
    "gpt2-narrow": transformers.GPT2Config(vocab_size=320, n_embd=96, n_layer=3, n_head=6, n_positions=64, n_inner=100),
    "gpt-neox": transformers.GPTNeoXConfig(**SMALL),
    "mixtral": transformers.MixtralConfig(**GROUPED, num_local_experts=5, num_experts_per_tok=2),
    "qwen3-moe": transformers.Qwen3MoeConfig(**GROUPED, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=40),
    "gpt-neox-unbiased": transformers.GPTNeoXConfig(**SMALL, attention_bias=False),
}

ATTENTION, EXPERTS = ["q_proj", "k_proj", "v_proj", "o_proj"], ["experts.gate_up_proj", "experts.down_proj"]


def on_meta(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def test_that_many_architectures() -> None:
    assert len({config.model_type for config in REAL.values()}) == 12


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("written", ["config.json", "to_dict"])
def test_parameters_are_those_of_the_real_model(name: str, written: str) -> None:
    config = REAL[name]
    shape = shape_of(config.to_dict() if written == "to_dict" else config.to_diff_dict())
    model = on_meta(config)
    assert shape.num_parameters() == sum(p.numel() for p in model.parameters())
    assert shape.tied_embeddings == bool(config.tie_word_embeddings)


@pytest.mark.parametrize("name", REAL)
def test_linear_layers_are_those_of_the_real_model(name: str) -> None:
    real = set()
    for path, module in on_meta(REAL[name]).named_modules():
        if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D) and ".2." in path:
            flipped = isinstance(module, transformers.pytorch_utils.Conv1D)
            sizes = tuple(module.weight.shape) if flipped else tuple(module.weight.shape)[::-1]
            real.add((path.partition(".2.")[2], *sizes))
    assert real
    assert real == {tuple(linear) for linear in shape_of(REAL[name].to_dict()).linear_layers()}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("targets", ["one", "pattern", "all-linear"])
@OLD_NAMES
def test_adapters_are_those_of_peft(name: str, targets: str) -> None:
    shape = shape_of(REAL[name].to_dict())
    last = shape.linear_layers()[-1].name.rpartition(".")[2]
    chosen = {"one": [last], "pattern": f".*{last}"}.get(targets, "all-linear")
    linears = sorted({linear.name.rpartition(".")[2] for linear in shape.linear_layers()})
    # PEFT's own all-linear takes the experts of a mixture too, at twice the rank.
    given = linears if shape.num_experts and chosen == "all-linear" else chosen
    options = peft.LoraConfig(r=4, target_modules=given, task_type="CAUSAL_LM", fan_in_fan_out="gpt2" in name)
    model = peft.get_peft_model(on_meta(REAL[name]), options, low_cpu_mem_usage=True)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert Trainable(kind="lora", r=4, targets=chosen).num_parameters(shape) == trainable


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
@OLD_NAMES
def test_adapters_of_experts_are_those_of_peft(name: str) -> None:
    shape = shape_of(REAL[name].to_dict())
    options = peft.LoraConfig(r=4, target_modules=ATTENTION, target_parameters=EXPERTS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(on_meta(REAL[name]), options, low_cpu_mem_usage=True)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert Trainable(kind="lora", r=4, experts=True).num_parameters(shape) == trainable


PUBLISHED = {
    # https://mistral.ai/news/mixtral-of-experts and https://qwenlm.github.io/blog/qwen3: all and active, in 10^9.
    "mixtral": (46.7, 12.9, {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
        "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False,
    }),
    "qwen3_moe": (30.5, 3.3, {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "max_position_embeddings": 40960, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "tie_word_embeddings": False,
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_mixture_has_its_published_sizes(kind: str) -> None:
    whole, active, config = PUBLISHED[kind]
    shape = shape_of({"model_type": kind, **config})
    assert shape.num_parameters() / 1e9 == pytest.approx(whole, abs=0.05)
    assert shape.active_parameters() / 1e9 == pytest.approx(active, abs=0.06)
    # What a token costs follows what it goes through; what is stored follows all.
    assert flops_per_token(shape, LORA) < 5 * active * 1e9
    found = estimate(shape, per_device=1, max_length=1024, method=LORA)
    assert found.weights == shape.num_parameters() * 2


@OLD_NAMES
def test_adapters_outside_the_layers_count_too() -> None:
    chosen = ["q_proj", "lm_head", "embed_tokens"]
    options = peft.LoraConfig(r=4, target_modules=chosen, task_type="CAUSAL_LM")
    model = peft.get_peft_model(on_meta(REAL["llama"]), options, low_cpu_mem_usage=True)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = shape_of(REAL["llama"].to_dict())
    assert Trainable(kind="lora", r=4, targets=chosen).num_parameters(shape) == trainable


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"])
def test_a_missing_size_is_named(key: str) -> None:
    config = {k: v for k, v in LLAMA_8B.items() if k != key}
    with pytest.raises(TuneforgeError, match=key) as caught:
        shape_of(config)
    assert caught.value.problems[0].path == "model.path"


@pytest.mark.parametrize(
    "extra", [{"num_local_experts": 8}, {"num_experts": 128}, {"kv_lora_rank": 512}, {"mlp_only_layers": [0]}]
)
def test_an_architecture_that_is_not_covered_is_refused(extra: dict[str, int]) -> None:
    with pytest.raises(TuneforgeError, match=f"{next(iter(extra))}="):
        shape_of(LLAMA_8B | extra)


def test_a_method_node_says_what_is_trained() -> None:
    methods = "tuneforge.methods"
    options: dict[str, object] = {"r": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1, "double_quant": False}
    node = {"_target_": f"{methods}.qlora.QLora", **options}
    expected = Trainable(kind="lora", r=8, targets=["q_proj"], dropout=0.1, quantised=True, double_quant=False)
    assert Trainable.of_method(node) == expected
    plain = Trainable.of_method({"_target_": f"{methods}.lora.Lora", "r": 4})
    assert plain == Trainable(kind="lora", r=4, experts=True)
    assert Trainable.of_method({"_target_": f"{methods}.full.Full"}) == FULL


def test_a_target_that_is_not_there_is_refused() -> None:
    with pytest.raises(TuneforgeError) as caught:
        Trainable(kind="lora", targets=["q_proj", "o_prj"]).num_parameters(shape_of(LLAMA_8B))
    (problem,) = caught.value.problems
    assert problem.path == "method.target_modules"
    assert "did you mean 'o_proj'" in problem.fix


def test_a_pattern_for_some_layers_counts_them_all() -> None:
    shape = shape_of(LLAMA_8B)
    some = Trainable(kind="lora", targets=r"model\.layers\.(30|31)\..*_proj")
    assert some.num_parameters(shape) == LORA.num_parameters(shape)


# ---- against traces and published figures

BF16 = {"trainable_bytes": 2, "optimizer_bytes_per_param": 4}
# Peaks in GiB of the real models, traced under FakeTensorMode: torch 2.13, transformers 5.23, peft 0.21.2, sdpa, AdamW,
# LoRA r 16 on all linear layers. The first three: adapters in bf16 too, one micro-batch, from another tracer.
TRACES: list[tuple[dict[str, Any], Trainable, tuple[int, int], dict[str, Any], float]] = [
    (LLAMA_8B, LORA, (1, 2048), BF16, 19.15),
    (LLAMA_8B, LORA, (4, 2048), BF16, 31.03),
    (LLAMA_8B, LORA, (1, 2048), BF16 | {"gradient_checkpointing": False}, 30.89),
    (LLAMA_8B, LORA, (2, 1024), {"logits_rows_fraction": 1 / 32}, 16.79),
    (LLAMA_8B, LORA, (2, 1024), {"gradient_checkpointing": False}, 33.28),
    (LLAMA_8B, FULL, (2, 1024), {}, 125.14),
    (LLAMA_8B, FULL, (2, 1024), {"gradient_checkpointing": False, "logits_rows_fraction": 1 / 32}, 151.31),
    (QWEN2_05B, LORA, (2, 1024), {}, 5.20),
    (QWEN2_05B, LORA, (8, 512), {"gradient_checkpointing": False, "logits_rows_fraction": 1 / 4}, 9.10),
    (QWEN2_05B, FULL, (2, 1024), {"logits_rows_fraction": 1 / 32}, 8.90),
    (QWEN2_05B, FULL, (2, 1024), {"gradient_checkpointing": False}, 15.63),
    (GEMMA_2B, LORA, (2, 1024), {"logits_rows_fraction": 1 / 32}, 5.71),
    (GEMMA_2B, LORA, (2, 1024), {"gradient_checkpointing": False}, 18.16),
    (GEMMA_2B, FULL, (2, 1024), {"logits_rows_fraction": 1 / 32}, 43.23),
    (GEMMA2_2B, LORA, (2, 1024), {"attention": "eager"}, 13.25),
    (GEMMA2_2B, LORA, (2, 1024), {"attention": "eager", "gradient_checkpointing": False}, 23.76),
    (PHI3_MINI, LORA, (2, 1024), {"gradient_checkpointing": False}, 17.45),
    (PHI3_MINI, FULL, (2, 1024), {}, 58.79),
    (SHALLOW, DROPOUT, (1, 2048), {"gradient_checkpointing": False, "logits_rows_fraction": 1 / 32}, 11.68),
    (SHALLOW, Q_AND_V, (1, 2048), {"gradient_checkpointing": False, "logits_rows_fraction": 1 / 32}, 8.08),
    (GPT2, LORA, (2, 1024), {"gradient_checkpointing": False}, 2.76),
    (GPT2, LORA, (2, 1024), {"logits_rows_fraction": 1 / 32}, 0.46),
]


@pytest.mark.parametrize(("config", "method", "batch", "setting", "gib"), TRACES)
def test_traced_peaks_are_met(
    config: dict[str, Any], method: Trainable, batch: tuple[int, int], setting: dict[str, Any], gib: float
) -> None:
    rows, length = batch
    found = estimate(shape_of(config), method=method, per_device=rows, max_length=length, device_kind="cpu", **setting)
    assert 0.99 <= found.total / GIB / gib <= 1.05


def test_an_8b_base_and_its_adapters() -> None:
    found = estimate(shape_of(LLAMA_8B), method=LORA, per_device=1, max_length=2048, trainable_bytes=2)
    assert (found.weights + found.adapter) / GIB == pytest.approx(15.04, abs=0.005)


@pytest.mark.parametrize(("quantised", "published"), [(True, 7.4), (False, 16.2)])
def test_published_peaks_are_met(quantised: bool, published: float) -> None:
    # torchtune's README: Llama-3.1-8B on an RTX 4090, batch 2, packed to 2048, compiled; adapters of r 8 in bf16 on all
    # linears but k_proj, checkpointing, cross-entropy in 8 chunks. The driver's context is left out, as with kind cpu.
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    found = estimate(
        shape_of(LLAMA_8B),
        method=Trainable(kind="lora", r=8, targets=targets, quantised=quantised),
        per_device=2,
        max_length=2048,
        trainable_bytes=2,
        optimizer_bytes_per_param=4,
        logits_rows_fraction=1 / 8,
        attention="flex_attention",
        device_kind="cpu",
    )
    assert 0.97 <= found.total / GIB / published <= 1.1


class Bytes(TorchDispatchMode):
    """Counts the storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, storage._cdata)

    def drop(self, key: int) -> None:
        self.now -= self.alive.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result


def without_data(model: torch.nn.Module, count: Bytes) -> None:
    """Give a model on meta fake weights on the CPU, and count them. PEFT cannot be built on fake ones."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                new = torch.nn.Parameter(torch.empty_like(old, device="cpu"), requires_grad=old.requires_grad)
                module._parameters[name] = made.setdefault(id(old), new)
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cpu")
    for parameter in made.values():
        count.add(parameter)


def traced(config: Any, method: Trainable, checkpointing: bool | str, rows: int, length: int) -> int:
    """Peak bytes of the second optimizer step, of two micro-batches, without any data."""
    model: Any = on_meta(config).to(torch.float32 if method.kind == "full" else torch.bfloat16)
    if method.kind == "lora":
        targets: Any = ATTENTION if hasattr(config, "moe_intermediate_size") else method.targets
        experts = EXPERTS if method.experts else None
        options = peft.LoraConfig(r=method.r, target_modules=targets, target_parameters=experts, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, options, low_cpu_mem_usage=True)
    model.train()
    if checkpointing:
        enable_checkpointing(model, checkpointing == "selective")
    model.enable_input_require_grads()
    with FakeTensorMode(allow_non_fake_inputs=True), Bytes() as count:
        without_data(model, count)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
        ids = torch.zeros(rows, length, dtype=torch.long)
        # The first step makes the optimizer's state, for which one micro-batch does.
        for micro_batches in (1, 2):
            count.peak = count.now
            for _ in range(micro_batches):
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # as Lightning does
                    output = model(input_ids=ids, labels=ids, use_cache=False)
                output.loss.backward()
                del output
            peak = count.peak
            optimizer.step()
            optimizer.zero_grad()
    return peak


@OLD_NAMES
@pytest.mark.parametrize("checkpointing", [True, "selective", False])
@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_trace_made_here_is_met(family: str, method: Trainable, checkpointing: Any) -> None:
    config = type(REAL[family])(
        vocab_size=32000, hidden_size=1024, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    found = estimate(
        shape_of(config.to_dict()),
        method=method,
        per_device=4,
        max_length=512,
        gradient_checkpointing=checkpointing,
        device_kind="cpu",
    )
    assert 0.97 <= found.total / traced(config, method, checkpointing, 4, 512) <= 1.05


@OLD_NAMES
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("experts", [True, False])
def test_a_trace_of_a_mixture_is_met(experts: bool, checkpointing: bool) -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=3072, moe_intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=16, num_key_value_heads=4, head_dim=128, num_experts=64, num_experts_per_tok=8,
    )  # fmt: skip
    method = Trainable(kind="lora", experts=experts)
    setting: Setting = {"method": method, "max_length": 1024, "gradient_checkpointing": checkpointing}
    found = estimate(shape_of(config.to_dict()), per_device=2, device_kind="cpu", **setting)
    assert 0.97 <= found.total / traced(config, method, checkpointing, 2, 1024) <= 1.05


# ---- what follows from the settings


def test_the_parts_add_up() -> None:
    found = estimate(shape_of(LLAMA_8B), method=QLORA, per_device=1, max_length=1024)
    parts = [found.weights, found.adapter, found.gradients, found.optimizer, found.activations, found.logits]
    assert found.total == pytest.approx(sum(parts) + found.workspace)
    assert str(found).startswith(f"weights {found.weights / GIB:.2f}, adapter ")


def test_split_weights_cost_a_part_and_what_is_gathered() -> None:
    shape = shape_of(LLAMA_8B)
    same: dict[str, Any] = {"method": FULL, "max_length": 1024}
    one = estimate(shape, per_device=1, **same)
    eight = estimate(shape, per_device=1, split_over=8, **same)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(eight, part) == pytest.approx(getattr(one, part) / 8)
    # Two layers of 0.22 billion weights and both tables of 0.53 billion, and gradients of one and them; in fp32.
    layer, tables = shape.linear_parameters() / 32, 2 * 128256 * 4096
    gathered = eight.workspace - one.workspace
    assert gathered == pytest.approx(4 * (3 * layer + 2 * tables), rel=0.01)
    away = estimate(shape, per_device=1, split_over=8, parts_in_host=True, **same)
    assert away.weights == away.optimizer == away.gradients == 0
    assert away.workspace == eight.workspace


CHEAPER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("activations", {"gradient_checkpointing": False}, {}),
    ("activations", {"gradient_checkpointing": False, "attention": "eager"}, {"gradient_checkpointing": False}),
    (
        "activations",
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": False, "attention": "flex_attention"},
    ),
    ("weights", {}, {"method": QLORA}),
    ("weights", {"method": Trainable(kind="lora", quantised=True, double_quant=False)}, {"method": QLORA}),
    ("weights", {"weight_bits": 32}, {}),
    ("weights", {"method": FULL}, {}),
    ("gradients", {"method": FULL}, {}),
    ("adapter", {"method": Trainable(kind="lora", r=64)}, {}),
    ("adapter", {}, {"method": Q_AND_V}),
    ("optimizer", {}, {"optimizer_bytes_per_param": 2}),
    ("logits", {}, {"logits_rows_fraction": 0.5}),
    ("logits", {"method": Trainable(kind="lora", targets=["q_proj", "lm_head"])}, {}),
    ("logits", {"max_length": 4096}, {}),
    ("workspace", {"method": QLORA}, {}),
    ("workspace", {}, {"device_kind": "cpu"}),
]


@pytest.mark.parametrize(("part", "dear", "cheap"), CHEAPER)
def test_a_cheaper_setting_needs_less(part: str, dear: dict[str, Any], cheap: dict[str, Any]) -> None:
    common: dict[str, Any] = {"method": LORA, "max_length": 2048}
    dear_one = estimate(shape_of(LLAMA_8B), per_device=1, **(common | dear))
    cheap_one = estimate(shape_of(LLAMA_8B), per_device=1, **(common | cheap))
    assert getattr(cheap_one, part) < getattr(dear_one, part)


def test_nf4_takes_half_a_byte_of_the_layers_and_leaves_the_rest() -> None:
    shape = shape_of(LLAMA_8B)
    rest = shape.num_parameters() - shape.linear_parameters()
    found = estimate(shape, method=QLORA, per_device=1, max_length=128)
    assert found.weights == pytest.approx(shape.linear_parameters() * 0.516 + rest * 2, rel=1e-3)
    explicit = estimate(shape, method=QLORA, per_device=1, max_length=128, weight_bits=8)
    assert explicit.weights == shape.linear_parameters() + rest * 2
    in_fp32 = estimate(shape, method=QLORA, per_device=1, max_length=128, weight_bits=32)
    assert in_fp32.weights == pytest.approx(shape.linear_parameters() * 0.516 + rest * 4, rel=1e-3)


# ---- the largest micro-batch


@pytest.mark.parametrize("memory", [20, 24, 40, 80, 192])
@pytest.mark.parametrize("at_most", [1, 3, 64])
def test_the_largest_micro_batch_fits_and_one_more_does_not(memory: int, at_most: int) -> None:
    setting: Setting = {"method": QLORA, "max_length": 2048}
    shape = shape_of(LLAMA_8B)
    rows = largest_per_device(shape, available_bytes=memory * GIB, at_most=at_most, **setting)
    assert 1 <= rows <= at_most
    assert estimate(shape, per_device=rows, **setting).total <= 0.92 * memory * GIB
    if rows < at_most:
        assert estimate(shape, per_device=rows + 1, **setting).total > 0.92 * memory * GIB


ADVICE: list[tuple[int, Setting, str]] = [
    (24, {"method": LORA, "max_length": 2048, "gradient_checkpointing": False}, "trainer.gradient_checkpointing=true"),
    (24, {"method": LORA, "max_length": 8192}, "data.max_length=2048"),
    (
        24,
        {"method": LORA, "max_length": 8192, "gradient_checkpointing": False},
        "trainer.gradient_checkpointing=true data.max_length=2048",
    ),
    (14, {"method": LORA, "max_length": 2048}, "method=qlora"),
    (24, {"method": FULL, "max_length": 2048}, "method=qlora"),
    (9, {"method": FULL, "max_length": 4096}, "method=qlora data.max_length=512"),
]


@pytest.mark.parametrize(("memory", "setting", "expected"), ADVICE)
def test_what_would_fit_is_said_and_does(memory: int, setting: Setting, expected: str) -> None:
    shape = shape_of(LLAMA_8B)
    with pytest.raises(TuneforgeError, match=f"{memory}.0 less a margin of 8%") as caught:
        largest_per_device(shape, available_bytes=memory * GIB, at_most=8, **setting)
    (problem,) = caught.value.problems
    assert problem.path == "batch.per_device"
    assert f"one row of {setting['max_length']} tokens" in problem.message
    assert "weights" in problem.message
    assert problem.fix == f"set {expected}"
    changed: Setting = {**setting}
    for change in expected.split():
        key, _, value = change.partition("=")
        if key == "method":
            changed["method"] = QLORA
        elif key == "data.max_length":
            changed["max_length"] = int(value)
        else:
            changed["gradient_checkpointing"] = True
    assert largest_per_device(shape, available_bytes=memory * GIB, at_most=8, **changed) >= 1


def test_a_device_that_nothing_helps() -> None:
    with pytest.raises(TuneforgeError) as caught:
        largest_per_device(shape_of(LLAMA_8B), available_bytes=4 * GIB, at_most=8, method=LORA, max_length=2048)
    assert "smaller model" in caught.value.problems[0].fix


def test_planning_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'lightning', 'datasets', 'numpy'}"
    code = f"import sys, tuneforge.plan.memory, tuneforge.schema.hardware; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
