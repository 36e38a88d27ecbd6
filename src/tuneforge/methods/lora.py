"""LoRA (arXiv 2106.09685), low-rank adapters beside frozen linear layers, and relatives that differ by an option."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tuneforge.errors import TuneforgeError
from tuneforge.methods.base import TargetedMethod
from tuneforge.methods.modules import ALL_LINEAR, check_patterns, fused_experts, linear_modules, linear_shape
from tuneforge.schema.types import Factor, Probability, Size
from tuneforge.vocabulary import added_tokens

PLAIN = ("default", "gaussian", "orthogonal")
"""Starts of adapters that do not depend on the base's weights."""
INITIAL = "tuneforge_initial"
"""Where a model with a rewritten base keeps the adapter that it started from."""


@dataclass(frozen=True, kw_only=True)
class Lora(TargetedMethod):
    """Adapters of rank `r`; the base is frozen."""

    new_tokens = True
    adapts_experts = True
    rewriting: ClassVar[tuple[str, ...]] = ("pissa", "pissa_niter_16", "olora")
    not_on_conv1d: ClassVar[Mapping[str, str]] = {"olora": "OLoRA decomposes it the wrong way round"}

    r: Size = 16
    """Rank: 8 standard, 16 instruction and chat, 32 code, 64 domain."""
    lora_alpha: Size = 32
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the base are trained too; any but none changes the base when the adapter is off."""
    use_dora: bool = False
    """Train magnitude and direction apart (DoRA, arXiv 2402.09353)."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), so that high ranks learn as fast (arXiv 2312.03732)."""
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora"] = "default"
    """How adapters start. pissa and olora put the base's own main directions into them, and rewrite the base."""
    target_parameters: Literal["auto"] | list[str] = "auto"
    """Fused experts of a mixture that are adapted too, each at rank r, by the ends of their names: experts.down_proj.
    auto: all of them where target_modules is all-linear; []: none. Routers stay frozen."""
    rank_pattern: dict[str, Size] | None = None
    """Module name or pattern -> its own rank."""
    alpha_pattern: dict[str, Size] | None = None
    """Module name or pattern -> its own alpha."""
    lr_ratio: Factor = 1.0
    """Learning rate of the B matrices over that of the A matrices (LoRA+, arXiv 2402.12354)."""

    def peft_config(self, model: PreTrainedModel) -> LoraConfig:
        """LoRA's."""
        where = self.shared(model)
        self._check_ranks(model, self.adapted_modules(model, where["modules_to_save"]))
        with warnings.catch_warnings():
            # PEFT cannot convert rank-stabilised adapters with patterns to plain ones; `save` can.
            warnings.filterwarnings("ignore", "Using Rank-Stabilized LoRA")
            return LoraConfig(
                r=self.r,
                lora_alpha=self.lora_alpha,
                lora_dropout=self.lora_dropout,
                bias=self.bias,
                use_dora=self.use_dora,
                use_rslora=self.use_rslora,
                **self.initialisation(),
                rank_pattern=dict(self.rank_pattern or {}),
                alpha_pattern=dict(self.alpha_pattern or {}),
                target_parameters=self._experts(model) or None,
                trainable_token_indices=_new_rows(model),
                **where,
            )

    def trial_config(self, model: PreTrainedModel) -> LoraConfig:
        """With adapters that start as plain LoRA's: other starts decompose weights."""
        config = self.peft_config(model)
        config.init_lora_weights, config.corda_config = True, None
        return config

    def initialisation(self) -> dict[str, Any]:
        """PEFT's arguments for how adapters start."""
        return {"init_lora_weights": True if self.init_lora_weights == "default" else self.init_lora_weights}

    def logits_kept(self, model: PreTrainedModel) -> dict[str, int]:
        """The argument of `forward` by which an observed base makes few logits; none where the head is adapted too."""
        adapted = {id(model.get_submodule(name)) for name in self.adapted_modules(model)}
        return {} if id(model.get_output_embeddings()) in adapted else {"logits_to_keep": 1}

    def _experts(self, model: PreTrainedModel) -> list[str]:
        """Ends of the names of the fused experts to adapt.

        Raises:
            TuneforgeError: a name that matches none.
        """
        if not self.adapts_experts:
            return []
        if self.target_parameters == "auto":
            return self.fused_experts(model) if self.target_modules == ALL_LINEAR else []
        there = fused_experts(model)
        missing = [t for t in self.target_parameters if not any(n == t or n.endswith(f".{t}") for n in there)]
        if missing:
            known = ", ".join(sorted({".".join(n.split(".")[-2:]) for n in there})) or "none: no fused experts here"
            raise TuneforgeError(
                "unknown-module",
                f"{', '.join(map(repr, missing))} match{'es' if len(missing) == 1 else ''} no fused experts",
                path="method.target_parameters",
                fix=f"there are {known}",
            )
        return list(self.target_parameters)

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PeftModel:
        """The model with new adapters, or with those of `adapter`; what a rewritten base started from is kept."""
        tuned = super().apply(model, adapter)
        if self.rewrites_base and adapter is None:
            setattr(tuned, INITIAL, _low_rank_weights(tuned))
        return tuned

    @property
    def rewrites_base(self) -> bool:
        """Whether the base without the adapter is no longer the model that was loaded."""
        return self.init_lora_weights in self.rewriting

    @property
    def reads_base(self) -> bool:
        """For DoRA's magnitudes, starts from the base's directions, and copies of whole modules."""
        return self.use_dora or self.init_lora_weights not in PLAIN or bool(self.modules_to_save)

    @property
    def starts_as_base(self) -> bool:
        """B is 0. Not with DoRA, which divides by norms and multiplies by them again."""
        return self.init_lora_weights in ("default", "gaussian") and not self.use_dora

    def learning_rate_scale(self, name: str) -> float:
        """LoRA+: B matrices learn faster."""
        return self.lr_ratio if "lora_B" in name or "lora_embedding_B" in name else 1.0

    def save(self, model: Any, folder: Path) -> None:
        """A plain LoRA on the original base, whatever the adapters started from.

        With a rewritten base the difference to the start is saved, at twice the rank: the original base plus that is
        the tuned model, whereas the adapter alone would be wrong on it, without an error.
        """
        super().save(model, folder)
        initial = getattr(model, INITIAL, None)
        if initial is not None:
            _save_difference(folder, initial)

    def _check_ranks(self, model: PreTrainedModel, adapted: list[str]) -> None:
        """Patterns must match; a rank above a layer's width costs more than the layer and says no more."""
        linear = linear_modules(model)
        widths = {n: min(linear_shape(linear[n])) for n in adapted if n in linear}
        ends = tuple(f".{t}" for t in self._experts(model))
        experts = [n for n in fused_experts(model) if f".{n}".endswith(ends)]
        widths |= {n: min(model.get_parameter(n).shape[1:]) for n in experts}
        patterns = self.rank_pattern or {}
        ranks = {"method.r": self.r, **{f"method.rank_pattern.{name}": rank for name, rank in patterns.items()}}
        odd = next((key for key, rank in ranks.items() if rank % 2), "")
        if odd and self.init_lora_weights == "orthogonal":
            message = f"is {ranks[odd]}, and method.init_lora_weights=orthogonal halves each rank"
            raise TuneforgeError("wrong-value", message, path=odd, fix=f"give an even rank, such as {ranks[odd] + 1}")
        check_patterns("rank_pattern", patterns, [*adapted, *experts], model)
        check_patterns("alpha_pattern", self.alpha_pattern, [*adapted, *experts], model)
        for name, width in widths.items():
            pattern = get_pattern_key(list(patterns), name)
            rank = patterns.get(pattern, self.r)
            if width < rank:
                key = f"method.rank_pattern.{pattern}" if pattern in patterns else "method.r"
                raise TuneforgeError(
                    "rank-above-width",
                    f"is {rank}, and {name} is {width} wide: a larger rank adds weights and nothing else",
                    path=key,
                    fix=f"set {key}={width} or less" if key == "method.r" else f"give {width} or less",
                )


