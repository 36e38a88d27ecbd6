"""Checks of the very batches and weights a run is about to train on, before it does."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tuneforge.artifacts.room import check_room, sizes
from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.compat import is_4bit
from tuneforge.console import say, warn
from tuneforge.data.encode import IGNORE, Document, last_label
from tuneforge.data.labelled import LabelledRows
from tuneforge.errors import TuneforgeError
from tuneforge.model_checks import rotary_limits
from tuneforge.world import is_main_process

CONSOLIDATION_BYTES = 8
"""`regularise.ewc` keeps a weight's start and importance, two fp32 numbers."""


def check_labels(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, train_on: str, end_ids: Sequence[int] = ()
) -> None:
    """Print the share of supervised tokens; warn where answers have no end or a document starts with two BOS.

    `end_ids` end a turn, whether they are registered as special tokens or not.
    """
    tokens = sum(len(d.input_ids) for d in documents)
    labels = sum(d.num_labels for d in documents)
    say(f"{len(documents):,} documents, {tokens:,} tokens, {labels / tokens:.0%} of them supervised")
    ending = {*tokenizer.all_special_ids, *end_ids}
    ends = [d for d in documents if last_label(d) in ending]
    if train_on == "assistant" and len(ends) < 0.5 * len(documents):
        warn(
            "most answers do not end in an end-of-turn token, so the tuned model would not know when to stop; "
            "try model.chat_template=plain"
        )
    bos = tokenizer.bos_token_id
    doubled = [d for d in documents if bos is not None and list(d.input_ids[:2]) == [bos, bos]]
    if doubled:
        raise TuneforgeError(
            "two-bos",
            f"{len(doubled)} documents start with two BOS tokens ({doubled[0].origin} first)",
            path="model.chat_template",
            fix="remove the BOS token from the rows or from the template: one of them is enough",
        )


def check_batch(batch: Any) -> None:
    """Assert of a collated batch that it has labels, and that each is the token after it in the same document."""
    labels, ids, positions = batch["labels"], batch["input_ids"], batch["position_ids"]
    supervised = labels != IGNORE
    assert int(supervised.sum()) <= int(batch["num_labels"]), "the step has fewer labels than this batch of it"
    assert int(batch["num_labels"]) > 0, "the optimizer step has no supervised token"
    assert not bool(supervised[:, -1].any()), "the last token of a row has a label and nothing after it"
    shown = supervised[:, :-1]
    assert bool((labels[:, :-1] == ids[:, 1:])[shown].all()), "a label is not the token that follows"
    assert bool((positions[:, 1:] == positions[:, :-1] + 1)[shown].all()), "a label crosses into another document"


def check_labelled_batch(batch: Any) -> None:
    """Assert of a collated batch of texts that each has a label and tokens, with padding on the right alone."""
    labels, mask = batch["labels"], batch["attention_mask"]
    assert len(labels) <= int(batch["num_labels"]), "the step has fewer texts than this batch of it"
    assert bool((labels != IGNORE).all()), "a text has no label"
    assert bool((mask[:, 0] == 1).all()), "a text has no tokens, or padding in front"
    assert bool((mask[:, 1:] <= mask[:, :-1]).all()), "a text has padding inside"


