"""`plan`: what would run, why a value is what it is, and how two runs differ."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import yaml

from stand_in import record_of
from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.explain import explain, text
from tuneforge.interpolation import leaves, references
from tuneforge.plan import device


def ask(capsys, *arguments, code=0):
    assert run(list(arguments)) == code, capsys.readouterr().err
    return capsys.readouterr().out


def test_why_answers_for_every_leaf_of_the_default_config():
    composed = compose()
    flat = leaves(composed.tree)
    assert len(flat) >= 80
    for path, value in flat.items():
        (found,) = explain(composed, path)
        assert found.value == value
        assert found.steps, path
        assert found.steps[-1].where.startswith(("conf/", "default of ")), path
        assert found.without, path
        assert path in text(found)


def test_why_shows_the_chain_and_what_an_interpolation_reads(capsys):
    said = ask(capsys, "plan", "--why", "optim.lr", "method=qlora", "task_recipe=pretrain", "model.init=pretrained")
    assert said.startswith("optim.lr = 0.002")
    assert "${times:${method.lr.${task_recipe.objective}},${task_recipe.lr_scale},${model.lr_scale}}" in said
    for read in ("method.lr.pretrain = 0.0002", "task_recipe.objective = pretrain", "model.lr_scale = 10.0"):
        assert read in said
    assert "conf/method/lora.yaml:" in said
    assert "picked by conf/method/qlora.yaml (override optim: paged_adamw_8bit)" in said


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["optim.weight_decay=0.3"], "optim.weight_decay", "without `optim.weight_decay=0.3`: 0.01"),
        (["method=full"], "trainer.gradient_clip_val", "without conf/config.yaml:"),
        (["method=qlora"], "method.name", "without `method=qlora`: lora"),
        (["model=hf", "model.path=x"], "model.path", "without `model.path=x`: the config would be refused"),
        (["data.max_length=64"], "data.max_length", "without `data.max_length=64`: 256"),
        ([], "model.path", "nothing else sets it"),
        ([], "data.packing", "nothing else sets it"),
        ([], "trainer.max_epochs", "without conf/task_recipe/instruct.yaml:"),
    ],
)
def test_why_says_what_it_would_be_without_the_last_step(capsys, overrides, key, says):
    assert says in ask(capsys, "plan", "--why", key, *overrides)


def test_without_a_file_step_the_earlier_interpolation_is_worked_out(capsys, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer:\n  gradient_clip_val: 5.0\n")
    said = ask(capsys, "plan", "--why", "trainer.gradient_clip_val", "--config-dir", str(tmp_path), "+experiment=mine")
    assert f"2. {'conf/config.yaml'}" in said.replace("  ", " ")
    assert "(replaced)" in said
    assert f"{tmp_path}/experiment/mine.yaml:3" in said
    assert "without `experiment=mine`: 0.3" in said


def test_why_for_a_node_and_as_json(capsys):
    answers = json.loads(ask(capsys, "plan", "--why", "data.split", "--json"))
    assert {a["path"] for a in answers} == {
        f"data.split.{k}" for k in ("by", "eval_fraction", "eval_path", "max_eval_rows")
    }


def test_why_for_a_misspelt_key_names_the_right_one():
    with pytest.raises(TuneforgeError, match=r"there is no such key") as raised:
        explain(compose(), "optim.lrr")
    assert "'optim.lr'" in raised.value.problems[0].fix
    with pytest.raises(TuneforgeError) as raised:
        explain(compose(), "lr_scale")
    assert "model.lr_scale" in raised.value.problems[0].fix


def fake_run(folder, composed, changed=None):
    """What a run folder keeps of its config."""
    tree = composed.tree if changed is None else changed
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (folder / "provenance.json").write_text(json.dumps({p: o.as_dict() for p, o in composed.origins.items()}))
    record = {
        **record_of(composed),
        "versions": {"torch": "2.13.0"},
        "data": {"sha256": "a" * 64, "digests": {}, "train_documents": 2, "train_rows": 1},
        "metrics": {"before": {}, "after": {"eval/loss": 1.0}},
        "overrides": list(composed.overrides),
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def altered(node):
    """The tree with another value at every leaf."""
    if isinstance(node, dict) and node:
        return {k: altered(v) for k, v in node.items()}
    return ["other"] if isinstance(node, list) else f"other {node}"


def test_diff_answers_for_every_leaf_of_the_default_config(tmp_path, capsys):
    composed = compose()
    one = fake_run(tmp_path / "one", composed)
    two = fake_run(tmp_path / "two", composed, altered(composed.tree))
    shown = json.loads(ask(capsys, "plan", "--diff", str(one), str(two), "--json"))["config"]
    # An empty mapping has no leaf to differ in once it holds a text; all others are there.
    assert {d["path"] for d in shown} == set(leaves(composed.tree))
    assert all(d["origin_before"] and d["origin_after"] for d in shown)
    assert "0 values differ" in ask(capsys, "plan", "--diff", str(one), str(one))


def test_diff_of_one_run_compares_it_with_what_is_typed(tmp_path, capsys):
    one = fake_run(tmp_path / "one", compose(["optim.lr=1e-3"]))
    said = ask(capsys, "plan", "optim.lr=5e-4", "seed=18", "--diff", str(one))
    assert "optim.lr: 0.001 -> 0.0005" in said
    assert "command line: optim.lr=1e-3 -> command line: optim.lr=5e-4" in said
    assert "seed: 17 -> 18" in said


def test_diff_reads_overrides_behind_it_and_a_base(tmp_path, capsys):
    one = fake_run(tmp_path / "one", compose(["optim.lr=1e-3"]))
    said = ask(capsys, "plan", "--diff", str(one), "optim.lr=5e-4", "seed=18")
    assert "2 values differ" in said
    assert "optim.lr: 0.001 -> 0.0005" in said
    said = ask(capsys, "plan", "--diff", str(one), "seed=18", "--from", str(one))
    assert "1 values differ" in said
    for words, why in (([one, one, "seed=18"], "composes no config: seed=18"), (["seed=18"], "got 0 folders")):
        assert run(["plan", "--diff", *map(str, words)]) == 2
        assert why in capsys.readouterr().err


def test_diff_shows_versions_and_results_too(tmp_path, capsys):
    one, two = (fake_run(tmp_path / n, compose()) for n in ("one", "two"))
    record = json.loads((two / "run.json").read_text())
    record["versions"]["torch"] = "2.14.0"
    (two / "run.json").write_text(json.dumps(record))
    assert "[version of torch] 2.13.0 -> 2.14.0" in ask(capsys, "plan", "--diff", str(one), str(two))


@pytest.mark.parametrize("arguments", [["--diff", "nowhere", "nowhere"], ["--diff", "a", "b", "c"], ["nowhere"]])
def test_a_folder_that_is_no_run_is_refused(refused, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert "run" in refused("plan", *arguments)


def test_the_plan_says_whether_it_fits(capsys):
    fits = ask(capsys, "plan", "method=qlora", "hardware=rtx4090")
    assert "256 rows a device or more" in fits
    assert "command line: method=qlora" in fits
    too_small = ask(capsys, "plan", "hardware=rtx4090", "hardware.vram_gb=0.5", code=3)
    assert "fits        no: no single device of this size holds it" in too_small


LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.fixture
def of_8b(tmp_path, capsys):
    """The estimate of a plan for an 8B model, and its exit code."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))

    def call(*arguments):
        code = run(["plan", "--json", "model=hf", f"model.path={tmp_path}", "data=pydoc", *arguments])
        return code, json.loads(capsys.readouterr().out)["estimate"]

    return call