def _new_rows(model: PreTrainedModel) -> dict[str, list[int]] | None:
    """PEFT's `trainable_token_indices`: the rows of the embedding, and of the head, that new tokens have."""
    added = added_tokens(model)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [n.rpartition(".")[2] for n, m in model.named_modules() if any(m is layer for layer in layers)]
    return dict.fromkeys(names, added) if added else None


def _low_rank_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The A and B matrices under the names that they are saved by, copied."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {n: t.detach().cpu().clone() for n, t in state.items() if _side(n)}


def _side(name: str) -> str:
    """Which of the two matrices a saved weight is: A, B, or neither."""
    return next((side for side in "AB" if f".lora_{side}" in name or f".lora_embedding_{side}" in name), "")


def _save_difference(folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    """Turn a saved adapter on a rewritten base into one on the original base: B A - B0 A0, side by side.

    PEFT's own conversion leaves out DoRA's magnitudes and modules trained in full, and refuses rank-stabilised scales
    with patterns (peft 0.21).
    """
    file = folder / SAFETENSORS_WEIGHTS_NAME
    saved = load_file(file)
    for name, start in initial.items():
        now = saved[name]
        first = _side(name) == "A"
        saved[name] = torch.cat([now, start.to(now) if first else -start.to(now)], dim=0 if first else 1)
    save_file({n: t.contiguous() for n, t in saved.items()}, file, metadata={"format": "pt"})
    described = folder / CONFIG_NAME
    config = json.loads(described.read_text(encoding="utf-8"))
    # The scale stays: alpha / r, or alpha / sqrt(r).
    scale = math.sqrt(2) if config["use_rslora"] else 2
    config |= {"init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": scale * config["lora_alpha"]}
    config["rank_pattern"] = {name: 2 * rank for name, rank in (config["rank_pattern"] or {}).items()}
    config["alpha_pattern"] = {name: scale * alpha for name, alpha in (config["alpha_pattern"] or {}).items()}
    described.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
