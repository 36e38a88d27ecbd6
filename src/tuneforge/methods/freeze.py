"""Partial fine-tuning: the last layers, or the parameters that a pattern names."""

import re
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tuneforge.errors import TuneforgeError
from tuneforge.heads import head_modules, in_head
from tuneforge.method import Method
from tuneforge.schema.types import PositiveInt


@dataclass(frozen=True, kw_only=True)
class Freeze(Method):
    """Trained weights are kept in fp32, the frozen ones in the base's own type."""

    trains_base = True
    footprint = "layers"

    last_layers: PositiveInt = 2
    """How many of the last layers are trained."""
    pattern: str | None = None
    """A pattern that the full names of trained parameters match, instead of the last layers."""

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PreTrainedModel:
        """The model with the chosen parameters trainable.

        Raises:
            TuneforgeError: more layers than there are, or a pattern that matches nothing.
        """
        model.requires_grad_(False)
        heads = head_modules(model)
        chosen = [p for name, p in model.named_parameters() if re.search(self._pattern(model), name)]
        if not chosen:
            names = [name for name, _ in model.named_parameters()]
            raise TuneforgeError(
                "unknown-module",
                f"{self.pattern!r} matches no parameter of this model",
                path="method.pattern",
                fix=f"names are like {', '.join(names[1:4])}",
            )
        # A classifier's head is new, so that nothing is learnt without it.
        for parameter in [*chosen, *(p for name, p in model.named_parameters() if in_head(name, heads))]:
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
        return model

    def _pattern(self, model: PreTrainedModel) -> str:
        if self.pattern is not None:
            return self.pattern
        count = int(model.config.get_text_config().num_hidden_layers)
        if self.last_layers > count:
            raise TuneforgeError(
                "no-such-layer",
                f"is {self.last_layers}, and the model has {count} layers",
                path="method.last_layers",
                fix=f"set method.last_layers={count} or less, or method=full",
            )
        return rf"\.({'|'.join(str(n) for n in range(count - self.last_layers, count))})\."
