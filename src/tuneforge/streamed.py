"""Weights read part by part: a model is built without any, split over the devices, and each part read where it goes.

`from_pretrained` would put the whole model into the host memory of every process of a machine.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from tuneforge.locate import locate
from tuneforge.model_building import from_config
from tuneforge.schema.model import Model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Files:
    """The weights of a model on disk, by name; only what is asked for is read."""

    def __init__(self, model: Model) -> None:
        options = {"revision": model.revision, "_raise_exceptions_for_missing_entries": False}
        path = locate(model.path)
        index = cached_file(path, INDEX, **options)
        self.places: dict[str, Path] = {}
        if index is not None:
            names: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            found = {file: Path(cached_file(path, file, **options) or "") for file in set(names.values())}
            self.places = {name: found[file] for name, file in names.items()}
        elif (single := cached_file(path, WEIGHTS, **options)) is not None:
            with safe_open(single, "pt") as opened:
                self.places = dict.fromkeys(opened.keys(), Path(single))
        self._opened: tuple[Path, Any] | None = None
        self._stack = ExitStack()

    def read(self, name: str, part: tuple[slice, ...]) -> Tensor:
        """Part of a weight, as it is stored."""
        place = self.places[name]
        if self._opened is None or self._opened[0] != place:
            # What was read of a file stays mapped, and resident, as long as it is open: one at a time.
            self.close()
            self._opened = place, self._stack.enter_context(safe_open(place, "pt"))
        found: Tensor = self._opened[1].get_slice(name)[part]
        return found

    def close(self) -> None:
        """Let go of the open file, and of what of it is mapped."""
        self._stack.close()
        self._opened = None


class Streamed:
    """A model without weights, and where its weights are."""

    def __init__(self, model: PreTrainedModel, files: Files, names: Mapping[int, str]) -> None:
        self.model = model
        self.files = files
        self._names = names

    @classmethod
    def of(cls, model: Model, config: PretrainedConfig, dtype: torch.dtype) -> "Streamed | None":
        """The causal model of a config; None where its files have other names than its weights, or none.

        Until it is split, its weights are one zero each, seen at the size they will have: methods that look at shapes
        alone can be applied.
        """
        files = Files(model)
        with init_empty_weights(include_buffers=False):
            options = {"dtype": dtype, "attn_implementation": model.attention_argument}
            built = from_config(AutoModelForCausalLM, model, config, **options)
        names: dict[int, str] = {}
        made: dict[nn.Parameter, nn.Parameter] = {}
        for name, parameter in list(built.named_parameters(remove_duplicate=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(torch.zeros((), dtype=dtype).expand(parameter.shape))
            _put(built, name, made[parameter])
            if name in files.places:
                names[id(made[parameter])] = name
        built.config.name_or_path = locate(model.path)
        return cls(built.eval(), files, names) if len(names) == len(made) else None

    def names_in(self, model: nn.Module) -> dict[str, str]:
        """Name in the changed model -> name in the files, of the weights that are still to be read, file by file."""
        names = {n: self._names[id(p)] for n, p in model.named_parameters() if is_hollow(p)}
        return dict(sorted(names.items(), key=lambda item: self.files.places[item[1]]))


def is_hollow(parameter: Tensor) -> bool:
    """Whether it is one number seen as many."""
    return parameter.numel() > 1 and not any(parameter.stride())


def without_memory(model: nn.Module) -> None:
    """Turn hollow weights into ones on meta, which can be split."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if is_hollow(parameter):
            if parameter not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            _put(model, name, made[parameter])


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, own = name.rpartition(".")
    model.get_submodule(owner)._parameters[own] = parameter
