"""What trials make once: tokens, and the measure of the model that all of them start from."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from helpers import make_tokenizer, shown
from tuneforge import build, finish, shared
from tuneforge.cli import run
from tuneforge.data.encode import encode
from tuneforge.data.formats import Example


@pytest.fixture
def counted(monkeypatch):
    """How often rows were tokenised and a model was measured."""
    calls = Counter()

    def counting(module, name):
        made = getattr(module, name)

        def call(*arguments, **options):
            calls[name] += 1
            return made(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counting(build, "encode")
    counting(finish, "measure")
    return calls


def test_trials_that_start_alike_tokenise_and_measure_once_and_train_as_they_would_alone(
    sweep, counted, tiny, tmp_path
):
    """Ranks differ, and full fine-tuning starts from the same numbers; DoRA's are rounded otherwise."""
    swept = sweep("method.r=4,8", "optim.lr=1e-3")
    assert swept.code == 0, swept.said
    assert counted == {"encode": 2, "measure": 1 + 2}
    assert swept.record(0)["metrics"]["before"] == swept.record(1)["metrics"]["before"]
    assert not (swept.root / "shared").exists()

    alone = tmp_path / "alone"
    assert run([*tiny, "method.r=8", "optim.lr=1e-3", f"hydra.run.dir={alone}"]) == 0
    metrics = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone, swept.root / "1")
    ]
    assert shown(metrics[0]) == shown(metrics[1])
    record = json.loads((alone / "run.json").read_text())
    assert record["metrics"] == swept.record(1)["metrics"]

    counted.clear()
    swept = sweep("method=lora,full,dora", folder="methods")
    assert swept.code == 0, swept.said
    assert counted == {"encode": 2, "measure": 2 + 3}
    before = [swept.record(n)["metrics"]["before"]["eval/loss"] for n in range(3)]
    assert before[0] == before[1] == pytest.approx(before[2], rel=1e-5)


@pytest.mark.parametrize("asked", ["seed=1,2", "data.max_length=32,64", "samples.num=1,2"])
def test_what_changes_the_measure_or_needs_the_model_is_measured_again(sweep, counted, asked):
    swept = sweep(asked)
    assert swept.code == 0, swept.said
    assert counted["measure"] == 4
    assert counted["encode"] == (2 if asked.startswith("samples") else 4)


def test_rows_come_back_as_they_were_made_and_a_damaged_file_is_made_again(tmp_path):
    tokenizer = make_tokenizer()
    examples = [Example(text=f"word {i} " * i, origin=f"rows.jsonl:{i}") for i in range(1, 9)]
    make = partial(encode, examples, tokenizer, train_on="all", max_length=16, overlong="truncate")
    wanted = make()
    assert wanted.truncated
    shared.encoded(tmp_path, {"rows": 1}, make)
    read = shared.encoded(tmp_path, {"rows": 1}, partial(pytest.fail, "made again"))
    assert (read.truncated, read.dropped) == (wanted.truncated, wanted.dropped)
    for one, other in zip(read.documents, wanted.documents, strict=True):
        assert (one.origin, one.num_labels) == (other.origin, other.num_labels)
        assert (one.input_ids.dtype, one.labels.dtype) == (other.input_ids.dtype, other.labels.dtype)
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.labels, other.labels)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    for bad in (b"", good[: len(good) // 2], good.replace(b"rows.jsonl:3", b"rows.jsonl:8")):
        file.write_bytes(bad)
        assert shared.encoded(tmp_path, {"rows": 1}, make).documents[2].origin == "rows.jsonl:3"
        assert file.read_bytes() == good
    shared.encoded(tmp_path, {"rows": 2}, make)
    assert len(list(tmp_path.iterdir())) == 2


def test_trials_that_make_the_same_at_the_same_time_do_not_meet(tmp_path):
    """Each writes again and again, and reads whole files only."""
    facts = shared.Facts(tmp_path, "base", {"rows": 1})
    written = {"metrics": {f"eval/{i}": i / 7 for i in range(2_000)}}

    def work(_):
        for _ in range(10):
            facts.write(written)
            assert facts.read() == written

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert [file.name for file in tmp_path.iterdir()] == [facts.file.name]
