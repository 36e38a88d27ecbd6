"""Partial fine-tuning: the last layers, or the parameters that a pattern names."""

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneforge.bounded import matching
from tuneforge.errors import TuneforgeError
from tuneforge.heads import head_modules, in_head
from tuneforge.method import Method
from tuneforge.methods.modules import beyond_text, num_layers
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
        chosen = self._chosen(model)
        # A classifier's head is new, so that nothing is learnt without it.
        for parameter in [*chosen, *(p for name, p in model.named_parameters() if in_head(name, heads))]:
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
        return model

    def check(self, model: PreTrainedModel) -> None:
        """Refuse layers and patterns that are not there."""
        self._chosen(model)

    def _chosen(self, model: PreTrainedModel) -> list[nn.Parameter]:
        unused = beyond_text(model)
        reached = {n: p for n, p in model.named_parameters() if n.rpartition(".")[0] not in unused}
        if self.pattern is None:
            last = self._last(model)
            # The first number of a name is its layer; an expert inside has a number too.
            layers = {n: re.search(r"\.(\d+)\.", n) for n in reached}
            return [p for n, p in reached.items() if (found := layers[n]) and int(found[1]) in last]
        chosen = [reached[n] for n in matching(self.pattern, reached, "method.pattern", anywhere=True)]
        if not chosen:
            raise TuneforgeError(
                "unknown-module",
                f"{self.pattern!r} matches no parameter of this model",
                path="method.pattern",
                fix=f"names are like {', '.join(list(reached)[1:4])}",
            )
        return chosen

    def _last(self, model: PreTrainedModel) -> range:
        count = num_layers(model)
        if self.last_layers > count:
            raise TuneforgeError(
                "no-such-layer",
                f"is {self.last_layers}, and the model has {count} layers",
                path="method.last_layers",
                fix=f"set method.last_layers={count} or less, or method=full",
            )
        return range(count - self.last_layers, count)
