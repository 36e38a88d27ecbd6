"""Every number of every option has bounds: nothing infinite, not a number, or beyond what is computed with it."""

import math
import re
from collections.abc import Iterator
from importlib import resources
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


def with_all(node: Any, value: Any, path: str = "", changed: set[str] | None = None) -> Any:
    """The tree with the value in the place of all that is no flag and no target; `changed` collects the keys."""
    assert changed is not None
    if isinstance(node, dict) and node:
        inner = {k: (k if path == "" else f"{path}.{k}") for k in node}
        return {k: v if k == "_target_" else with_all(v, value, inner[k], changed) for k, v in node.items()}
    if isinstance(node, list) and node:
        return [with_all(v, value, path, changed) for v in node]
    if isinstance(node, bool) or (path in NEGATIVE and value == -1) or (path in FLAGS and value is True):
        return node
    changed.add(path)
    return value


def trees() -> Iterator[tuple[str, dict[str, Any]]]:
    """One option for each group and target, as a tree of that group; first everything."""
    yield "", compose([]).tree
    seen = set()
    for group in ("model", "data", "method", "hardware", "strategy", "optim", "scheduler", "logger", "task_recipe"):
        for option in sorted(core_options()[group]):
            text = resources.files("tuneforge.conf").joinpath(group, f"{option}.yaml").read_text(encoding="utf-8")
            target = re.search(r"_target_: (\S+)", text)
            key = (group, target[1] if target else "")
            if key in seen or (target is None and "defaults:" in text):
                continue
            seen.add(key)
            more = [NEEDS[group, option]] if (group, option) in NEEDS else []
            yield group, compose([f"{group}={option}", *more]).tree
    assert len(seen) > 35


def test_no_option_takes_a_number_that_is_not_finite_or_out_of_all_bounds():
    tried, wrong = set(), []
    for group, tree in trees():
        for name, value in {**NEVER, "-1": -1, "true": True}.items():
            changed: set[str] = set()
            part = {group: with_all(tree[group], value, group, changed)} if group else {}
            whole = {**tree, **part} if group else with_all(tree, value, "", changed)
            problems = {problem.path for problem in check(whole).problems}
            tried |= changed
            wrong += [(key, group and tree[group].get("_target_"), name) for key in changed - problems]
    assert len(tried) > 200
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
