"""Copies to go back to: what one guard rewinds, no other brings back."""

from types import SimpleNamespace

import torch

from tuneforge.callbacks.nan_guard import NanGuard
from tuneforge.callbacks.spike_guard import SpikeGuard
from tuneforge.context import Context
from tuneforge.data.batches import Rows
from tuneforge.data.encode import Document


class _Module(torch.nn.Linear):
    """Weights that hold the step they are of."""

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False)
        self.model = self
        method = SimpleNamespace(state=lambda model: {}, load_state=lambda model, state: None)
        self.context = SimpleNamespace(method=method)


def at_step(trainer, module, step):
    trainer.global_step = step
    with torch.no_grad():
        module.weight.fill_(float(step))


def rewinding():
    """Two guards that keep copies, and the run they watch."""
    module = _Module()
    optimizer = torch.optim.AdamW([{"params": module.parameters(), "initial_lr": 1e-3}])
    spike = SpikeGuard(action="repair", keep_every=10, rewind_steps=20)
    nan = NanGuard(action="repair", keep_every=10)
    trainer = SimpleNamespace(optimizers=[optimizer], callbacks=[spike, nan], global_step=0)
    return trainer, module, spike.kept, nan.kept


def test_a_rewind_after_another_one_does_not_restore_newer_weights():
    trainer, module, spikes, nans = rewinding()
    for step in (0, 10, 20, 30):
        at_step(trainer, module, step)
        for kept in (spikes, nans):
            kept.take(trainer, module)
            kept.confirm(step + 1)
    at_step(trainer, module, 35)
    assert spikes.restore(trainer, module, 35 - 20) == 10
    assert module.weight.item() == 10
    at_step(trainer, module, 38)
    assert nans.restore(trainer, module, 38) == 10  # not 30: those steps are left out
    assert module.weight.item() == 10
    at_step(trainer, module, 40)
    for kept in (spikes, nans):
        kept.take(trainer, module)
        kept.confirm(41)
    at_step(trainer, module, 45)
    assert nans.restore(trainer, module, 45) == 40


def test_batches_seen_before_training_keep_documents_apart_as_training_does():
    """Flash attention separates documents in a batch of one row only; EVA and CorDA look at such batches."""
    documents = [Document(torch.arange(3).numpy() + i, torch.arange(3).numpy() + i, "") for i in range(8)]
    rows = Rows(documents, 8, packing=True)
    for attention, shape in (("sdpa", 4), ("flash_attention_2", 1)):
        context = SimpleNamespace(
            config=SimpleNamespace(model=SimpleNamespace(attn_implementation=attention), seed=0),
            tokenizer=SimpleNamespace(pad_token_id=0),
            train_rows=rows,
        )
        context.collate = lambda given=context: Context.collate(given)
        (batch,) = Context.first_batches(context, 1, torch.device("cpu"))
        assert batch["input_ids"].shape[0] == shape
