"""What the methods of PEFT share."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from transformers import PreTrainedModel

from tuneforge.adapters import check_patterns as check_patterns_of
from tuneforge.adapters import fitting, read_config
from tuneforge.console import say, warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.heads import head_modules, in_head
from tuneforge.method import Footprint, Method
from tuneforge.methods.modules import (
    ALL_LINEAR,
    beyond_text,
    check_modules_to_save,
    check_targets,
    fused_experts,
    linear_modules,
    linear_names,
    matching,
    num_layers,
    routers,
    shortest_ends,
    transposed,
)


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
        return with_fp32_head(adapted(model, for_task(self.peft_config(model), model)))

    def check(self, model: PreTrainedModel) -> None:
        """Put the adapters on the model without weights: what PEFT refuses, it refuses here, in milliseconds.

        Raises:
            TuneforgeError: an option names what is not there, or PEFT has no adapter for a module.
        """
        tied = tied_modules(model)
        tuned = adapted(model, for_task(self.trial_config(model), model)).get_base_model()
        kinds = (BaseTunerLayer, ModulesToSaveWrapper)
        changed = [name for name in tied if isinstance(tuned.get_submodule(name), kinds)]
        if changed:
            warn_of_tied(changed, [name for name in tied if name not in changed])

    def trial_config(self, model: PreTrainedModel) -> PeftConfig:
        """`peft_config`, with a start that needs no weights."""
        return self.peft_config(model)

    def continued(self, model: PreTrainedModel, adapter: str) -> PeftModel:
        """The model with the adapter of a folder, trainable.

        Raises:
            TuneforgeError: it cannot be loaded, or is of another base.
        """
        config = read_config(adapter, "model.adapter")
        check_patterns_of(config, model, "model.adapter")
        with fitting(adapter, "model.adapter"):
            return self.loaded(model, adapter, config)

    def save(self, model: Any, folder: Path) -> None:
        """Write what `PeftModel.from_pretrained` reads; embeddings only as far as they were trained."""
        model.save_pretrained(folder, save_embedding_layers=False)

    def loaded(self, model: PreTrainedModel, adapter: str, config: PeftConfig) -> PeftModel:
        """The model with a saved adapter, trainable."""
        return with_fp32_head(PeftModel.from_pretrained(model, adapter, is_trainable=True, config=config))


def adapted(model: PreTrainedModel, config: PeftConfig) -> Any:
    """PEFT's model.

    Raises:
        TuneforgeError: PEFT refuses.
    """
    # Listed first: PEFT leaves a model half wrapped, with modules of its own.
    names = sorted(linear_names(model))
    check_patterns_of(config, model, "method")
    try:
        with warnings.catch_warnings():
            # Tied weights are told by `warn_of_tied`; names that match nothing are refused before.
            warnings.simplefilter("ignore")
            return get_peft_model(model, config)
    except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise TuneforgeError(
            "adapter-does-not-fit",
            " ".join(str(error).split()),
            path="method",
            fix=f"linear modules here: {', '.join(names)}",
        ) from error


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

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PeftModel:
        """The model with adapters; says so where a mixture's experts get none."""
        if adapter is None and self.target_modules == ALL_LINEAR and not self.adapts_experts and fused_experts(model):
            say(f"{type(self).__name__} leaves the experts of this mixture as they are: PEFT adapts them with LoRA")
        return super().apply(model, adapter)

    def shared(self, model: PreTrainedModel) -> dict[str, Any]:
        """The arguments that PEFT's configs of these methods have in common.

        Raises:
            TuneforgeError: a name or a layer that this model does not have.
        """
        saved = check_modules_to_save(model, self.modules_to_save)
        common = {"modules_to_save": saved, **self.targets(model, saved)}
        # A method without a layer for Conv1D has no word for transposed weights either.
        return common if "" in self.not_on_conv1d else {**common, "fan_in_fan_out": transposed(model)}

    def targets(self, model: PreTrainedModel, saved: list[str] | None = None) -> dict[str, Any]:
        """PEFT's arguments for where to attach.

        Raises:
            TuneforgeError: a name or a layer that this model does not have.
        """
        wanted, layers = self.target_modules, self.layers_to_transform
        if layers is not None:
            self._check_layers(model)
            if isinstance(wanted, str) and wanted != ALL_LINEAR:
                raise TuneforgeError(
                    "adapter-does-not-fit",
                    "picks layers, and a pattern in method.target_modules picks them already",
                    path="method.layers_to_transform",
                    fix="name the modules, or put the layers into the pattern",
                )
        chosen = self.adapted_modules(model, saved)
        if not chosen:
            raise TuneforgeError(
                "unknown-module",
                "leaves no module to adapt, less those of method.modules_to_save and of other layers",
                path="method.target_modules",
                fix=f"linear modules: {', '.join(sorted(linear_names(model)))}",
            )
        # PEFT looks at the modules of these layers alone, and never at those that are saved in full.
        every = {n for n, _ in model.named_modules() if layers is None or layer_of(n) in layers}
        if wanted != ALL_LINEAR:
            refuse_idle(matching(model, wanted), chosen)
        typed = {n for found in matching(model, wanted).values() for n in found if n in every}
        kept = named(model, saved)
        exact = wanted != ALL_LINEAR and {n for n in typed if not in_head(n, kept)} == set(chosen)
        found = wanted if exact else shortest_ends(chosen, every)
        return {"target_modules": found} if layers is None else {"target_modules": found, "layers_to_transform": layers}

    def adapted_modules(self, model: PreTrainedModel, saved: list[str] | None = None) -> list[str]:
        """Full names of the modules that get an adapter.

        Raises:
            TuneforgeError: a name that matches none.
        """
        if self.target_modules == ALL_LINEAR:
            # From the model itself: PEFT's table of names knows some architectures only.
            found = set(linear_modules(model))
        else:
            check_targets(model, self.target_modules)
            found = {n for names in matching(model, self.target_modules).values() for n in names}
            found -= {*routers(model), *beyond_text(model)}
        kept = named(model, saved)
        found = {n for n in found if not in_head(n, kept)}
        if self.layers_to_transform is not None:
            found = {n for n in found if layer_of(n) in self.layers_to_transform}
        return sorted(found)

    def fused_experts(self, model: PreTrainedModel) -> list[str]:
        """Names of the fused experts (tuneforge.methods.base.fused_experts) in the layers that are chosen."""
        found = fused_experts(model)
        if self.layers_to_transform is None:
            return sorted({".".join(name.split(".")[-2:]) for name in found})
        # PEFT's layers_to_transform knows modules alone, so that these are named one by one.
        chosen = {str(n) for n in self.layers_to_transform}
        return [name for name in found if next(p for p in name.split(".") if p.isdigit()) in chosen]

    def _check_layers(self, model: PreTrainedModel) -> None:
        count = num_layers(model)
        outside = [n for n in self.layers_to_transform or [] if not 0 <= n < count]
        if outside or not self.layers_to_transform:
            raise TuneforgeError(
                "no-such-layer",
                f"names {', '.join(map(str, outside)) or 'no layer'}, and the model has layers 0 to {count - 1}",
                path="method.layers_to_transform",
                fix="name layers that are there, or drop the key",
            )


