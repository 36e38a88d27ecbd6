"""Bottleneck adapters: small networks behind a layer's sublayers (arXiv 1902.00751, 2005.00247).

PEFT 0.21 has none, so they are a method of ours in PEFT's own frame: switching off, several adapters and saving are
PEFT's. `PeftModel.from_pretrained` loads them wherever this module has been imported. They cannot be merged: there is
a nonlinearity between base and adapter.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from tuneforge.errors import TuneforgeError
from tuneforge.heads import in_head
from tuneforge.methods.base import PeftMethod, named, refuse_idle
from tuneforge.methods.modules import (
    beyond_text,
    check_modules_to_save,
    check_targets,
    fused_experts,
    linear_modules,
    linear_names,
    matching,
    num_layers,
    routers,
)
from tuneforge.schema.types import Probability, Size

PEFT_TYPE: Any = "BOTTLENECK"
"""The name in PEFT's tables. `register_peft_method` takes members of a closed enum alone; but those are strings, and a
plain string is found in the tables as well (peft 0.21)."""


@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(PeftMethod):
    """Down, a nonlinearity, up, and the sublayer's output added; the way up starts at 0, and with it the change."""

    footprint = "bottleneck"

    placement: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    """pfeiffer: behind each MLP (arXiv 2005.00247); houlsby: behind each attention too (arXiv 1902.00751)."""
    reduction_factor: Size = 16
    """The model's width over the adapter's; 16 is the default of arXiv 2005.00247."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """The nonlinearity, by transformers' names."""
    dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    target_modules: Literal["auto"] | list[str] = "auto"
    """Modules that adapters stand behind. auto: those at the ends of the sublayers, by the structure of the model."""
    layers_to_transform: list[int] | None = None
    """Numbers of the layers that get adapters, from 0, where target_modules is auto; null: all."""
    modules_to_save: list[str] | None = None
    """Names of modules that are trained in full and saved with the adapter, such as a new head."""

    def peft_config(self, model: PreTrainedModel) -> "BottleneckConfig":
        """Ours, in PEFT's form.

        Raises:
            TuneforgeError: the ends of the sublayers cannot be found, or a name matches no module.
        """
        if self.target_modules == "auto":
            targets = sublayer_ends(model, self.placement, self.layers_to_transform)
        else:
            check_targets(model, list(self.target_modules))
            found = {n for names in matching(model, list(self.target_modules)).values() for n in names}
            kept = named(model, check_modules_to_save(model, self.modules_to_save))
            targets = sorted(n for n in found - {*beyond_text(model), *routers(model)} if not in_head(n, kept))
            _check_places(model, targets or sorted(found))
            refuse_idle(matching(model, list(self.target_modules)), targets)
            if self.layers_to_transform is not None:
                raise TuneforgeError(
                    "adapter-does-not-fit",
                    "picks layers where target_modules is auto, and method.target_modules names modules",
                    path="method.layers_to_transform",
                    fix="drop one of the two",
                )
        width = int(model.config.get_text_config().hidden_size)
        return BottleneckConfig(
            size=max(1, width // self.reduction_factor),
            activation=self.activation,
            dropout=self.dropout,
            target_modules=targets,
            modules_to_save=check_modules_to_save(model, self.modules_to_save),
            task_type="CAUSAL_LM",
        )


@dataclass
class BottleneckConfig(PeftConfig):
    """What PEFT saves as adapter_config.json."""

    size: int = 64
    """Width of the adapter."""
    activation: str = "gelu"
    """transformers' name of the nonlinearity."""
    dropout: float = 0.0
    """Dropout on the input."""
    target_modules: list[str] | set[str] | None = field(default=None)
    """Names, or ends of names, of the modules that adapters stand behind."""
    modules_to_save: list[str] | None = None
    """Names of modules that are trained in full."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PEFT_TYPE


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module whose output, [..., width], goes on through the active adapters."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Module, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activations: dict[str, Any] = {}
        self.dropouts: dict[str, float] = {}

    def update_layer(self, name: str, config: BottleneckConfig) -> None:
        """Put a new adapter in."""
        down, up = nn.Linear(self.width, config.size), nn.Linear(config.size, self.width)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        device = next(self.base_layer.parameters()).device
        self.bottleneck_down[name], self.bottleneck_up[name] = down.to(device), up.to(device)
        self.activations[name], self.dropouts[name] = ACT2FN[config.activation], config.dropout
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's output, changed by each active adapter in turn."""
        result: Any = self.base_layer(*args, **kwargs)
        # Attention gives its weights as well.
        hidden, *more = result if isinstance(result, tuple) else (result,)
        for name in () if self.disable_adapters else self.active_adapters:
            if name in self.bottleneck_down:
                hidden = hidden + self._change(name, hidden).to(hidden.dtype)
        return (hidden, *more) if isinstance(result, tuple) else hidden

    def _change(self, name: str, hidden: Tensor) -> Tensor:
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        dtype = down.get_parameter("weight").dtype
        dropped = nn.functional.dropout(hidden.to(dtype), self.dropouts[name], self.training)
        changed: Tensor = up(self.activations[name](down(dropped)))
        return changed

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Never.

        Raises:
            ValueError: always.
        """
        raise ValueError("bottleneck adapters cannot be merged: a nonlinearity stands between them and the base")


class BottleneckModel(BaseTuner):
    """PEFT's frame around a model with bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  upstream's attribute

    def _create_and_replace(  # type: ignore[override]
        self, config: BottleneckConfig, adapter_name: str, target: nn.Module, target_name: str, parent: Any, **_: Any
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, config)
            return
        width = int(self.model.config.get_text_config().hidden_size)
        layer = BottleneckLayer(target, width)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        setattr(parent, target_name, layer)


PEFT_TYPE_TO_CONFIG_MAPPING.setdefault(PEFT_TYPE, BottleneckConfig)
PEFT_TYPE_TO_TUNER_MAPPING.setdefault(PEFT_TYPE, BottleneckModel)
PEFT_TYPE_TO_PREFIX_MAPPING.setdefault(PEFT_TYPE, BottleneckModel.prefix)


def sublayer_ends(model: PreTrainedModel, placement: str, layers: list[int] | None = None) -> list[str]:
    """Full names of the modules whose outputs are added to the residual stream: of the MLPs, or of attention as well.

    They are a layer's last linear modules as wide as the model, under a name with "attn" or "attention" in it and
    outside of such names (Llama's o_proj and down_proj, GPT-2's two c_proj, BERT's two output.dense); where a layer's
    experts are fused, it is the module that holds them.

    Raises:
        TuneforgeError: a layer without such modules, or without the number asked for.
    """
    count = num_layers(model)
    width = int(model.config.get_text_config().hidden_size)
    unused = beyond_text(model)
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and n not in unused}
    stacks = [n for n, m in lists.items() if len(m) == count]
    wanted = range(count) if layers is None else layers
    if any(not 0 <= n < count for n in wanted) or not wanted:
        raise TuneforgeError(
            "no-such-layer",
            f"names {', '.join(map(str, wanted)) or 'no layer'}, and the model has layers 0 to {count - 1}",
            path="method.layers_to_transform",
            fix="name layers that are there, or drop the key",
        )
    found = []
    for number in wanted if stacks else ():
        prefix = f"{stacks[0]}.{number}."
        attention, mlp = _ends(model, prefix, width)
        found += [attention, mlp] if placement == "houlsby" else [mlp]
    if not found or None in found:
        raise TuneforgeError(
            "unknown-module",
            "auto does not find the ends of this model's sublayers",
            path="method.target_modules",
            fix=f"name them, of {', '.join(sorted(linear_names(model)))}",
        )
    return [name for name in found if name is not None]


