"""The loss is the one that others compute, whatever is packed, skipped, accumulated or recomputed."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import ARCHITECTURES, ROUNDING, difference, documents
from tuneforge.callbacks.start_checks import packing_error
from tuneforge.data.batches import Collate, Rows
from tuneforge.data.encode import IGNORE, Document
from tuneforge.objectives.causal_lm import rows_before_head


def load(folder, attention: str = "sdpa"):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()


def our_loss(model, rows: Rows) -> torch.Tensor:
    batch = Collate(0)([rows[i] for i in range(len(rows))])
    keep = batch["labels"] != IGNORE
    with rows_before_head(model, keep):
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), batch["labels"][keep], reduction="sum") / keep.sum()


def by_hand(model, made: list[Document]) -> torch.Tensor:
    """One document at a time, all logits, transformers' own masking by -100."""
    total, count = torch.zeros(()), 0
    for d in made:
        logits = model(input_ids=torch.from_numpy(d.input_ids)[None]).logits[0, :-1]
        labels = torch.from_numpy(d.labels)[1:]
        total = total + cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
        count += d.num_labels
    return total / count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("packing", [True, False])
def test_packed_and_skipped_equals_one_document_at_a_time(model_folders, architecture, packing):
    model, made = load(model_folders[architecture]), documents()
    ours, hand = our_loss(model, Rows(made, 64, packing)), by_hand(model, made)
    assert ours.item() == pytest.approx(hand.item(), rel=1e-5)
    gradients = []
    for loss in (ours, hand):
        model.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert difference(*gradients) < ROUNDING
    assert gradients[0].norm() > 0


# transformers 5.23 has no flex_attention for GPT-2.
@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        # Dynamo trips over its own deprecation warnings when they are errors (torch 2.13).
        pytest.param(
            *("llama", "flex_attention"),
            marks=[pytest.mark.soak, pytest.mark.filterwarnings("ignore::DeprecationWarning")],
        ),
        ("gpt2", "sdpa"),
        ("gpt2", "eager"),
    ],
)
def test_documents_of_a_row_do_not_see_each_other(model_folders, architecture, attention):
    model = load(model_folders[architecture], attention)
    assert packing_error(model, documents(2), torch.device("cpu")) < 1e-4


def test_the_packing_check_notices_a_leak(model_folders):
    model = load(model_folders["llama"])
    forward = model.forward

    def leaking(*args, **kwargs):
        # What passing an attention mask does: documents are no longer told apart by their positions.
        return forward(*args, **kwargs, attention_mask=torch.ones_like(kwargs["input_ids"]))

    model.forward = leaking
    assert packing_error(model, documents(2), torch.device("cpu")) > 1e-2


def test_the_loss_is_trls(model_folders, tmp_path):
    """TRL's SFTTrainer on the same tokens and masks."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, made = load(model_folders["llama"]), documents()
    dataset = Dataset.from_list(
        [
            {"input_ids": d.input_ids.tolist(), "completion_mask": (d.labels != IGNORE).astype(int).tolist()}
            for d in made
        ]
    )
    config = SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=len(made), report_to=[], use_cpu=True, bf16=False,
        completion_only_loss=True, max_length=None, shuffle_dataset=False,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model_folders["llama"])
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model.eval(), batch)
    assert our_loss(load(model_folders["llama"]), Rows(made, 64, True)).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_label_outside_the_answer_changes_nothing_and_inside_it_does(model_folders):
    model, made = load(model_folders["llama"]), documents(1)
    before = our_loss(model, Rows(made, 64, True)).item()
    shifted = Document(made[0].input_ids, made[0].labels.copy(), "t")
    shifted.labels[-1] = 7
    assert our_loss(model, Rows([shifted], 64, True)).item() != pytest.approx(before, abs=1e-4)
