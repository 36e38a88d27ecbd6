"""Every number of every option has bounds: nothing infinite, not a number, or beyond what is computed with it."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.plugins.discovery import core_options
from tuneforge.schema.check import check

NEEDS = {("data", "file"): "data.path=rows.jsonl", ("model", "hf"): "model.path=somewhere"}
NEVER = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan, "1e308": 1e308, "-1e308": -1e308, "10**30": 10**30}
NEGATIVE = {"method.decompose_factor": "its documented auto", "optim.beta2_decay": "an exponent, from -1 to 0"}
FLAGS = {"trainer.gradient_checkpointing", "callbacks.checkpoints.sharded"}
"""Keys of a word, of which `true` is one too."""


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list) and value:
            yield from leaves(value, (*path, key))
        elif not isinstance(value, bool):
            yield (*path, key)


def with_value(tree: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(tree)
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def accepted(tree: dict[str, Any], path: tuple[Any, ...], value: Any) -> bool:
    """Of the group alone: the rest of the tree is the same for each."""
    return not check(with_value(tree, path, value)).problems


@pytest.fixture(scope="module")
def trees() -> list[tuple[str, dict[str, Any]]]:
    """Each option's own group; of the first option all groups."""
    found = []
    groups = ("model", "data", "method", "hardware", "strategy", "optim", "scheduler", "callbacks", "logger")
    for group in (*groups, "task_recipe"):
        for option in sorted(core_options()[group]):
            more = [NEEDS[group, option]] if (group, option) in NEEDS else []
            found.append((group if found else "", compose([f"{group}={option}", *more]).tree))
    return found


def test_no_option_takes_a_number_that_is_not_finite_or_out_of_all_bounds(trees):
    seen, wrong = set(), []
    for group, tree in trees:
        for path in leaves(tree):
            target = tree[path[0]].get("_target_") if isinstance(tree[path[0]], dict) else None
            if (path, target) in seen or (group and path[0] != group):
                continue
            seen.add((path, target))
            key = ".".join(map(str, path))
            tried = dict(NEVER) if key in NEGATIVE else {**NEVER, "-1": -1}
            if key not in FLAGS:
                tried["true"] = True
            wrong += [(key, target, name) for name, value in tried.items() if accepted(tree, path, value)]
    assert len(seen) > 300
    assert wrong == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.betas=[0.9]", "must be a list of 2"),
        ("optim.betas=[]", "must be a list of 2"),
        ("optim.betas=[0.9,0.99,0.999]", "must be a list of 2"),
        ("optim.betas=[0.9,1.0]", "< 1"),
        ("optim.betas=[0.9,true]", "< 1"),
        ("optim.eps=inf", "numbers are finite"),
        ("optim.eps=0", "> 0"),
        ("optim.eps=10", "<= 1"),
        ("trainer.max_epochs=inf", "numbers are finite"),
        ("trainer.max_epochs=1e308", "numbers are finite"),
        ("trainer.max_steps=1000000000000000000000000000000", "integers at most"),
        ("optim.weight_decay=nan", "numbers are finite"),
        ("optim.lr=1e6", "<= 100"),
        ("trainer.val_check_interval=2.0", "<= 1"),
        ("trainer.val_check_interval='1'", "must be"),
        ("trainer.val_check_interval=-1", "must be"),
        ("data.num_workers=100000", "<= 1024"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_them(override, says):
    with pytest.raises(TuneforgeError) as caught:
        compose([override])
    problem = caught.value.problems[0]
    assert problem.code == "wrong-value"
    assert problem.path == override.partition("=")[0]
    assert says in str(problem)


@pytest.mark.parametrize(
    ("typed", "value", "steps"),
    [("1", 1, 1), ("2", 2, 2), ("1.0", 1.0, 10), ("0.5", 0.5, 5), ("0", 0.0, 10), ("50", 50, 10)],
)
def test_a_whole_number_of_evaluations_counts_steps_and_a_fraction_the_run(typed, value, steps):
    from tuneforge.settle import _eval_every

    for key in ("trainer.val_check_interval", "++trainer.val_check_interval"):
        got = compose([f"{key}={typed}"]).config.trainer.val_check_interval
        assert (got, type(got)) == (value, type(value))
        assert _eval_every(got, 10) == steps