def test_the_plan_of_several_devices_takes_the_strategy_that_auto_would_pick(of_8b):
    full = ("method=full", "hardware=h100", "data.max_length=2048")
    assert of_8b(*full, "trainer.devices=1")[0] == 3
    code, split = of_8b(*full, "trainer.devices=8")
    assert (code, split["strategy"], split["devices"], split["holds"]) == (0, "fsdp", 8, True)
    code, copied = of_8b("method=lora", "hardware=h100", "trainer.devices=8")
    assert (code, copied["strategy"]) == (0, "ddp")


def test_the_plan_reads_the_stored_dtype_and_the_rows_asked_for(of_8b):
    lora = ("method=lora", "hardware=h100", "data.max_length=2048", "trainer.devices=1")
    (_, half), (_, whole) = of_8b(*lora), of_8b(*lora, "model.dtype=float32")
    assert whole["one_row_gib"] - half["one_row_gib"] == pytest.approx(8.03e9 * 2 / 2**30, rel=0.02)
    (_, mixed), (_, true) = (of_8b("method=full", *lora[1:], f"trainer.precision=bf16-{p}") for p in ("mixed", "true"))
    assert mixed["one_row_gib"] - true["one_row_gib"] >= 8.03e9 * 4 / 2**30  # weights and gradients in 16 bits
    code, many = of_8b(*lora, "batch.per_device=200")
    assert code == 3
    most = int(re.search(r"set batch.per_device=(\d+)", many["fits"])[1])
    assert of_8b(*lora, f"batch.per_device={most}")[0] == 0
    assert of_8b(*lora, f"batch.per_device={most + 1}")[0] == 3


