"""LoRA (arXiv 2106.09685), low-rank adapters beside frozen linear layers, and relatives that differ by an option."""

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tuneforge.errors import TuneforgeError
from tuneforge.methods.base import TargetedMethod, fused_experts, linear_modules, linear_shape
from tuneforge.schema.types import PositiveFloat, PositiveInt, Probability
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

    r: PositiveInt = 16
    """Rank: 8 standard, 16 instruction and chat, 32 code, 64 domain."""
    lora_alpha: PositiveInt = 32
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
    rank_pattern: dict[str, PositiveInt] | None = None
    """Module name or pattern -> its own rank."""
    alpha_pattern: dict[str, PositiveInt] | None = None
    """Module name or pattern -> its own alpha."""
    lr_ratio: PositiveFloat = 1.0
    """Learning rate of the B matrices over that of the A matrices (LoRA+, arXiv 2402.12354)."""

    def peft_config(self, model: PreTrainedModel) -> LoraConfig:
        """LoRA's."""
        self._check_rank(model)
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
            **self.shared(model),
        )

    def initialisation(self) -> dict[str, Any]:
        """PEFT's arguments for how adapters start."""
        return {"init_lora_weights": True if self.init_lora_weights == "default" else self.init_lora_weights}

    def _experts(self, model: PreTrainedModel) -> list[str]:
        """Ends of the names of the fused experts to adapt.

        Raises:
            TuneforgeError: a name that matches none.
        """
        if not self.adapts_experts:
            return []
        if self.target_parameters == "auto":
            return self.fused_experts(model) if self.target_modules == "all-linear" else []
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
            setattr(tuned, INITIAL, _adapter_weights(tuned))
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
        initial = getattr(model, INITIAL, None)
        if initial is None:
            super().save(model, folder)
            return
        with tempfile.TemporaryDirectory(prefix="tuneforge-") as start, warnings.catch_warnings():
            _save_start(model, initial, Path(start))
            # PEFT loads the start beside the result and warns that the two do not go together.
            warnings.simplefilter("ignore")
            model.save_pretrained(folder, path_initial_model_for_weight_conversion=start, save_embedding_layers=False)
        _add_modules_to_save(model, folder / SAFETENSORS_WEIGHTS_NAME)

    def _check_rank(self, model: PreTrainedModel) -> None:
        """A rank above a layer's width costs more than the layer and says no more."""
        wanted = self.target_modules
        names = linear_modules(model)
        if wanted != "all-linear" and not isinstance(wanted, str):
            names = {n: m for n, m in names.items() if n.rpartition(".")[2] in wanted}
        widths = {n: min(linear_shape(m)) for n, m in names.items()}
        ends = tuple(f".{t}" for t in self._experts(model))
        experts = [n for n in fused_experts(model) if f".{n}".endswith(ends)]
        widths |= {n: min(model.get_parameter(n).shape[1:]) for n in experts}
        narrow = [(n, width) for n, width in widths.items() if width < self.r]
        if narrow:
            raise TuneforgeError(
                "rank-above-width",
                f"is {self.r}, and {narrow[0][0]} is {narrow[0][1]} wide: a larger rank adds weights and nothing else",
                path="method.r",
                fix=f"set method.r={narrow[0][1]} or less",
            )


def _new_rows(model: PreTrainedModel) -> dict[str, list[int]] | None:
    """PEFT's `trainable_token_indices`: the rows of the embedding, and of the head, that new tokens have."""
    added = added_tokens(model)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [n.rpartition(".")[2] for n, m in model.named_modules() if any(m is layer for layer in layers)]
    return dict.fromkeys(names, added) if added else None


def _adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trainable weights, copied."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _add_modules_to_save(model: PeftModel, file: Path) -> None:
    """Put the modules trained in full beside the adapter's difference, from which PEFT 0.21 leaves them out."""
    saved = load_file(file)
    whole = {n: t.contiguous() for n, t in get_peft_model_state_dict(model).items() if "lora_" not in n}
    if whole.keys() - saved.keys():
        save_file({**saved, **whole}, file, metadata={"format": "pt"})


def _save_start(model: PeftModel, initial: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the adapter as it was at the start: PEFT works out the difference from a folder."""
    config: Any = model.peft_config["default"]
    own, now, kept = dict(model.named_parameters()), _adapter_weights(model), config.init_lora_weights
    try:
        _put(own, initial)
        # As PEFT's documentation has it: the start must not be initialised again when it is read.
        config.init_lora_weights = True
        model.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        config.init_lora_weights = kept
        _put(own, now)


@torch.no_grad()
def _put(parameters: dict[str, torch.nn.Parameter], weights: dict[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        parameters[name].copy_(weight)