class StartChecks(pl.Callback):
    """Once, on the loaded model: its checkpoints fit on the disk, documents in a packed row do not see each other."""

    def __init__(self) -> None:
        self.room_checked = False
        self.done = False
        self.batch_checked = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Before the first evaluation."""
        self._room(trainer, pl_module)
        self._run(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Before training where no evaluation came first (a resumed run), and that train mode is really on."""
        self._room(trainer, pl_module)
        self._run(trainer, pl_module)
        asleep = [n for n, m in pl_module.model.named_modules() if not m.training]
        assert not asleep, (
            f"{len(asleep)} modules are in eval mode, {asleep[:3]} among them: checkpointing would be off"
        )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """On the first collated batch: each label is the next token of its own document, or that of its text."""
        if not self.batch_checked:
            self.batch_checked = True
            labelled = isinstance(pl_module.context.train_rows, LabelledRows)
            (check_labelled_batch if labelled else check_batch)(batch)

    def _room(self, trainer: pl.Trainer, module: Any) -> None:
        """What checkpoints are to be like, and, on the first process, whether there is room for them."""
        if self.room_checked:
            return
        self.room_checked = True
        context = module.context
        kept = [c for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
        state_bytes = context.config.optim.state_bytes
        if context.config.regularise.ewc:
            state_bytes += CONSOLIDATION_BYTES
        exported = module.model if context.method.trains_base else None
        stored = getattr(torch, context.settled.base_dtype).itemsize
        wanted = sizes(module.model, state_bytes, exported, stored)
        in_parts = [c.decide_form(trainer, wanted.checkpoint) for c in kept]
        if is_main_process():
            check_room(
                context.folder.checkpoints,
                wanted,
                sum(c.keep_best + c.keep_last for c in kept),
                copied=any(c.background.asynchronous for c in kept),
                hosts=context.machine.num_nodes if any(in_parts) else 1,
            )

    def _run(self, trainer: pl.Trainer, module: Any) -> None:
        if self.done or not module.context.config.data.packing:
            return
        self.done = True
        documents = short_and_long(module.context.train_rows.documents, reach(module.context.architecture))
        if documents is None:
            return
        # Outside of Lightning's autocast, flash attention refuses weights stored in fp32.
        with trainer.precision_plugin.forward_context():
            error = packing_error(module.model, documents, module.device)
        context = module.context
        limit = 1e-4 if trainer.precision == "32-true" and context.method.exact else 2e-2
        if error > limit:
            raise TuneforgeError(
                "packing-leaks",
                f"documents in one row see each other: packed logits differ from separate ones by {error:.1%} "
                f"(attn_implementation={module.context.config.model.attn_implementation})",
                path="data.packing",
                fix="set data.packing=false",
            )


def reach(architecture: PretrainedConfig) -> int:
    """Tokens after which the model treats positions differently: a sliding window ends, rotary frequencies change."""
    text = architecture.get_text_config()
    window = getattr(text, "sliding_window", None)
    return max(
        [0, *(limit for _, limit in rotary_limits(architecture)), *([window] if isinstance(window, int) else [])]
    )


def short_and_long(documents: Sequence[Document], reach: int = 0, longest: int = 256) -> list[Document] | None:
    """The shortest document and the longest, cut to `longest` tokens, or to a few beyond `reach` if it has those.

    None where there are not two different ones.
    """
    ordered = sorted(documents, key=lambda d: len(d.input_ids))
    first = ordered[0]
    others = [d for d in reversed(ordered) if not np.array_equal(d.input_ids, first.input_ids)]
    if not others:
        return None
    far = next((d for d in others if len(d.input_ids) > reach), None) if reach else None
    limits = (longest, longest if far is None else max(longest, reach + 16))
    pair = zip((first, far or others[-1]), limits, strict=True)
    return [Document(d.input_ids[:limit], d.labels[:limit], d.origin) for d, limit in pair]


@torch.no_grad()
def packing_error(model: nn.Module, documents: Sequence[Document], device: torch.device) -> float:
    """Root mean square difference of packed and separate logits, relative to the logits' own."""
    was_training = {m: m.training for m in model.modules()}
    for module in model.modules():
        module.training = is_4bit(module)
    try:
        separate = torch.cat([_logits(model, [d], device) for d in documents])
        packed = _logits(model, documents, device)
    finally:
        for module, training in was_training.items():
            module.training = training
    return float((packed - separate).pow(2).mean().sqrt() / separate.pow(2).mean().sqrt())


def _logits(model: nn.Module, documents: Sequence[Document], device: torch.device) -> Tensor:
    ids = torch.from_numpy(np.concatenate([d.input_ids for d in documents])).to(device)
    positions = torch.cat([torch.arange(len(d.input_ids), device=device) for d in documents])
    output = model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    return output.logits[0].float()  # type: ignore[no-any-return]
