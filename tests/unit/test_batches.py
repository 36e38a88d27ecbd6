"""Packing, the order of rows, and what a batch holds."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tuneforge import settle
from tuneforge.callbacks.start_checks import check_batch
from tuneforge.data.batches import Collate, EvalSampler, Rows, StepSampler
from tuneforge.data.encode import IGNORE, Document
from tuneforge.data.packing import pack
from tuneforge.schema.training import Batch


def document(*ids: int, prompt: int = 1) -> Document:
    labels = np.array([IGNORE] * prompt + list(ids[prompt:]))
    return Document(np.array(ids), labels, "t")


def test_packing_puts_each_document_in_exactly_one_row_within_its_length():
    lengths = [random.Random(3).randint(1, 64) for _ in range(500)]
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 64


def test_packing_is_nearly_full_and_beats_first_come_first_served():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(4, 0.8, 2000).astype(int) + 1, 512).tolist()
    rows = pack(lengths, 512)
    assert sum(lengths) / (len(rows) * 512) > 0.97


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a row holds 4"):
        pack([3, 5], 4)


def test_labels_are_shifted_inside_each_document_and_positions_restart():
    rows = Rows([document(5, 6, 7), document(8, 9)], 8, packing=True)
    ids, labels, positions, _ = rows[0]
    assert ids.tolist() == [5, 6, 7, 8, 9]
    assert labels.tolist() == [6, 7, IGNORE, 9, IGNORE]
    assert positions.tolist() == [0, 1, 2, 0, 1]


def test_padding_has_no_label_and_is_a_document_of_its_own():
    rows = Rows([document(5, 6, 7), document(8, 9)], 3, packing=True)
    batch = Collate(pad_id=0)([rows[i] for i in range(len(rows))])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert (batch["labels"] != IGNORE).sum() == 3


def test_flattened_rows_are_one_row_without_padding():
    rows = Rows([document(5, 6, 7), document(8, 9)], 3, packing=True)
    batch = Collate(pad_id=0, flatten=True)([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]


def sampler(**changes) -> StepSampler:
    facts = {"rows_per_step": 4, "accumulate": 2, "world_size": 1, "rank": 0, "seed": 1, "num_steps": 5}
    return StepSampler(np.arange(1, 14), **{**facts, **changes})


def take(sampler: StepSampler, count: int) -> list[list[tuple[int, int]]]:
    stream = iter(sampler)
    return [next(stream) for _ in range(count)]


def test_every_row_comes_once_before_any_comes_twice():
    rows = [r for micro in take(sampler(), 13) for r, _ in micro]
    assert sorted(rows[:13]) == list(range(13))
    assert sorted(rows[13:26]) == list(range(13))
    assert rows[:13] != rows[13:26]


def test_a_step_knows_the_labels_of_all_its_micro_batches():
    micros = take(sampler(), 2)
    rows = [r for micro in micros for r, _ in micro]
    assert {labels for micro in micros for _, labels in micro} == {sum(r + 1 for r in rows)}


def test_going_on_at_a_step_gives_what_the_uninterrupted_stream_gives():
    assert take(sampler(), 20)[6:] == take(sampler(start_step=3), 14)


def test_devices_share_a_step_without_overlap_and_cover_what_one_device_would_take():
    one = [{r for r, _ in micro} for micro in take(sampler(accumulate=1), 4)]
    two = [take(sampler(accumulate=1, world_size=2, rank=rank), 4) for rank in (0, 1)]
    for step in range(4):
        shares = [{r for r, _ in two[rank][step]} for rank in (0, 1)]
        assert not shares[0] & shares[1]
        assert shares[0] | shares[1] == one[step]


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (2, 1), (2, 2), (3, 1), (8, 1)])
def test_a_step_takes_the_same_rows_on_any_number_of_devices(devices, accumulate):
    one = [{r for r, _ in micro} for micro in take(sampler(rows_per_step=3, accumulate=1), 4)]
    spread = {"rows_per_step": 3, "accumulate": accumulate, "world_size": devices}
    shares = [take(sampler(**spread, rank=rank), 4 * accumulate) for rank in range(devices)]
    for step in range(4):
        micros = [m for share in shares for m in share[step * accumulate : (step + 1) * accumulate]]
        assert all(micros)
        sizes = [sum(r != Rows.EMPTY for r, _ in micro) for micro in micros]
        assert max(sizes) - min(sizes) <= 1
        rows = [r for micro in micros for r, _ in micro if r != Rows.EMPTY]
        assert sorted(rows) == sorted(one[step])


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ({"effective": 32}, None),
        ({"effective": 30}, {"effective": 40}),
        ({"effective": 8}, {"effective": 20}),
        ({"effective_tokens": 420}, None),
        ({"effective_tokens": 64}, {"effective_tokens": 200}),
    ],
)
def test_a_step_that_misses_what_was_asked_for_is_told_and_the_advice_meets_it(asked, advice):
    rows = Rows([document(*range(1, 11)) for _ in range(60)], 200, packing=True)  # three of 20 documents

    def told(**batch):
        config = SimpleNamespace(batch=Batch(**batch))
        step = settle._rows_per_step(config, rows)
        settled = SimpleNamespace(rows_per_step=step, documents_per_step=20.0 * step, world_size=1)
        return list(settle.batch_warnings(config, settled, rows))

    if advice is None:
        assert told(**asked) == []
        return
    (problem,) = told(**asked)
    ((key, value),) = advice.items()
    assert (problem.code, problem.path) == ("batch-missed", f"batch.{key}")
    assert f"batch.{key}={value}" in problem.fix
    assert told(**advice) == []


def test_eval_rows_come_once_over_all_devices_and_equally_often_on_each():
    shares = [list(EvalSampler(7, 2, world_size=3, rank=rank)) for rank in range(3)]
    assert len({len(s) for s in shares}) == 1
    rows = [r for share in shares for batch in share for r in batch if r != Rows.EMPTY]
    assert sorted(rows) == list(range(7))


def test_an_empty_row_has_nothing_to_learn():
    batch = Collate(0)([Rows([document(1, 2)], 4, packing=True)[Rows.EMPTY]])
    assert torch.all(batch["labels"] == IGNORE)


def test_the_collated_batch_is_checked_and_a_wrong_mask_is_noticed():
    rows = Rows([document(5, 6, 7), document(8, 9)], 8, packing=True)
    batch = Collate(0)([rows[(0, 3)]])
    check_batch(batch)
    batch["labels"][0, 2] = batch["input_ids"][0, 3]  # across the border of two documents
    with pytest.raises(AssertionError):
        check_batch(batch)
