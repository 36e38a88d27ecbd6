"""Mixtures of experts: the loss term that keeps the routers from sending every token to the same few experts."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tuneforge.data.batches import Batch, real_tokens


class RouterBalance:
    """coefficient x the load-balancing loss of the Switch Transformer (arXiv 2101.03961, equations 4 to 6).

    It is transformers' own function, over the real tokens of a micro-batch: transformers tells padding by the attention
    mask, which a packed row must not have, and would count it.
    """

    def __init__(self, base: PreTrainedModel, coefficient: float) -> None:
        self.base = base
        self.coefficient = coefficient
        self._logits: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, base: PreTrainedModel, wanted: Literal["auto"] | float) -> "RouterBalance | None":
        """For a model with routers; None for one without, or where the coefficient is 0. `auto` is the model's own."""
        own = getattr(base.config.get_text_config(), "router_aux_loss_coef", None)
        coefficient = own if wanted == "auto" else wanted
        # Llama 4 has a coefficient in its config, and a forward pass that gives no router logits.
        given = "output_router_logits" in inspect.signature(base.forward).parameters
        return cls(base, float(coefficient)) if own is not None and given and coefficient else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, the router logits of a forward pass are kept for `loss`."""

        def ask(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, "output_router_logits": True}

        def keep(_: Any, args: tuple[Any, ...], output: Any) -> None:
            self._logits = output.router_logits

        handles = (
            self.base.register_forward_pre_hook(ask, with_kwargs=True),
            self.base.register_forward_hook(keep),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, batch: Batch) -> Tensor:
        """The term for the micro-batch that was watched last; shape []."""
        logits, self._logits = self._logits, ()
        real = real_tokens(batch)
        if not real.any():
            # A device without a row in this pass: upstream's mean over no tokens would be NaN.
            return logits[0].sum() * 0.0
        loss = load_balancing_loss_func(
            logits,  # type: ignore[arg-type]  # upstream writes tuple[Tensor] and means any number
            logits[0].shape[-1],
            int(self.base.config.get_text_config().num_experts_per_tok),
            real,
        )
        assert isinstance(loss, Tensor)
        return self.coefficient * loss
