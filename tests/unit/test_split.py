"""The split: nothing lost, nothing on both sides, the same on every machine, and stable when rows are added."""

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tuneforge.data.formats import Example, Message
from tuneforge.data.split import split
from tuneforge.errors import TuneforgeError


def texts(count: int, groups: int = 0) -> list[Example]:
    return [Example(text=f"t{i}", group=f"g{i % groups}" if groups else "") for i in range(count)]


def names(examples: Sequence[Example]) -> set[str]:
    return {example.text for example in examples}


def refused(examples: Sequence[Example], by: str = "auto", eval_fraction: Any = 0.1) -> tuple[str, str, str]:
    with pytest.raises(TuneforgeError) as caught:
        split(examples, by=by, eval_fraction=eval_fraction, seed=0)
    (problem,) = caught.value.problems
    assert problem.fix
    return problem.path, problem.message, problem.fix


@pytest.mark.parametrize("by", ["row", "group"])
@pytest.mark.parametrize("count", [2, 3, 10, 97, 5000])
@pytest.mark.parametrize("eval_fraction", [0.001, 0.05, 0.5, 0.9, 0.999])
def test_every_row_is_on_one_side_in_order_and_no_side_is_empty(by: str, count: int, eval_fraction: float) -> None:
    given = texts(count, groups=max(2, count // 5))
    train, held = split(given, by=by, eval_fraction=eval_fraction, seed=0)
    assert train
    assert held
    trained, evaluated = names(train), names(held)
    assert trained.isdisjoint(evaluated)
    assert [one for one in given if one.text in trained] == train
    assert [one for one in given if one.text in evaluated] == held
    assert len(train) + len(held) == count


@pytest.mark.parametrize(
    ("count", "eval_fraction", "held"),
    [(2, 0.1, 1), (10, 0.1, 1), (10, 0.99, 9), (20, 0.25, 5), (900, 0.1, 90), (900, 0.95, 855)],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_small_set_is_split_by_count(count: int, eval_fraction: float, held: int, seed: int) -> None:
    assert len(split(texts(count), by="row", eval_fraction=eval_fraction, seed=seed)[1]) == held


@pytest.mark.parametrize("seed", range(3))
def test_a_large_set_is_split_near_the_fraction_and_adding_rows_moves_none(seed: int) -> None:
    _, before = split(texts(4000), by="auto", eval_fraction=0.1, seed=seed)
    train, after = split(texts(6000), by="auto", eval_fraction=0.1, seed=seed)
    assert 340 <= len(before) <= 460
    assert names(before) == names(after) & names(texts(4000))
    assert names(before).isdisjoint(names(train))


def test_adding_rows_to_a_small_set_moves_few() -> None:
    _, before = split(texts(500), by="row", eval_fraction=0.1, seed=0)
    _, after = split(texts(520), by="row", eval_fraction=0.1, seed=0)
    assert len(names(before) ^ (names(after) & names(texts(500)))) <= 3


def test_the_split_does_not_hang_on_the_order_of_the_rows() -> None:
    given = [*texts(300, groups=40), Example(text="t1", group="other"), Example(text="t2")]
    mixed = random.Random(0).sample(given, len(given))
    for by in ("row", "group"):
        first, second = (split(one, by=by, eval_fraction=0.2, seed=3)[1] for one in (given, mixed))
        assert names(first) == names(second)


def test_the_seed_decides() -> None:
    first, again, other = (names(split(texts(100), by="row", eval_fraction=0.2, seed=s)[1]) for s in (1, 1, 2))
    assert first == again != other


def test_the_split_is_the_same_in_another_process() -> None:
    code = (
        "from tuneforge.data.formats import Example; from tuneforge.data.split import split;"
        "rows = [Example(text=f't{i}') for i in range(30)];"
        "print([one.text for one in split(rows, by='row', eval_fraction=0.1, seed=0)[1]])"
    )
    source = str(Path(sys.modules["tuneforge"].__path__[0]).parent)
    environment = {"PYTHONPATH": source, "PYTHONHASHSEED": "5"}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = [one.text for one in split(texts(30), by="row", eval_fraction=0.1, seed=0)[1]]
    assert child.stdout.strip() == str(here)
    # Written down, because a change would silently move rows of everyone's evaluation into training.
    assert here == ["t18", "t22", "t23"]


def test_identical_rows_are_on_the_same_side() -> None:
    given = [Example(text=f"t{i % 50}", origin=str(i)) for i in range(150)]
    train, held = split(given, by="row", eval_fraction=0.2, seed=0)
    assert names(train).isdisjoint(names(held))
    assert len(held) == 30


def test_only_identical_rows_are_one_unit() -> None:
    turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    alike = [
        Example(messages=tuple(turns)),
        Example(messages=tuple(turns[::-1])),
        Example(prompt="a", completion="b"),
        Example(prompt="ab"),
        Example(completion="ab"),
        Example(text="ab"),
    ]
    train, held = split(alike, by="row", eval_fraction=0.5, seed=0)
    assert (len(train), len(held)) == (3, 3)


@pytest.mark.parametrize("by", ["group", "auto"])
def test_a_group_is_not_torn(by: str) -> None:
    train, held = split(texts(200, groups=20), by=by, eval_fraction=0.2, seed=0)
    assert {one.group for one in train}.isdisjoint({one.group for one in held})
    assert len(held) == 40


def test_by_row_tears_groups() -> None:
    train, held = split(texts(200, groups=20), by="row", eval_fraction=0.2, seed=0)
    assert {one.group for one in train} & {one.group for one in held}


@pytest.mark.parametrize("seed", range(10))
def test_groups_that_share_a_row_stay_together(seed: int) -> None:
    given = [*texts(40, groups=8), Example(text="same", group="g0"), Example(text="same", group="g1"),
             Example(text="same")]  # fmt: skip
    train, held = split(given, by="group", eval_fraction=0.4, seed=seed)
    assert names(train).isdisjoint(names(held))
    side = {one.group: one in held for one in given}
    assert side["g0"] == side["g1"]


@pytest.mark.parametrize("seed", range(10))
def test_one_giant_group_does_not_become_the_evaluation(seed: int) -> None:
    given = [Example(text=f"big {i}", group="big") for i in range(90)] + texts(10, groups=5)
    held = split(given, by="group", eval_fraction=0.1, seed=seed)[1]
    assert 1 <= len(held) <= 10
    assert "big" not in {one.group for one in held}


def test_of_two_groups_the_smaller_is_held_out() -> None:
    given = [Example(text=f"big {i}", group="big") for i in range(90)] + texts(40, groups=1)
    assert {one.group for one in split(given, by="group", eval_fraction=0.1, seed=0)[1]} == {"g0"}


@pytest.mark.parametrize("by", ["source", "auto"])
def test_the_sources_flags_decide(by: str) -> None:
    given = [Example(text=f"t{i}", group=f"g{i}", held_out=i in (3, 7)) for i in range(10)]
    train, held = split(given, by=by, eval_fraction=0.5, seed=0)
    assert [one.text for one in held] == ["t3", "t7"]
    assert len(train) == 8


def test_flags_on_some_rows_decide_nothing() -> None:
    given = [Example(text=f"t{i}", held_out=None if i else True) for i in range(10)]
    assert len(split(given, by="auto", eval_fraction=0.5, seed=0)[1]) == 5
    path, message, fix = refused(given, "source")
    assert path == "data.split.by"
    assert message == "'source' needs every row marked by its source as held out or not; 1 of 10 are"
    assert fix == "data.split.by=auto"


@pytest.mark.parametrize("flag", [True, False])
def test_flags_that_leave_a_side_empty_are_refused(flag: bool) -> None:
    path, message, _ = refused([Example(text=f"t{i}", held_out=flag) for i in range(4)])
    assert path == "data.split.by"
    assert message == f"the source holds out {4 if flag else 0} of these 4 rows: a split needs some on each side"


@pytest.mark.parametrize("by", ["auto", "row", "source"])
def test_a_fraction_of_zero_holds_out_nothing(by: str) -> None:
    given = [Example(text="x", held_out=True), Example(text="x", held_out=False)]
    assert split(given, by=by, eval_fraction=0, seed=0) == (given, [])


@pytest.mark.parametrize(
    ("examples", "by", "message"),
    [
        (texts(1), "row", "1 row cannot be split: all are identical"),
        (texts(1) * 3, "auto", "3 rows cannot be split: all are identical"),
        (texts(3, groups=1), "auto", "3 rows cannot be split: all are of one group, or identical"),
        ([], "auto", "0 rows cannot be split: all are identical"),
    ],
)
def test_what_is_one_unit_cannot_be_split(examples: list[Example], by: str, message: str) -> None:
    path, found, fix = refused(examples, by)
    assert (path, found) == ("data.split.eval_fraction", message)
    assert "data.split.eval_fraction=0" in fix


@pytest.mark.parametrize("eval_fraction", [-0.1, 1, 1.0, 5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(eval_fraction: float) -> None:
    path, message, _ = refused(texts(10), "row", eval_fraction)
    assert path == "data.split.eval_fraction"
    assert message == f"wanted: a fraction from 0 to below 1; found: {eval_fraction}"


def test_an_unknown_way_is_refused_with_the_near_name() -> None:
    path, message, fix = refused(texts(10), "gruop")
    assert (path, message) == ("data.split.by", "unknown way to split 'gruop'")
    assert fix == "did you mean 'group'? known here: auto, group, row, source"


def test_by_group_needs_groups() -> None:
    path, message, fix = refused(texts(10), "group")
    assert (path, message) == ("data.split.by", "'group' needs rows with a group, and none has one")
    assert "conversation_id" in fix


def test_text_that_utf8_cannot_hold_is_no_crash() -> None:
    given = [Example(text="\ud83d", group="\ud83d"), *texts(9)]
    assert len(split(given, by="group", eval_fraction=0.2, seed=0)[1]) == 2
