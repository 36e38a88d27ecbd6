"""doctor: every fault it is for is injected, and named with the command that mends it; no secret is printed."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from doctor_bench import CUDA, H100, Bench, make_bench, request
from tuneforge import doctor, rules
from tuneforge.commands.doctor import run
from tuneforge.doctor import facts, packages, probe, project
from tuneforge.doctor.check import GIB, MIB, Check, pip_install
from tuneforge.doctor.facts import Step
from tuneforge.masking import is_secret_key


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    return make_bench(tmp_path, monkeypatch, capsys)


def test_a_healthy_machine_is_ok_and_says_the_command(bench: Bench) -> None:
    assert [c for c in bench.json().values() if c.status != "ok"] == []
    said = bench.run()
    assert said.code == 0
    assert said.out.splitlines()[-1] == "the default job can run here: python -m tuneforge hardware=cpu"
    assert len(said.out.splitlines()) <= 45
    assert "\x1b" not in said.out


def test_the_columns_are_aligned_and_only_findings_have_a_fix(bench: Bench) -> None:
    bench.versions(datasets=None)
    lines = bench.run().out.splitlines()
    checks = bench.json()
    at_column = 9 + max(map(len, checks)) + 2
    assert [line[at_column:] for line in lines if line.startswith(("ok", "missing"))] == [
        check.found for check in checks.values()
    ]
    (at,) = [i for i, line in enumerate(lines) if line.startswith("missing")]
    assert lines[at + 1].strip() == pip_install("datasets")
    assert all(bool(c.fix) == (c.status != "ok") for c in checks.values())


def test_the_worst_machine_still_gets_a_readable_page(bench: Bench) -> None:
    bench.versions(**{part.package.replace("-", "_"): None for part in packages.PARTS})
    assert len(bench.run().out.splitlines()) <= 45


# ---- Python and packages


def test_an_old_package_fails_with_the_pip_command(bench: Bench) -> None:
    bench.versions(transformers="5.2.0")
    said = bench.run()
    assert said.code == 2
    (problem,) = said.problems
    assert "the default job cannot run here: package transformers: 5.2.0" in problem
    assert "-m pip install 'transformers<6,>=5.17'" in problem
    assert "the default job can run" not in said.out
    assert "transformers" not in bench.json()["packages"].found


def test_an_absent_package_fails_with_the_pip_command(bench: Bench) -> None:
    bench.versions(peft=None)
    check = bench.json()["package peft"]
    assert check.status == "fail"
    assert check.fix.endswith("-m pip install 'peft<0.22,>=0.21'")


def test_a_package_that_does_not_import_fails(bench: Bench) -> None:
    broken = Step(error="OSError: libcudart.so.12: cannot open shared object file")
    steps = bench.steps
    bench.patch.setattr(
        doctor,
        "ask_libraries",
        lambda modules: {f"import:{m}": broken if m == "lightning" else Step() for m in modules} | steps,
    )
    check = bench.json()["package lightning"]
    assert check.status == "fail"
    assert "libcudart.so.12" in check.found
    assert "--force-reinstall --no-deps 'lightning<2.7,>=2.6.1'" in check.fix
    Path("lightning.py").touch()
    assert bench.json()["package lightning"].fix.startswith(f"rename {Path('lightning.py').absolute()}")


def test_what_fails_because_torch_does_is_told_so(bench: Bench) -> None:
    gone = Step(error="OSError: libtorch.so: undefined symbol")
    bench.steps.update(dict.fromkeys(("import:torch", "import:peft", "torch", "compute", "nf4", "gloo"), gone))
    checks = bench.json()
    assert "--force-reinstall" in checks["package torch"].fix
    assert checks["package peft"].fix == "mend the package torch first"


def test_without_torch_the_devices_are_left_out(bench: Bench) -> None:
    gone = Step(error="ModuleNotFoundError: No module named 'torch'")
    bench.steps.update(dict.fromkeys(("import:torch", "torch", "compute", "nf4", "gloo"), gone))
    bench.versions(torch=None)
    checks = bench.json()
    assert checks["package torch"].status == "fail"
    assert checks["torch"].status == "warn"
    assert {"bf16", "processes"} & set(checks) == set()


def test_a_torch_that_hangs_on_its_devices_fails(bench: Bench) -> None:
    bench.steps["torch"] = Step(error="no answer in 300 s")
    check = bench.json()["torch"]
    assert (check.status, "no answer" in check.found) == ("fail", True)


def test_another_python_fails(bench: Bench) -> None:
    bench.patch.setattr(packages.platform, "python_version", lambda: "3.10.4")
    check = bench.json()["python"]
    assert check.status == "fail"
    assert "3.10.4" in check.found
    assert "venv" in check.fix


def test_stale_metadata_of_an_editable_install_is_told(bench: Bench) -> None:
    bench.versions(tuneforge="0.0.1")
    check = bench.json()["tuneforge"]
    assert (check.status, "0.0.1" in check.found) == ("warn", True)
    bench.versions(tuneforge=None)
    assert bench.json()["tuneforge"].status == "fail"


def test_every_declared_package_has_a_module_of_the_name_that_is_tried() -> None:
    from importlib.util import find_spec

    names = [r.name for r in packages.requirements()]
    assert len(names) >= 12
    assert [n for n in names if find_spec(packages.module_of(n)) is None] == []
    assert "ruff" not in names


def test_an_optional_part_names_the_extra_that_brings_it(bench: Bench) -> None:
    bench.versions(pyarrow=None, datasets=None)
    checks = bench.json()
    assert checks["pyarrow"].status == checks["datasets"].status == "missing"
    assert checks["pyarrow"].fix.endswith("-m pip install 'tuneforge[data]'")
    assert "[" not in checks["datasets"].fix
    bench.versions(pyarrow="1.0")
    assert bench.json()["pyarrow"].status == "warn"


def test_parts_for_gpus_are_missed_on_gpus_alone(bench: Bench) -> None:
    bench.versions(flash_attn=None)
    assert bench.json()["flash-attn"].status == "ok"
    bench.steps |= {"torch": Step(CUDA | {"gpus": [H100]}), "compute": Step({"free": [78 * GIB]})}
    check = bench.json()["flash-attn"]
    assert (check.status, check.fix.endswith("pip install --no-build-isolation flash-attn")) == ("missing", True)


def test_a_new_extra_is_used_at_once(bench: Bench) -> None:
    real = metadata.metadata("tuneforge")
    real["Provides-Extra"] = "hub"
    declared = [*(metadata.requires("tuneforge") or []), 'datasets>=4; extra == "hub"']
    bench.patch.setattr(metadata, "metadata", lambda name: real)
    bench.patch.setattr(metadata, "requires", lambda name: declared)
    bench.versions(datasets=None)
    assert bench.json()["datasets"].fix.endswith("'tuneforge[hub]'")


def test_a_folder_of_old_logs_is_not_the_package(bench: Bench) -> None:
    bench.versions(wandb=None)
    Path("wandb").mkdir()
    assert bench.json()["wandb"].status == "missing"


def test_kernels_is_named(bench: Bench) -> None:
    bench.versions(kernels="0.12.0")
    assert "tuneforge does not let it" in bench.json()["kernels"].found


@pytest.mark.parametrize("python_on_path", [True, False])
def test_the_pip_command_is_for_this_python(bench: Bench, python_on_path: bool) -> None:
    bench.patch.setattr(sys, "executable", str(bench.root / "bin" / "python3"))
    if python_on_path:
        bench.tool("python")
    wanted = "python" if python_on_path else str(bench.root / "bin" / "python3")
    assert pip_install("a>=1") == f"{wanted} -m pip install 'a>=1'"


def test_an_environment_without_pip_is_served_by_uv(bench: Bench) -> None:
    bench.patch.setattr("importlib.util.find_spec", lambda name: None)
    assert pip_install("a").startswith("uv pip install --python ")


# ---- the environment


def test_no_secret_is_ever_printed(bench: Bench) -> None:
    secret = "hf_QxyzzyQxyzzyQxyzzy"
    for name in ("HF_TOKEN", "TUNEFORGE_SECRET", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        bench.patch.setenv(name, secret)
    bench.steps["nf4"] = Step(error=f"HTTPError: 401 for the token {secret}")
    said, checks = bench.run(), bench.json(f"model.path={secret}")
    assert "HF_TOKEN is set" in said.out
    assert "TUNEFORGE_SECRET is set" in said.out
    assert "401 for the token ***" in said.out
    assert secret not in said.out
    assert secret not in repr(checks)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "API_KEY_FILE", "MY_TOKENS_DIR"])
def test_what_is_no_secret_is_left_alone(name: str) -> None:
    assert not is_secret_key(name)


def test_a_kept_token_and_offline_are_told(bench: Bench) -> None:
    assert "no token" in bench.json()["hub"].found
    kept = bench.root / "home" / ".cache" / "huggingface" / "token"
    kept.parent.mkdir(parents=True)
    kept.write_text("hf_other_secret")
    bench.patch.setenv("HF_HUB_OFFLINE", "1")
    assert bench.json()["hub"].found == f"token in {kept}; HF_HUB_OFFLINE: nothing is fetched"


def test_variables_are_shown(bench: Bench) -> None:
    bench.patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    bench.patch.setenv("TUNEFORGE_OTHER", "abc")
    assert bench.json()["environment"].found == "CUDA_VISIBLE_DEVICES=0,1, TUNEFORGE_OTHER is set"


def test_what_a_launcher_left_behind_warns(bench: Bench) -> None:
    bench.patch.setenv("WORLD_SIZE", "8")
    check = bench.json()["environment"]
    assert (check.status, check.fix) == ("warn", "unset WORLD_SIZE MASTER_ADDR MASTER_PORT")


# ---- the default job's own parts


def test_a_missing_or_cut_model_file_fails(bench: Bench) -> None:
    import shutil

    folder = bench.root / "tiny"
    shutil.copytree(project.bundled_folder(), folder)
    bench.patch.setattr(project, "bundled_folder", lambda: folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    assert bench.json()["bundled model"].status == "ok"
    for content in (whole[:-1], whole[:100], b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
        weights.write_bytes(content)
        assert "model.safetensors cut short" in bench.json()["bundled model"].found
    weights.write_bytes(whole)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json cut short" in bench.json()["bundled model"].found
    (folder / "tokenizer.json").unlink()
    said = bench.run()
    assert said.code == 2
    assert "has no tokenizer.json" in said.problems[0]


def test_a_python_without_source_fails(bench: Bench) -> None:
    bench.patch.setattr(project.sysconfig, "get_paths", lambda: {"stdlib": str(bench.root)})
    check = bench.json()["data=pydoc"]
    assert (check.status, "data=file" in check.fix) == ("fail", True)


def test_a_config_that_does_not_compose_fails_with_its_own_fix(bench: Bench) -> None:
    check = bench.json("optim.lrr=1", "method.rr=2")["config"]
    assert check.status == "fail"
    assert "and 1 more" in check.found
    assert "lr" in check.fix
    assert bench.run("method=qlora").code == 0
    assert bench.json("method=qlora")["config"].found.startswith("method=qlora: model=tiny")


def test_all_reasons_are_told_at_once(bench: Bench) -> None:
    bench.versions(peft="0.1")
    bench.free(MIB)
    assert len(bench.run().problems) == 2


def test_the_rules_are_listed(bench: Bench) -> None:
    listed = [("a_rule", "It must be so."), ("another_rule", "It [must] not.")]
    bench.patch.setattr(rules, "listing", lambda: listed)
    lines = bench.run(rules=True).out.splitlines()
    assert lines == ["a_rule        It must be so.", "another_rule  It [must] not."]
    as_json = json.loads(bench.run(rules=True, json=True).out)
    assert as_json["rules"][0] == {"name": "a_rule", "rule": "It must be so."}


# ---- the probe


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Step]]:
    """Import modules given as source in the probe's child processes; no library is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(facts, "TRIALS", ())

    def call(**sources: str) -> dict[str, Step]:
        for name, source in sources.items():
            Path(f"{name}.py").write_text(source)
        steps = facts.ask_libraries(list(sources))
        return {name.removeprefix("import:"): step for name, step in steps.items()}

    return call


