"""What several test files share: tiny models and tokenizers, a finished command, the options of a short run."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# A short run: a few steps on a few rows.
SHORT = ("trainer.max_steps=4", "data.max_rows=64", "data.split.max_eval_rows=8", "samples.num=1", "batch.effective=8")

ENCODERS = ("bert",)
ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma", "gpt2")


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install 'tuneforge[deepspeed]'",
)


@dataclass
class Ran:
    """A finished command."""

    code: int
    folder: Path
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        return [m["train/loss"] for m in self.metrics if "train/loss" in m]

    def copied(self, folder: Path) -> "Ran":
        """The same in a folder that a test may write into."""
        shutil.copytree(self.folder, folder)
        return dataclasses.replace(self, folder=folder)


@dataclass
class Swept:
    """A finished sweep."""

    code: int
    root: Path
    said: str

    @property
    def kept(self) -> dict[str, Any]:
        return json.loads((self.root / "sweep.json").read_text())

    @property
    def study(self) -> Any:
        import optuna

        return optuna.load_study(study_name=self.kept["study"], storage=f"sqlite:///{self.root / 'study.db'}")

    @property
    def trials(self) -> list[Any]:
        return self.study.trials

    def states(self) -> list[str]:
        return [t.state.name for t in self.trials]

    def record(self, number: int) -> dict[str, Any]:
        return json.loads((self.root / str(number) / "run.json").read_text())


def make_model_folder(name: str, folder: Path) -> Path:
    """Save a two-layer model and a tokenizer: GPT-2's has neither pad token nor template, Gemma's adds BOS.

    An encoder is a masked language model, whose checkpoint has no pooler.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2}
    if name == "gpt2":
        sizes |= {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    else:
        sizes |= {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 256,
        }
    kind = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
    if name in ENCODERS:
        sizes = {k: v for k, v in sizes.items() if k not in ("head_dim", "num_key_value_heads")}
        # Wide enough for attention to tell places apart: the first one is what a classifier reads.
        sizes |= {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    kind.from_config(AutoConfig.for_model(name, **sizes)).save_pretrained(folder)
    make_tokenizer(name).save_pretrained(folder)
    return folder


def make_tokenizer(name: str = "llama") -> Any:
    """A byte-level BPE of 512 tokens with the special tokens the architecture is known for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog " * 20, "question answer user assistant"], trainer
    )
    if name in ("llama", "mistral", "gemma"):
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if name in ENCODERS:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if name == "qwen2":
        names = {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    if name == "gpt2":
        names = {"bos_token": "</s>", "eos_token": "</s>"}
    if name in ENCODERS:
        names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    if name == "qwen2":
        from tuneforge.data.template import CHATML

        tokenizer.chat_template = CHATML
    return tokenizer


def signal_at(monkeypatch: Any, step: int, number: int = signal.SIGTERM) -> None:
    """Deliver a signal to this process, once, when the given optimizer step has run."""
    from tuneforge.objectives.causal_lm import CausalLM

    end, sent = CausalLM.on_train_batch_end, []

    def signalling(self: Any, *args: Any) -> None:
        end(self, *args)
        if self.trainer.global_step == step and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(CausalLM, "on_train_batch_end", signalling)


def shown(metrics: list[dict[str, Any]]) -> dict[Any, Any]:
    """What metrics.jsonl says of a run, less its speed: equal for equal runs; a line written twice is an error."""
    left_out = ("train/tokens_per_s", "waste_guard/")
    lines = {(m["step"], "eval/loss" in m): {k: v for k, v in m.items() if not k.startswith(left_out)} for m in metrics}
    assert len(lines) == len(metrics)
    return lines


ROUNDING = 2e-5
"""Largest `difference` of two routes to one result in single precision, on the small models of these tests.

Routes differ in the order of their sums: a sum of n products is off by about sqrt(n) * 2**-24 of its size, here 1e-6
with n <= 256, and about 20 such sums lie between an input and a logit or a gradient. An element that is itself small is
off as much as the large ones that it was summed from, so a bound in parts of each element suits one CPU alone.
Measured over the matrix of methods under two sets of kernels: at most 1e-6. What is wrong differs by 1e-2 and more.
"""


def difference(one: Any, two: Any) -> float:
    """Of two tensors: their largest difference, in parts of the largest element."""
    return float((one - two).detach().abs().max() / two.detach().abs().max())


def same_bits(one: Any, two: Any) -> bool:
    """Whether two tensors hold the same bytes; packed 4-bit numbers in a floating type may read as NaN."""
    import torch

    return torch.equal(*(t.detach().reshape(-1).view(torch.uint8) for t in (one, two)))


def same_adapter(one: Path, two: Path) -> bool:
    """Whether two runs' adapters are equal to the bit."""
    a, b = (f / "adapter" / "adapter_model.safetensors" for f in (one, two))
    return a.read_bytes() == b.read_bytes()


def documents(count: int = 6, seed: int = 0) -> list[Any]:
    """Random documents of 6 to 29 tokens, the second half of each supervised."""
    import numpy as np

    from tuneforge.data.encode import IGNORE, Document

    rng = np.random.default_rng(seed)
    made = []
    for length in rng.integers(6, 30, count):
        ids = rng.integers(5, 300, length)
        labels = np.where(np.arange(length) < length // 2, IGNORE, ids)
        made.append(Document(ids, labels, "t"))
    return made


def make_method(node: Any) -> Any:
    """The method of a config's node."""
    from tuneforge.method import Method
    from tuneforge.targets import make

    return make("method", node, Method)
