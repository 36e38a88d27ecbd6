"""What the methods of PEFT share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneforge.adapters import fitting, read_config
from tuneforge.console import say
from tuneforge.errors import TuneforgeError, did_you_mean, near
from tuneforge.heads import head_modules, in_head
from tuneforge.method import Footprint, Method


@dataclass(frozen=True, kw_only=True)
class PeftMethod(Method):
    """An adapter of PEFT beside a frozen base. Adapters are fp32."""

    def peft_config(self, model: PreTrainedModel) -> PeftConfig:
        """PEFT's description of the adapter for this model."""
        raise NotImplementedError

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PeftModel:
        """The model with new adapters, or with those of the folder `adapter` to go on from.

        Raises:
            TuneforgeError: the targets match nothing, or `adapter` cannot be loaded on this base.
        """
        if adapter is not None:
            return self.continued(model, adapter)
        config = for_task(self.peft_config(model), model)
        try:
            return with_fp32_head(get_peft_model(model, config))
        except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
            raise TuneforgeError(
                "adapter-does-not-fit",
                str(error).strip().splitlines()[0],
                path="method",
                fix=f"linear modules here: {', '.join(sorted(linear_names(model)))}",
            ) from error

    def continued(self, model: PreTrainedModel, adapter: str) -> PeftModel:
        """The model with the adapter of a folder, trainable.

        Raises:
            TuneforgeError: it cannot be loaded, or is of another base.
        """
        config = read_config(adapter, "model.adapter")
        with fitting(adapter, "model.adapter"):
            return self.loaded(model, adapter, config)

    def save(self, model: Any, folder: Path) -> None:
        """Write what `PeftModel.from_pretrained` reads; embeddings only as far as they were trained."""
        model.save_pretrained(folder, save_embedding_layers=False)

    def loaded(self, model: PreTrainedModel, adapter: str, config: PeftConfig) -> PeftModel:
        """The model with a saved adapter, trainable."""
        return with_fp32_head(PeftModel.from_pretrained(model, adapter, is_trainable=True, config=config))


def for_task(config: PeftConfig, model: PreTrainedModel) -> PeftConfig:
    """The description with the task that the model's head is for; a classifier's head is saved with the adapter."""
    heads = head_modules(model)
    config.task_type = "SEQ_CLS" if heads else "CAUSAL_LM"
    if heads:
        # Those names PEFT adds itself.
        own = [name for name in heads if name not in SEQ_CLS_HEAD_NAMES]
        given = getattr(config, "modules_to_save", None) or []
        config.modules_to_save = [*given, *own]  # type: ignore[attr-defined]
    return config


def with_fp32_head(model: Any) -> PeftModel:
    """The model with the modules that it trains in full, in fp32: PEFT sees to that of adapters alone."""
    assert isinstance(model, PeftModel)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model