def test_a_library_that_kills_its_process_is_a_finding(imports: Callable[..., dict[str, Step]]) -> None:
    steps = imports(
        one="print('chatter'); print('@tuneforge.doctor {', end='')",
        two="import os, sys; print('illegal', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)",
        three="raise OSError('libthree.so\\nmore')",
        four="",
    )
    assert steps["one"] == steps["four"] == Step()
    assert steps["two"].error == "ended its process with SIGSEGV: illegal"
    assert steps["three"].error == "OSError: libthree.so"


def test_a_library_that_hangs_is_a_finding(
    imports: Callable[..., dict[str, Step]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "PROBE_SECONDS", 3)
    steps = imports(one="", two="import time; time.sleep(60)", three="")
    assert steps["one"] == Step()
    assert steps["two"].error == "no answer in 3 s"
    assert steps["three"].error == "not tried: no answer in 3 s"


def test_a_python_that_does_not_start_is_a_finding(
    imports: Callable[..., dict[str, Step]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert imports(one="")["one"].error == "not tried: ended its process with exit code 1"


def test_this_machine_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real libraries: everything imports, NF4 works, and nothing but the JSON is printed."""
    monkeypatch.chdir(tmp_path)
    code = run(request(json=True))
    captured = capfd.readouterr()
    said = json.loads(captured.out)
    assert captured.err == ""
    assert set(said) == {"ok", "checks"}
    assert code == 0, [c for c in said["checks"] if c["status"] == "fail"]
    assert said["ok"] is True
    checks = {c["name"]: Check(**c) for c in said["checks"]}
    assert len(checks) == len(said["checks"]) >= 30
    assert all(f"{r.name} " in checks["packages"].found for r in packages.requirements())
    assert checks["bitsandbytes"].status == "ok"
    assert checks["processes"].status == "ok"


def test_every_trial_has_its_function() -> None:
    assert tuple(probe.FACTS) == facts.TRIALS


def test_the_doctor_itself_imports_no_library_that_may_be_broken() -> None:
    code = "import sys, tuneforge.commands.doctor; print({'torch', 'transformers', 'psutil'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
