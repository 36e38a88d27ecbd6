"""What several test files share: tiny models and tokenizers, a finished command, the options of a short run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A short run: a few steps on a few rows.
SHORT = ("trainer.max_steps=4", "data.max_rows=64", "data.split.max_eval_rows=16", "samples.num=1", "batch.effective=8")

ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma", "gpt2")


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


def make_model_folder(name: str, folder: Path) -> Path:
    """Save a two-layer model and a tokenizer: GPT-2's has neither pad token nor template, Gemma's adds BOS."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

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
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).save_pretrained(folder)
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
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if name == "qwen2":
        names = {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    if name == "gpt2":
        names = {"bos_token": "</s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    if name == "qwen2":
        from tuneforge.data.template import CHATML

        tokenizer.chat_template = CHATML
    return tokenizer


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