def test_the_plan_for_this_machine_takes_the_memory_of_its_gpus(of_8b, monkeypatch):
    monkeypatch.setattr(device, "_nvidia_gpus", lambda: [("NVIDIA L4", 24 * 2**30, 8.9)] * 2)
    code, found = of_8b("method=full")
    assert (code, found["device"], found["devices"]) == (3, "this machine (NVIDIA L4)", 2)
    assert found["available_gib"] == 24
    assert of_8b("method=full", "trainer.accelerator=cpu")[1]["device"] == "this machine (cpu)"
    assert of_8b("method=full", "hardware.vram_gb=10")[1]["available_gib"] == 10  # the lesser, as a run takes it
    monkeypatch.setattr(device, "_nvidia_gpus", list)
    monkeypatch.setattr(device, "_amd_gpus", lambda cards: [192.0 * 2**30] * 8)
    code, found = of_8b("method=full")
    assert (code, found["available_gib"], found["strategy"]) == (0, 192, "ddp")


def test_the_plan_for_a_mac_is_for_its_gpu(monkeypatch):
    monkeypatch.setattr(device, "_nvidia_gpus", list)
    monkeypatch.setattr(device.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(device.platform, "machine", lambda: "arm64")
    assert [device._present(asked).kind for asked in ("auto", "mps", "cpu")] == ["mps", "mps", "cpu"]


def test_amd_gpus_are_counted_where_torch_computes_on_them(monkeypatch, tmp_path):
    for card, memory in (("card0", 2**36), ("card1", 2**37)):
        (tmp_path / card / "device").mkdir(parents=True)
        (tmp_path / card / "device" / "mem_info_vram_total").write_text(f"{memory}\n")
    assert device._amd_gpus(tmp_path) == []
    monkeypatch.setattr(device.importlib.metadata, "version", lambda name: "2.13.0+rocm7.0")
    assert device._amd_gpus(tmp_path) == [2**36, 2**37]


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (None, [("NVIDIA H100", 80, 9.0)] * 2),
        ("GPU-b2", [("NVIDIA H100", 80, 9.0)]),
        ("MIG-c3", [("NVIDIA H100 MIG 1g.10gb", 10, 9.0)]),
        ("MIG-unknown", []),
    ],
)
def test_the_driver_is_asked_for_the_memory_of_what_is_visible(monkeypatch, listed, found):
    """A part of a GPU (MIG) has its own memory, and the capability of the whole."""
    handles = {"GPU-a1": ("NVIDIA H100", 80), "GPU-b2": ("NVIDIA H100", 80), "MIG-c3": ("NVIDIA H100 MIG 1g.10gb", 10)}

    class Error(Exception):
        pass

    def by_uuid(uuid):
        if uuid not in handles:
            raise Error
        return uuid

    def capability(handle):
        assert handle.startswith("GPU-")
        return 9, 0

    driver = SimpleNamespace(
        NVMLError=Error,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: list(handles)[index],
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle=lambda handle: "GPU-a1",
        nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetName=lambda handle: handles[handle][0],
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=handles[handle][1]),
        nvmlDeviceGetCudaComputeCapability=capability,
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert device._nvidia_gpus() == found


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        *((None, [0, 1, 2]), ("", []), ("-1", []), ("1", [1]), ("2,0", [2, 0]), ("0,7,1", [0])),
        *(("GPU-b2", [1]), ("GPU-c3c3, 0", [2, 0]), ("GPU-x,0", []), ("GPU-,0", []), ("MIG-d4,MIG-e5", ["MIG-d4"])),
    ],
)
def test_the_plan_counts_the_visible_gpus(monkeypatch, listed, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert device._visible(["GPU-a1a1", "GPU-b2b2", "GPU-c3c3"]) == seen


def test_the_plan_of_a_model_that_is_not_here_says_so(capsys):
    assert "is not on this machine yet" in ask(capsys, "plan", "model=hf", "model.path=some/model")


def test_the_plan_as_json_holds_choices_settings_and_estimate(capsys):
    shown = json.loads(ask(capsys, "plan", "hardware=h100", "--json", "task_recipe.rank=4", "method=full"))
    assert shown["choices"]["hardware"]["option"] == "h100"
    assert shown["settings"]["optim.lr"]["value"] == pytest.approx(5e-4)
    assert shown["estimate"]["parameters"] == shown["estimate"]["trainable"] > 3e6
    assert "task_recipe.rank" in shown["warnings"][0]


@pytest.mark.parametrize(
    ("expression", "reads"),
    [
        ("${a.b}", ["a.b"]),
        ("${times:${a.b},${c}}", ["a.b", "c"]),
        ("${m.${k}}", ["k", "m.x"]),
        ("x ${a.b} y ${c}", ["a.b", "c"]),
        ("${.y}", ["here.y"]),
        ("${..c}", ["c"]),
        ("${oc.env:HOME}", []),
        ("plain", []),
    ],
)
def test_the_keys_that_an_interpolation_reads(expression, reads):
    tree = {"a": {"b": 1}, "c": 2, "k": "x", "m": {"x": 3}, "here": {"y": 4, "z": 5}}
    assert references(expression, tree, "here.z") == reads
