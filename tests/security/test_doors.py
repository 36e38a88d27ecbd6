"""Flags, misspelt nodes and odd signatures: each is answered by our checks, and none by a traceback."""

import logging

import pytest

from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.schema.signature import MISSING, read_signature

VIEWS = (["--cfg", "hydra"], ["--cfg", "all"], ["--info"], ["--info", "defaults"], ["-i", "searchpath"])


@pytest.mark.parametrize("view", VIEWS, ids=" ".join)
def test_hydras_views_check_the_config_first(view, canary, refused):
    assert "did you mean 'lora_quick'?" in refused(*view, "+sweep=lora_quik")
    assert "must be an integer" in refused(*view, "seed=x")
    assert "Hydra's own" in refused(*view, "hydra.callbacks={a: {_target_: canary_module.run}}")


@pytest.mark.parametrize("view", VIEWS, ids=" ".join)
def test_hydras_views_show_a_good_config(view, capfd, monkeypatch):
    # As alembic leaves it, which Optuna calls for some databases.
    monkeypatch.setattr(logging.getLogger("hydra._internal.hydra"), "disabled", True)
    assert run([*view, "method=qlora"]) == 0
    shown = capfd.readouterr().out
    assert {"hydra": "job_logging", "all": "qlora", "--info": "method/qlora"}.get(view[-1], "") in shown
    assert "conf" in shown or "run:" in shown


@pytest.mark.parametrize(
    "flag",
    ["--hydra-help", "--shell-completion", "-sc", "--config-name=x", "--config-path=/tmp", "--experimental-rerun=x"],
)
def test_flags_of_hydra_that_go_past_the_checks_are_refused_with_what_does_the_same(flag, canary, refused):
    said = refused(flag, "seed=x")
    assert "is Hydra's own" in said
    assert "\n  " in said


NEAR = [
    ("++callbacks.nan_gaurd.action=stop", "callbacks.nan_gaurd", "did you mean 'nan_guard'"),
    ("+callbacks.checkpoint.keep_best=1", "callbacks.checkpoint", "did you mean 'checkpoints'"),
    ("+logger.tensorbord.x=1", "logger.tensorbord", "did you mean 'tensorboard'"),
    ("+callbacks.mine={}", "callbacks.mine", "known here: checkpoints"),
    ("+trainr.max_steps=3", "trainr", "did you mean 'trainer'"),
    ("+data.splti.by=row", "data.splti", "did you mean 'split'"),
    ("+model.combinaton.type=svd", "model.combinaton", "did you mean 'combination'"),
    ("optim.lr=${optm.lr}", "optim.lr", "did you mean 'optim'"),
    ("optim.lr=${method.lrr.sft}", "optim.lr", "did you mean 'lr'"),
    ("~optim._target_", "optim", "choose an option: optim=NAME"),
    ("~method._target_", "method", "choose an option: method=NAME"),
    ("~callbacks.nan_guard._target_", "callbacks.nan_guard", "known here:"),
]


@pytest.mark.parametrize(("override", "path", "says"), NEAR)
def test_a_node_that_is_not_there_is_told_with_what_was_meant(override, path, says):
    with pytest.raises(TuneforgeError) as raised:
        compose([override])
    found = {p.path: p.fix for p in raised.value.problems}
    assert says in found[path]


SOURCE = """
import dataclasses
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Annotated, Literal

from tuneforge.schema.types import Range

LOW = 1
NAMES = ("a", "b")


@dataclass
class Marked:
    first: int
    _: KW_ONLY
    second: int = 2


@dataclass
class Called:
    _: dataclasses.KW_ONLY
    needed: int = field(kw_only=True)
    counted: int = dataclasses.field(default=3, kw_only=True)
    made: list[int] = field(default_factory=list)
    other: object = field(default_factory=lambda: 1)
    computed: int = field(init=False)
    given: InitVar[int] = 4


def typed(
    *, a: Annotated[int, Range(ge=LOW)] = 1, b: Literal[NAMES] = "a", c: dict[str] = {}, d: "int |" = 1,
    e: tuple[int, ...] = (1,), f: Literal["x", 1, None] = "x", g: int = {[]: 1}, h: Loop = 1,
):
    pass


Loop = Loop


class Snake(Snake):
    pass
"""


@pytest.fixture
def signatures(tmp_path, monkeypatch):
    (tmp_path / "odd_signatures.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda name: read_signature(f"odd_signatures.{name}")


def test_every_form_of_a_dataclass_field_is_read(signatures):
    marked, called = signatures("Marked").fields, signatures("Called").fields
    assert {n: f.default for n, f in marked.items()} == {"first": MISSING, "second": 2}
    assert {n: f.default for n, f in called.items()} == {
        "needed": MISSING, "counted": 3, "made": [], "other": ..., "given": 4,
    }  # fmt: skip


def test_types_that_say_nothing_literal_are_not_checked_and_do_no_harm(signatures):
    assert list(signatures("typed").fields) == list("abcdefgh")


def test_a_class_of_itself_has_no_fields_of_its_base(signatures):
    assert dict(signatures("Snake").fields) == {}
