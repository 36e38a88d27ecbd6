"""Messages: near names, how problems read, colour only on a terminal."""

import io

import pytest

from tuneforge.errors import Problem, TuneforgeError, did_you_mean, near, print_problems


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("lrr", "lr"), ("optm", "optim"), ("lorra", "lora"), ("per_deivce", "per_device"), ("SEED", "seed")],
)
def test_a_name_within_two_edits_is_suggested_first(typed, meant):
    known = ["lr", "optim", "lora", "per_device", "seed", "trainer"]
    assert (near(typed.lower(), known) or [None])[0] == meant


def test_a_swap_of_neighbours_is_one_edit():
    assert near("baicth", ["batch", "bath", "other"])[0] == "batch"


def test_nothing_near_lists_all():
    assert did_you_mean("zzzzzz", ["a", "b"]) == "known here: a, b"


def test_problems_are_printed_plainly_where_there_is_no_terminal():
    out = io.StringIO()
    print_problems(
        [Problem("wrong-value", "is wrong", "optim.lr", "command line: optim.lr=x", "set a number")], stream=out
    )
    assert out.getvalue() == "error: optim.lr (command line: optim.lr=x): is wrong\n  set a number\n"


def test_an_error_of_many_problems_shows_all():
    error = TuneforgeError.of([Problem("x", "one", "a"), Problem("y", "two", "b")])
    assert [p.path for p in error.problems] == ["a", "b"]
    assert "one" in str(error)
    assert "two" in str(error)
