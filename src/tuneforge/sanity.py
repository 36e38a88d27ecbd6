"""Before a run: one batch is learnt by heart. A model that cannot do that learns nothing from many batches either."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from tuneforge.build import Loaders
from tuneforge.console import say
from tuneforge.context import Context
from tuneforge.errors import RefusedError
from tuneforge.sharding import clip_gradients


def overfit_one_batch(context: Context, trainer: pl.Trainer, module: Any, loaders: Loaders) -> list[float]:
    """Train on the run's first micro-batch until its loss has fallen enough, then put everything back, bit for bit.

    Returns:
        The loss at each step.

    Raises:
        RefusedError: it has not fallen to `sanity.below` of the first within `sanity.steps` steps.
    """
    settings = context.config.sanity
    batch = {k: v.to(module.device) for k, v in _first_batch(context, loaders).items()}
    with _put_back(module.model):
        losses = _train(context, trainer, module, batch)
    share = losses[-1] / losses[0]
    if not share <= settings.below:
        raise RefusedError(
            "cannot-overfit",
            f"one batch could not be learnt by heart: its loss went from {losses[0]:.3f} to {losses[-1]:.3f} "
            f"({share:.0%}) in {len(losses)} steps, and {settings.below:.0%} is wanted",
            path="sanity.overfit_one_batch",
            fix="likely causes, in this order: optim.lr too low, too high or nan; an adapter that reaches too little "
            "(method.r, method.target_modules); the wrong chat template or mask (data.train_on); broken weights",
        )
    say(f"sanity: one batch learnt by heart, loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
    return losses


def _train(context: Context, trainer: pl.Trainer, module: Any, batch: Any) -> list[float]:
    """Until the loss is down, or the steps are spent; always at the peak rate, without a schedule."""
    settings, losses = context.config.sanity, []
    optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    module.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    count = int(module.count(batch))
    for _ in range(settings.steps):
        with trainer.precision_plugin.forward_context():
            loss = module.loss_sum(batch) / count
        optimizer.zero_grad()
        loss.backward()
        if context.config.trainer.gradient_clip_val:
            clip_gradients(parameters, context.config.trainer.gradient_clip_val)
        optimizer.step()
        losses.append(float(loss.detach()))
        if losses[-1] <= settings.below * losses[0]:
            break
    optimizer.zero_grad()
    return losses


def _first_batch(context: Context, loaders: Loaders) -> dict[str, torch.Tensor]:
    """What the first device sees first; the same on every device, so that all decide alike."""
    batch: Any = loaders.collate([context.train_rows[i] for i in next(iter(context.sampler(rank=0)))])
    return dict(batch)


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Within, weights and buffers may change; afterwards they, and every generator, are what they were."""
    kept = {n: t.detach().clone() for n, t in _changing(model)}
    states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in _changing(model):
                tensor.copy_(kept[name])
        for parameter in model.parameters():
            parameter.grad = None
        torch.set_rng_state(states[0])
        if states[1]:
            torch.cuda.set_rng_state_all(states[1])


def _changing(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What training can change: trained weights, and buffers."""
    yield from ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    yield from model.named_buffers()
