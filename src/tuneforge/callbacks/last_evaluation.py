"""The last weights are evaluated too, whatever the interval."""

from typing import Any

import lightning.pytorch as pl


class LastEvaluation(pl.Callback):
    """Lightning evaluates every N batches and would end a run of 852 steps with its evaluation at 774."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last step: make the evaluation due now."""
        if trainer.global_step >= trainer.max_steps:
            trainer.val_check_batch = batch_idx + 1
