"""(IA)3: three trained vectors a layer that scale keys, values and the MLP's inside (arXiv 2205.05638)."""

from dataclasses import dataclass
from typing import Literal

from peft import IA3Config
from transformers import PreTrainedModel

from tuneforge.errors import TuneforgeError
from tuneforge.methods.base import PeftMethod
from tuneforge.methods.modules import (
    beyond_text,
    check_modules_to_save,
    check_targets,
    linear_modules,
    linear_names,
    matching,
    routers,
    transposed,
)

KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "c_attn", "query_key_value", "qkv_proj", "Wqkv")
"""Names of the projections to keys and values; in some architectures one matrix makes queries too."""
DOWN = ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2", "output.dense", "mlp.down_proj")
"""Names of the MLP's last matrix, whose input is scaled."""


@dataclass(frozen=True, kw_only=True)
class Ia3(PeftMethod):
    """Trains a ten-thousandth of the weights; good with very few rows."""

    footprint = "vectors"

    target_modules: Literal["auto"] | list[str] = "auto"
    """Modules that are scaled. auto: keys, values and the MLP's last matrix, as in the paper."""
    feedforward_modules: list[str] | None = None
    """Those of them whose input is scaled instead of their output. null: the MLP's last matrix."""
    modules_to_save: list[str] | None = None
    """Names of modules that are trained in full and saved with the adapter, such as a new head."""

    def peft_config(self, model: PreTrainedModel) -> IA3Config:
        """(IA)3's.

        Raises:
            TuneforgeError: auto finds no such modules, or a name matches none.
        """
        down = _present(model, DOWN) if self.feedforward_modules is None else list(self.feedforward_modules)
        if self.feedforward_modules:
            check_targets(model, down, "method.feedforward_modules")
        if self.target_modules == "auto":
            targets = [*_present(model, KEYS_AND_VALUES), *down]
        else:
            targets = list(self.target_modules)
            check_targets(model, targets)
            outside = [name for name in self.feedforward_modules or [] if name not in targets]
            if outside:
                raise TuneforgeError(
                    "unknown-module",
                    f"names {', '.join(map(repr, outside))}, which method.target_modules does not",
                    path="method.feedforward_modules",
                    fix=f"add it there, or name some of {', '.join(targets)}",
                )
        if not targets:
            known = sorted(linear_names(model))
            raise TuneforgeError(
                "unknown-module",
                "auto knows no names of this model's keys, values and MLP",
                path="method.target_modules",
                fix=f"name them, of {', '.join(known)}; and the MLP's last one in method.feedforward_modules",
            )
        down = [d for d in down if d in targets]
        matched, unused = matching(model, targets), {*routers(model), *beyond_text(model)}
        if any(name in unused for names in matched.values() for name in names):
            # The names are found in a part of the model that is left alone, too.
            down = [n for d in down for n in matched[d] if n not in unused]
            targets = [n for names in matched.values() for n in names if n not in unused]
        return IA3Config(
            target_modules=targets,
            feedforward_modules=down,
            modules_to_save=check_modules_to_save(model, self.modules_to_save),
            fan_in_fan_out=transposed(model),
        )


def _present(model: PreTrainedModel, names: tuple[str, ...]) -> list[str]:
    there = linear_modules(model)
    return [name for name in names if any(n.endswith(f".{name}") for n in there)]