@dataclass(frozen=True, kw_only=True)
class TargetedMethod(PeftMethod):
    """A PEFT method that attaches to chosen modules."""

    footprint: ClassVar[Footprint] = "lora"

    target_modules: str | list[str] = "all-linear"
    """all-linear (every linear layer but the head); names of modules; or a pattern for their full names."""
    layers_to_transform: list[int] | None = None
    """Numbers of the layers to attach to, from 0; null: all. Later layers are more task-specific."""
    modules_to_save: list[str] | None = None
    """Names of modules that are trained in full and saved with the adapter, such as a new head."""

    def shared(self, model: PreTrainedModel) -> dict[str, Any]:
        """The arguments that PEFT's configs of these methods have in common.

        Raises:
            TuneforgeError: a name or a layer that this model does not have.
        """
        common = {"modules_to_save": self.modules_to_save, **self.targets(model)}
        # A method without a layer for Conv1D has no word for transposed weights either.
        return common if "" in self.not_on_conv1d else {**common, "fan_in_fan_out": transposed(model)}

    def targets(self, model: PreTrainedModel) -> dict[str, Any]:
        """PEFT's arguments for where to attach.

        Raises:
            TuneforgeError: a name or a layer that this model does not have.
        """
        names = linear_names(model)
        wanted = self.target_modules
        if wanted == "all-linear":
            if fused_experts(model) and not self.adapts_experts:
                say(f"{type(self).__name__} leaves the experts of this mixture as they are: PEFT adapts them with LoRA")
            # From the model itself: PEFT's table of names knows some architectures only.
            found: str | list[str] = sorted(names)
        else:
            check_targets(model, wanted)
            found = wanted
        if self.layers_to_transform is None:
            return {"target_modules": found}
        self._check_layers(model)
        if isinstance(found, str):
            raise TuneforgeError(
                "adapter-does-not-fit",
                "picks layers, and a pattern in method.target_modules picks them already",
                path="method.layers_to_transform",
                fix="name the modules, or put the layers into the pattern",
            )
        return {"target_modules": found, "layers_to_transform": self.layers_to_transform}

    def fused_experts(self, model: PreTrainedModel) -> list[str]:
        """Names of the fused experts (tuneforge.methods.base.fused_experts) in the layers that are chosen."""
        found = fused_experts(model)
        if self.layers_to_transform is None:
            return sorted({".".join(name.split(".")[-2:]) for name in found})
        # PEFT's layers_to_transform knows modules alone, so that these are named one by one.
        chosen = {str(n) for n in self.layers_to_transform}
        return [name for name in found if next(p for p in name.split(".") if p.isdigit()) in chosen]

    def _check_layers(self, model: PreTrainedModel) -> None:
        count = int(model.config.get_text_config().num_hidden_layers)
        outside = [n for n in self.layers_to_transform or [] if not 0 <= n < count]
        if outside or not self.layers_to_transform:
            raise TuneforgeError(
                "no-such-layer",
                f"names {', '.join(map(str, outside)) or 'no layer'}, and the model has layers 0 to {count - 1}",
                path="method.layers_to_transform",
                fix="name layers that are there, or drop the key",
            )


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> linear module (GPT-2's Conv1D among them), output and classification heads left out."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    heads = head_modules(model)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    return {n: m for n, m in linear.items() if not in_head(n, heads)}


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Widths of a linear module, whose weight may be packed into another shape."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    rows, columns = module.get_parameter("weight").shape
    return rows, columns


def fused_experts(model: nn.Module) -> list[str]:
    """Full names of weights that hold all experts of a layer, [experts, out, in]: parameters, and no linear modules."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for own, p in module.named_parameters(recurse=False)
        if p.ndim == 3
    ]


def transposed(model: nn.Module) -> bool:
    """Whether the linear layers are Conv1D (GPT-2), whose weights PEFT calls fan_in_fan_out."""
    return any(isinstance(m, Conv1D) for m in linear_modules(model).values())


def linear_names(model: nn.Module) -> set[str]:
    """The last parts of the names of the linear modules; two where one is ambiguous (`mlp.c_proj`)."""
    return {name.rpartition(".")[2] for name in linear_modules(model)}


def check_targets(model: PreTrainedModel, wanted: str | list[str]) -> None:
    """Refuse names that match no module, which PEFT lets pass as long as one of them matches.

    Raises:
        TuneforgeError: with the near names, and all linear modules of the model.
    """
    import re

    modules = [name for name, _ in model.named_modules()]
    if isinstance(wanted, str):
        missing = [] if any(re.fullmatch(wanted, name) for name in modules) else [wanted]
    else:
        missing = [w for w in wanted if not any(n == w or n.endswith(f".{w}") for n in modules)]
    if missing:
        known = sorted(linear_names(model))
        hint = did_you_mean(missing[0], known) if near(missing[0], known) else f"linear modules: {', '.join(known)}"
        raise TuneforgeError(
            "unknown-module",
            f"{', '.join(map(repr, missing))} match{'es' if len(missing) == 1 else ''} no module of this model",
            path="method.target_modules",
            fix=hint,
        )