def refuse_idle(found: Mapping[str, list[str]], chosen: list[str]) -> None:
    """Refuse a name of `method.target_modules` whose modules are all left out.

    Raises:
        TuneforgeError: they lie in other layers, or are trained in full.
    """
    idle = [typed for typed, names in found.items() if not set(names) & set(chosen)]
    if idle:
        raise TuneforgeError(
            "unknown-module",
            f"names {', '.join(map(repr, idle))}, which gets no adapter: method.layers_to_transform leaves it out, or "
            "method.modules_to_save trains it in full",
            path="method.target_modules",
            fix="name it in one place alone",
        )


def named(model: PreTrainedModel, saved: list[str] | None) -> list[str]:
    """Full names of the modules that `modules_to_save` names."""
    return [n for names in matching(model, saved or []).values() for n in names]


def tied_modules(model: PreTrainedModel) -> list[str]:
    """Full names of the embedding and the output head, where they are one weight; else none."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or getattr(embedding, "weight", None) is not getattr(head, "weight", 0):
        return []
    return [n for n, m in model.named_modules() if m is embedding or m is head]


def warn_of_tied(changed: list[str], others: list[str]) -> None:
    """Say what an adapter on tied weights does to them; PEFT's own warning is for developers."""
    if others:
        message = (
            f"{changed[0]} and {others[0]} share one weight in this model, and the adapter changes {changed[0]} alone: "
            "saved and loaded as an adapter it is right, and merged into the shared weight it would change both"
        )
    else:
        message = f"{' and '.join(changed)} share one weight in this model, and each gets an adapter of its own"
    fix = "keep the result an adapter, or leave both out of method.target_modules and method.modules_to_save"
    warn(Problem("tied-embeddings", message, "method", fix=fix))


def layer_of(name: str) -> int | None:
    """The layer of a module, as PEFT reads it from the full name."""
    found = re.match(r".*?\.[^.]*\.(\d+)\.", name)
    return int(found[1]) if found else None
