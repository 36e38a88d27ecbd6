"""Every method as a user runs it: by its name alone, to a result that loads; resumed; with knobs that are wrong."""

import json

import pytest
from safetensors.torch import load_file

from helpers import SHORT, same_adapter, shown, signal_at
from tuneforge.front import front, groups

with front() as loader:
    METHODS = groups(loader)["method"]

TINY = (
    *SHORT,
    "trainer.max_steps=2",
    "data.max_rows=32",
    "batch.effective=11",
    "data.split.max_eval_rows=8",
    "samples.num=0",
)


SLOW = ("eva", "corda")
"""They look at train rows first, which takes time for each target."""


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[pytest.mark.soak] * (m in SLOW)) for m in METHODS if m not in ("lora", "qlora", "full")],
)
def test_a_method_runs_by_its_name_alone_and_its_result_goes_on(command, method):
    # How long an evaluation takes beside a step is the machine's.
    few = ["task_recipe.targets=[q_proj,down_proj]"] if method in SLOW else []
    ran = command(f"method={method}", *TINY, *few, "callbacks.waste_guard.action=none")
    assert ran.code == 0, ran.err + ran.out
    assert "warning" not in ran.out
    assert all(m["train/grad_norm"] > 0 for m in ran.metrics if "train/grad_norm" in m)
    after = ran.record["metrics"]["after"]["eval/loss"]
    result = ran.folder / "adapter"
    again = [f"model.adapter={result}"] if result.is_dir() else ["model=hf", f"model.path={ran.folder / 'model'}"]
    continued = command(f"method={method}", *TINY, "trainer.max_steps=1", *again)
    if method == "p_tuning":
        assert "saves the embeddings and not the network" in continued.err
        return
    assert continued.code == 0, continued.err
    # A rewritten base is saved as a plain adapter on the original one, and bf16 is not involved: equal to rounding.
    assert continued.record["metrics"]["before"]["eval/loss"] == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        "adalora",
        "pissa",
        "prompt_tuning",
        pytest.param("eva", marks=pytest.mark.soak),
        pytest.param("corda", marks=pytest.mark.soak_full),
    ],
)
def test_a_method_with_state_resumes_to_the_bit(command, monkeypatch, method):
    few = ["task_recipe.targets=[q_proj,down_proj]"] if method in SLOW else []
    fixed = ("trainer.max_steps=6", "batch.per_device=1", "trainer.val_check_interval=2")
    steps = (f"method={method}", *TINY, *few, *fixed)
    whole = command(*steps)
    signal_at(monkeypatch, 3)
    stopped = command(*steps)
    assert stopped.code == 143
    resumed = command(*steps, f"resume={stopped.folder}")
    assert resumed.code == 0, resumed.err
    assert shown(stopped.metrics) == shown(whole.metrics)
    assert same_adapter(whole.folder, stopped.folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["method.target_modules=[q_porj]"], "'q_porj' matches no module of this model\n  did you mean 'q_proj'"),
        (["method.target_modules=[zzz]"], "linear modules: "),
        (["method.target_modules=[q_proj,zzz]"], "'zzz' matches no module"),
        (["method.target_modules='.*nothing.*'"], "matches no module"),
        (["method.r=4096"], "a larger rank adds weights and nothing else"),
        (["method.layers_to_transform=[99]"], "names 99, and the model has layers 0 to"),
        (["method=freeze", "method.last_layers=99"], "and the model has"),
        (["method=freeze", "method.pattern=nothing"], "matches no parameter"),
        (["method=ia3", "method.target_modules=[zzz]"], "'zzz' matches no module"),
        (["method=qlora", "method.init_lora_weights=pissa"], "rewrites the base"),
        (["method=prompt_tuning", "data.packing=true"], "virtual tokens"),
        (["method=prefix_tuning", "trainer.gradient_checkpointing=true"], "into their cache"),
    ],
)
def test_knobs_that_do_not_fit_the_model_are_refused_before_training(refused, tmp_path, options, says):
    said = refused(*TINY, "batch.per_device=1", *options, f"hydra.run.dir={tmp_path / 'run'}")
    assert says in said
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_base_is_refused_with_shapes_and_its_base(command, refused, model_folders):
    ran = command("model=hf", f"model.path={model_folders['llama']}", *TINY)
    said = refused(*TINY, f"model.adapter={ran.folder / 'adapter'}")
    assert "was trained with another tokenizer" in said
    assert str(model_folders["llama"]) in said
    # An adapter that came without its tokenizer: the shapes tell.
    for file in (ran.folder / "adapter").glob("tokenizer*"):
        file.unlink()
    said = refused(*TINY, f"model.adapter={ran.folder / 'adapter'}")
    assert "cannot be loaded on this model" in said
    assert f"it was made for {model_folders['llama']}" in said


def test_knobs_of_lora_reach_the_adapter(command):
    knobs = [
        "method.layers_to_transform=[0]",
        "method.target_modules=[q_proj,v_proj]",
        "method.rank_pattern={q_proj:2}",
    ]
    ran = command(*TINY, "method.modules_to_save=[norm]", "method.use_rslora=true", *knobs)
    assert ran.code == 0, ran.err
    names = load_file(ran.folder / "adapter" / "adapter_model.safetensors")
    loras = {n for n in names if "lora_A" in n}
    assert all(".layers.0." in n for n in loras)
    assert {n.split(".")[-3] for n in loras} == {"q_proj", "v_proj"}
    assert {names[n].shape[0] for n in loras} == {2, 16}
    assert any("norm" in n for n in names)
    config = json.loads((ran.folder / "adapter" / "adapter_config.json").read_text())
    assert config["use_rslora"] is True


def test_lora_plus_has_two_rates(command):
    ran = command("method=lora_plus", *TINY)
    rates = {m["train/lr"] for m in ran.metrics if "train/lr" in m}
    assert rates
    assert json.loads((ran.folder / "run.json").read_text())["method"] == "lora_plus"
