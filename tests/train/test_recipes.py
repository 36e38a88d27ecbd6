"""Every recipe by its name alone runs on a bundled set that suits it; general rows are really replayed."""

import json

import pytest

from tuneforge.data.pycode import pydoc_chat, pydoc_code
from tuneforge.data.source import read
from tuneforge.front import front, groups

with front() as loader:
    RECIPES = groups(loader)["task_recipe"]

FEW = ("trainer.max_steps=2", "data.max_rows=24", "data.split.max_eval_rows=6", "batch.effective=4", "samples.num=0")


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "instruct"])
def test_a_recipe_runs_by_its_name_alone(command, recipe):
    ran = command(f"task_recipe={recipe}", *FEW)
    assert ran.code == 0, ran.err + ran.out
    assert ran.losses[-1] > 0
    assert all(m["train/grad_norm"] > 0 for m in ran.metrics if "train/grad_norm" in m)


def test_conversations_have_several_turns_and_only_the_first_shows_the_symbol():
    rows = pydoc_chat()
    assert len(rows) > 1000
    lengths = {len(r.fields["messages"]) for r in rows}
    assert lengths <= {4, 6, 8}
    for row in rows[:50]:
        roles = [m["role"] for m in row.fields["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert {r.held_out for r in rows} == {True, False}
    assert rows == pydoc_chat()


def test_the_code_rows_are_python():
    import ast

    rows = pydoc_code()
    assert len(rows) > 2000
    for row in rows[::40]:
        ast.parse(f"{row.fields['input']}\n{row.fields['output']}")
    groups_of = {}
    for row in rows:
        groups_of.setdefault(row.group, set()).add(row.held_out)
    assert all(len(sides) == 1 for sides in groups_of.values())


def test_replay_mixes_general_rows_into_the_train_rows_alone(command, tmp_path):
    from tuneforge.compose import compose

    composed = compose(["data.replay.fraction=0.25", "data.max_rows=90"])
    found = read(composed.config.data, composed.tree["data"], 17)
    assert found.num_replayed == 30
    assert len(found.train) == 120
    assert sum(bool(e.text) for e in found.train) == 30
    assert not any(e.text for e in found.eval)
    general = tmp_path / "general.jsonl"
    general.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(10)))
    ran = command(*FEW, "data.replay.fraction=0.5", f"data.replay.path={general}")
    assert ran.code == 0, ran.err
    assert ran.record["data"]["replayed"] == 10
    assert "has 10: all of them are used" in ran.out


def test_a_replay_file_that_is_not_there_is_refused(refused):
    assert "no such file" in refused(*FEW, "data.replay.fraction=0.1", "data.replay.path=nowhere.jsonl")


@pytest.mark.soak_full
def test_compiled_layers_give_the_same_losses(command):
    options = (*FEW, "trainer.max_steps=3", "task_recipe.dropout=0")
    plain, compiled = command(*options), command(*options, "model.torch_compile=true")
    assert compiled.code == 0, compiled.err
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
