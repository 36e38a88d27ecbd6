"""`train --from RUN`: the same run to the bit, or with changes whose consequences are worked out again."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from helpers import SHORT
from tuneforge.boundary import library_errors_explained
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.rerun import compose_from
from tuneforge.resume import identity

QUICK = (*SHORT, "samples.num=0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, shared: nothing here writes into its folder."""
    from tuneforge.cli import run

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run([*QUICK, "optim.lr=1e-3", f"hydra.run.dir={folder}", f"output_root={folder.parent}"]) == 0
    return folder


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in m.items() if "tokens_per_s" not in k and "waste_guard/" not in k} for m in lines]


@pytest.mark.parametrize("how", [["--from"], []])
def test_a_run_is_repeated_to_the_bit(command, finished, how):
    again = command("train", *how, str(finished))
    assert again.code == 0, again.err
    assert f"from {finished}: the same config" in again.out
    assert losses(again.folder) == losses(finished)
    one, two = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (finished, again.folder))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert again.record["started_from"] == str(finished)
    assert again.record["identity"] == json.loads((finished / "run.json").read_text())["identity"]


def test_what_follows_from_a_change_is_worked_out_again_and_every_difference_is_printed(command, finished):
    changed = command("--from", str(finished), "method=qlora", "task_recipe.rank=8")
    assert changed.code == 0, changed.err
    for line in (
        "method.r: 16 (conf/method/lora.yaml:5) -> 8",
        "optim._target_: 'tuneforge.optim.adamw'",
        "method.name: 'lora'",
    ):
        assert line in changed.out, changed.out
    assert changed.record["choices"]["optim"] == "paged_adamw_8bit"
    # What was typed then still holds.
    assert changed.record["settled"]["num_steps"] == 4
    assert "optim.lr:" not in changed.out


def test_a_change_replaces_what_was_typed_then(finished):
    composed = compose_from(finished, ["optim.lr=3e-4"])
    assert composed.tree["optim"]["lr"] == 3e-4
    assert composed.origins["optim.lr"].where == "command line: optim.lr=3e-4"
    assert sum("optim.lr" in o for o in composed.overrides) == 1


def test_choices_stay_though_the_defaults_have_changed_since(finished, tmp_path):
    record = json.loads((finished / "run.json").read_text())
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "provenance.json"):
        (copy / name).write_bytes((finished / name).read_bytes())
    record["choices"]["scheduler"] = "linear"
    record["versions"]["torch"] = "1.0"
    (copy / "run.json").write_text(json.dumps(record))
    composed = compose_from(copy, ["seed=3"])
    assert composed.choices["scheduler"] == "linear"
    assert any(n.strip().startswith("torch was 1.0 and is 2.") for n in composed.notes)
    assert any("seed: 17" in n for n in composed.notes)


def test_a_secret_that_was_masked_must_be_given_again(finished, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "provenance.json", "run.json"):
        (copy / name).write_bytes((finished / name).read_bytes())
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("bundled:tiny", "'***'"))
    with pytest.raises(TuneforgeError) as raised:
        compose_from(copy, [])
    assert raised.value.problems[0].path == "model.path"


def test_a_run_whose_config_is_not_good_any_more_says_what_is_wrong(finished, tmp_path, refused):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "provenance.json", "run.json"):
        (copy / name).write_bytes((finished / name).read_bytes())
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("packing:", "packin:"))
    assert "did you mean 'packing'" in refused("--from", str(copy))


def test_rows_that_are_not_those_of_the_run_are_said(command, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i} plus 1?", "completion": str(i + 1)}) + "\n" for i in range(40)))
    first = command("data=file", f"data.path={rows}", *QUICK, "trainer.max_steps=1")
    rows.write_text(rows.read_text() + json.dumps({"prompt": "more?", "completion": "yes"}) + "\n")
    again = command("--from", str(first.folder))
    assert f"the rows are not those of {first.folder}" in again.out


@pytest.mark.parametrize(
    ("error", "code", "path"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out-of-memory", "batch.per_device"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: x"), "out-of-memory", "batch.per_device"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), "out-of-memory", "batch.per_device"),
        (RuntimeError("CUDA error: out of memory"), "out-of-memory", "batch.per_device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out-of-memory", "batch.per_device"),
        (MemoryError("Unable to allocate 40. GiB for an array"), "out-of-memory", "batch.per_device"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "worker-died", "data.num_workers"),
        (OSError(28, "No space left on device", "/x/last.ckpt"), "disk-full", "output_root"),
        (PermissionError(13, "Permission denied", "/x"), "not-writable", "output_root"),
    ],
)
def test_errors_of_the_libraries_under_us_are_told_in_the_words_of_the_config(error, code, path):
    with pytest.raises(TuneforgeError) as raised, library_errors_explained(compose().config):
        raise error
    (problem,) = raised.value.problems
    assert (problem.code, problem.path) == (code, path)
    assert problem.fix
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    ("options", "error", "advised"),
    [
        ((), torch.OutOfMemoryError("CUDA"), {"batch.per_device=1", "trainer.gradient_checkpointing=true",
                                              "trainer.activation_offload=true"}),
        (("method=prefix_tuning",), torch.OutOfMemoryError("CUDA"),
         {"batch.per_device=1", "trainer.activation_offload=true"}),
        ((), MemoryError(""), {"batch.per_device=1", "trainer.gradient_checkpointing=true"}),
        ((), RuntimeError("DataLoader worker (pid 7) is killed"), {"data.num_workers=0"}),
    ],
)  # fmt: skip
def test_what_is_advised_for_going_on_composes_and_leaves_the_run_its_identity(options, error, advised):
    composed = compose([*options, "data.num_workers=2"])
    with pytest.raises(TuneforgeError) as raised, library_errors_explained(composed.config, composed.tree):
        raise error
    fix = raised.value.problems[0].fix
    assert set(re.findall(r"[\w.]+=\w+", fix[: fix.index(", with resume=auto")])) == advised
    assert identity(compose([*options, "data.num_workers=2", *advised]).tree) == identity(composed.tree)


def test_other_errors_of_libraries_stay_as_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), library_errors_explained(compose().config):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_running_out_of_memory_ends_with_what_to_change_and_no_traceback(refused, monkeypatch, tmp_path, capfd):
    from tuneforge.objectives.causal_lm import CausalLM

    def full(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(CausalLM, "training_step", full)
    said = refused(*QUICK, f"hydra.run.dir={tmp_path / 'run'}", f"output_root={tmp_path}")
    assert "method=qlora" in said
    # What is advised for going on is what `resume` lets change.
    advised = re.findall(r"[\w.]+=\w+", said[said.index("add ") : said.index(", with resume=auto")])
    assert len(advised) == 3
    assert identity(compose([*QUICK, *advised]).tree) == identity(compose([*QUICK]).tree)
    monkeypatch.setenv("TUNEFORGE_DEBUG", "1")
    from tuneforge.cli import run

    where = (f"hydra.run.dir={tmp_path / 'other'}", f"output_root={tmp_path}")
    assert run([*QUICK, *advised, "resume=auto", *where]) == 2
    printed = capfd.readouterr()
    assert "OutOfMemoryError: CUDA out of memory" in printed.err
    assert f"{tmp_path / 'run'} has no whole checkpoint, starting it over" in printed.out
    assert not (tmp_path / "other").exists()