def _ends(model: PreTrainedModel, prefix: str, width: int) -> tuple[str | None, str | None]:
    """The last modules of one layer's attention and MLP that write to the residual stream."""
    attention = mlp = None
    for name, module in linear_modules(model).items():
        if not name.startswith(prefix) or _out_features(module) != width:
            continue
        if "attn" in name.removeprefix(prefix).lower() or "attention" in name.removeprefix(prefix).lower():
            attention = name
        else:
            mlp = name
    fused = next((n for n in fused_experts(model) if n.startswith(prefix)), None)
    return attention, mlp if fused is None else prefix + fused.removeprefix(prefix).partition(".")[0]


def _check_places(model: PreTrainedModel, targets: list[str]) -> None:
    """Refuse modules that hidden states do not come out of.

    Raises:
        TuneforgeError: one has another width, no weights, lies around another, or is a whole model or list of layers.
    """
    width = int(model.config.get_text_config().hidden_size)
    for name in targets:
        module, why = model.get_submodule(name), ""
        if isinstance(module, nn.Linear | Conv1D) and _out_features(module) != width:
            why = f"{name} gives {_out_features(module)} numbers, and the model is {width} wide"
        elif not any(True for _ in module.parameters()):
            why = f"{name} has no weights"
        elif isinstance(module, PreTrainedModel | nn.ModuleList | nn.ModuleDict):
            why = f"{name} is no single module"
        elif around := [other for other in targets if other.startswith(f"{name}.")]:
            why = f"{name} holds {around[0]}, which has an adapter too"
        if why:
            raise TuneforgeError(
                "adapter-does-not-fit",
                f"{why}: an adapter stands behind one module that gives hidden states",
                path="method.target_modules",
                fix="name modules that write to the residual stream, or set method.target_modules=auto",
            )


def _out_features(module: nn.Module) -> int:
    """The width of what a linear module gives; Conv1D (GPT-2) calls it nf."""
    return int(module.out_features if isinstance(module, nn.Linear) else module.nf)  # type: ignore[arg-type]
