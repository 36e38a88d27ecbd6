"""docs/plugins.md can be followed from top to bottom, and the surface that it promises is there.

The page's form: a line that is a file's name in backticks with a colon stands above the file's content; a `console`
block has commands after `$ ` and under each what it prints, where `...` is any number of lines, or the rest of a line.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tuneforge.cli import VERBS, run
from tuneforge.compose import compose
from tuneforge.console import console
from tuneforge.front import front, groups
from tuneforge.schema.signature import read_signature

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
HOME = "/home/you/work"
"""The reader's folder, as the page has it."""
COMMAND = "python -m tuneforge "
SHORT = (
    *("trainer.max_steps=2", "data.max_rows=16", "data.split.max_eval_rows=4", "batch.effective=4", "samples.num=0"),
    "trainer.devices=1",
)
PACKAGES = ("garage", "lora_near", "flashcards", "pulse_log", "focal_loss", "tuneforge_my_sums")


class Step(NamedTuple):
    """A file to write, or a command to run."""

    file: str = ""
    command: str = ""
    text: str = ""
    """The file's content, or what the command prints."""


def steps() -> Iterator[Step]:
    blocks = re.findall(r"(?:^`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for file, kind, text in blocks:
        assert bool(file) == (kind != "console"), (file, kind, text)
        if file:
            yield Step(file=file, text=text)
            continue
        for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, printed = command.partition("\n")
            yield Step(command=line, text=printed)


def pattern(printed: str) -> re.Pattern[str]:
    """What the output must match: lines in order, `...` for any others."""
    parts = []
    for line in printed.splitlines():
        if line == "...":
            parts.append(r"(?:.*\n)*?")
        elif line.endswith("..."):
            parts.append(re.escape(line.removesuffix("...")) + r".*\n")
        else:
            parts.append(re.escape(line) + r"\n")
    return re.compile("".join(parts))


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's empty folder; what the page's plugins leave in this process goes again."""
    monkeypatch.delenv("TUNEFORGE_PLUGINS")
    monkeypatch.delenv("TUNEFORGE_PLUGIN_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # check_plugin in an earlier test leaves rich's console on that test's stdout.
    monkeypatch.setattr(console, "_file", None)
    assert [p for p in PACKAGES if importlib.util.find_spec(p)] == []
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


def write(root: Path, step: Step) -> None:
    file = root / step.file
    file.parent.mkdir(parents=True, exist_ok=True)
    assert not file.exists()
    file.write_text(step.text)


def trains(arguments: list[str]) -> bool:
    return arguments[0] not in VERBS and "--cfg" not in arguments


@pytest.fixture
def follow(workshop: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[Step], dict[str, Any] | None]:
    """Run one command of the page and compare what it prints; the run.json of one that trained."""

    def call(step: Step) -> dict[str, Any] | None:
        arguments = shlex.split(step.command.removeprefix(COMMAND))
        refused = step.text.startswith("error: ")
        training = trains(arguments) and not refused
        # A folder's default name is the second it was made in, and two short runs can share one.
        folder = workshop / "runs" / str(len(list((workshop / "runs").glob("*"))))
        capfd.readouterr()
        code = run([*arguments, *((*SHORT, f"hydra.run.dir={folder}") if training else ())])
        captured = capfd.readouterr()
        said = (captured.out + captured.err).replace(str(workshop), HOME)
        assert code == (2 if refused else 0), (step.command, said)
        assert pattern(step.text).fullmatch(said if said.endswith("\n") else f"{said}\n"), (step.command, said)
        if not training:
            return None
        return {**json.loads((folder / "run.json").read_text()), "folder": folder}

    return call


def test_the_page_can_be_followed_from_top_to_bottom(workshop, follow):
    records = {}
    written = commands = 0
    for step in steps():
        if step.file:
            write(workshop, step)
            written += 1
            if step.file.endswith("test_near.py"):
                assert call_tests(workshop / step.file) == 1
        elif step.command.startswith(COMMAND):
            record = follow(step)
            commands += 1
            if record is not None:
                records[step.command] = record
    assert (written, commands, len(records)) == (23, 14, 5)
    near, cards, pulse, watched, focal = records.values()
    used = [[p["name"] for p in r["plugins"]] for r in (near, cards, pulse, watched, focal)]
    assert used == [["near"], ["cards"], ["pulse"], ["pulse"], ["cards", "focal"]]
    assert all(len(p["sha256"]) == 64 and p["origin"] for r in records.values() for p in r["plugins"])
    assert (near["folder"] / "adapter" / "adapter_model.safetensors").is_file()
    template = (workshop / "plugins/cards/flashcards/cards.jinja").read_text()
    assert (cards["folder"] / "adapter" / "chat_template.jinja").read_text() == template
    metrics = [json.loads(line) for line in (pulse["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert any("pulse/weight_norm" in m for m in metrics)
    assert (watched["guards"]["norm_guard"]["count"], watched["exit"]) == (2, 0)
    assert "How far the weights grew" in (watched["folder"] / "report.html").read_text()
    assert {"eval/loss", "eval/exact"} <= focal["metrics"]["before"].keys() & focal["metrics"]["after"].keys()


def call_tests(file: Path) -> int:
    """Call the tests in a file of the page, without another pytest."""
    spec = importlib.util.spec_from_file_location("test_of_the_page", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [f for name, f in vars(module).items() if name.startswith("test_")]
    for test in tests:
        test()
    return len(tests)


def test_the_plugin_with_a_build_table_installs(tmp_path):
    """By pip, into a folder of its own and without the network; then it is found from anywhere."""
    (command,) = [s.command for s in steps() if s.command.startswith("pip ")]
    for step in steps():
        if step.file.startswith("plugins/near/"):
            write(tmp_path, step)
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    install = [sys.executable, "-m", *shlex.split(command), *offline, "--target", str(site)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("TUNEFORGE_")} | {"PYTHONPATH": str(site)}
    for arguments, where in ((install, tmp_path), ([sys.executable, "-m", "tuneforge", "plugins"], elsewhere)):
        done = subprocess.run(arguments, cwd=where, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout == f"near 0.1.0   {site / 'lora_near'}\n    adds method: lora_near\n"


# ---- what a target gets


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, its own head left out."""
    text = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


OBJECTS = {
    "data": 0, "method": 0, "optim": 1, "scheduler": 2, "strategy": 1, "task_recipe": 1, "callbacks": 0, "logger": 1,
}  # fmt: skip


def test_targets_get_the_objects_that_the_page_says():
    told = {group.strip("`"): objects for group, objects, _ in table("What a `_target_` gets")}
    assert {g: 0 if o == "none" else 1 + o.count(", the ") for g, o in told.items()} == OBJECTS
    tree = compose(["optim=adamw", "scheduler=cosine"]).tree
    taken = {g: tree[g] for g in OBJECTS if "_target_" in tree[g]}
    taken |= {g: next(iter(tree[g].values())) for g in ("callbacks", "logger")}
    assert {g: read_signature(node["_target_"]).num_objects for g, node in taken.items()} == OBJECTS


def test_the_page_names_every_group():
    (sentence,) = re.findall(r"All groups can be added\s+to: (.*?)\n\n", PAGE.read_text(), re.DOTALL)
    named = set(re.findall(r"`(\w+)`", sentence))
    with front() as loader:
        assert named == {*groups(loader), "experiment"}


# ---- what stays: changing this list is changing a promise

SURFACE = {
    "tuneforge.errors.TuneforgeError": ["TuneforgeError(code, message, path, origin, fix)", "of(problems)", "problems"],
    "tuneforge.errors.Problem": ["Problem(code, message, path, origin, fix)"],
    "tuneforge.schema.types.Range": ["Range(ge, gt, le, lt)"],
    "tuneforge.schema.types.PositiveInt": [],
    "tuneforge.schema.types.Count": [],
    "tuneforge.schema.types.PositiveFloat": [],
    "tuneforge.schema.types.NonNegative": [],
    "tuneforge.schema.types.Fraction": [],
    "tuneforge.schema.types.Probability": [],
    "tuneforge.data.rows.Row": ["Row(fields, origin, group, held_out)"],
    "tuneforge.data.formats.Example": [
        "Example(messages, prompt, completion, text, origin, group, held_out, labels, multi_label)"
    ],
    "tuneforge.data.formats.Message": ["role", "content"],
    "tuneforge.data.formats.RowError": [],
    "tuneforge.data.batches.Batch": ["input_ids", "labels", "position_ids", "num_labels"],
    "tuneforge.method.Method": [
        *("trains_base", "stores_fp32", "exact", "checkpoints", "virtual_tokens"),
        *("packs", "footprint", "quantises", "rewriting", "not_on_conv1d"),
        *("num_observed", "observe(model, batches)"),
        *("quantization_config(dtype)", "apply(model, adapter)", "save(model, folder)"),
        *("on_start(model, num_steps)", "penalty(model)", "on_step_end(model, step)"),
        *("learning_rate_scale(name)", "state(model)", "load_state(model, state)"),
    ],
    "tuneforge.methods.lora.Lora": ["r", "lora_alpha", "lora_dropout", "target_modules", "peft_config(model)"],
    "tuneforge.objectives.base.Objective": [
        *("Objective(context)", "context", "model", "summed()"),
        *("load_base(dtype, quantization_config)", "loss_sum(batch)", "count(batch)", "throughput(batch, seconds)"),
    ],
    "tuneforge.objectives.causal_lm.CausalLM": [
        *("CausalLM(context)", "context", "model", "configure_optimizers()"),
        *("loss_of_logits(logits, labels, batch)", "loss_sum(batch)"),
        *("training_step(batch, batch_idx)", "validation_step(batch, batch_idx)"),
        *("on_validation_epoch_start()", "on_validation_epoch_end()"),
    ],
    "tuneforge.context.Context": [
        *("config", "tree", "machine", "settled", "tokenizer", "architecture", "method", "eval_examples"),
    ],
    "tuneforge.machine.Machine": [
        *("device", "kind", "name", "memory_bytes", "bf16", "fp16", "world_size", "rank"),
    ],
    "tuneforge.callbacks.guard.Guard": [
        *("Guard(action)", "name", "on", "path", "gauges", "state_dict()", "load_state_dict(state_dict)"),
        *("act(trainer, problem, step)", "found(trainer, problem, step, did)", "stop(trainer, problem, step)"),
        *("tiles()", "tables()", "gates()", "catch_up(trainer, pl_module)"),
    ],
    "tuneforge.callbacks.guard.Tile": ["Tile(name, value, beside)"],
    "tuneforge.callbacks.guard.Table": ["Table(title, columns, rows, numbers, folded)"],
    "tuneforge.callbacks.guard.Gate": ["Gate(name, passed, value, wanted)"],
    "tuneforge.callbacks.guard.steps": ["steps(trainer, batch_idx)"],
    "tuneforge.callbacks.guard.agreed": ["agreed(trainer, flag)"],
    "tuneforge.generation.generate": ["generate(module, prompts, max_new_tokens, stop)"],
    "tuneforge.testing.check_plugin": ["check_plugin(folder, train)"],
}


def test_the_page_promises_what_is_pinned_here():
    promised: dict[str, list[str]] = {}
    for name, members in table("What stays"):
        promised.setdefault(name.strip("`"), []).extend(re.findall(r"`([^`]+)`", members))
    assert promised == SURFACE


@pytest.mark.parametrize("name", SURFACE)
def test_a_promised_name_is_there_with_its_members(name):
    module, _, last = name.rpartition(".")
    thing = getattr(importlib.import_module(module), last)
    for member in SURFACE[name]:
        called, bracket, parameters = member.rstrip(")").partition("(")
        if bracket:
            call = thing if called == last else getattr(thing, called)
            found = [p for p in inspect.signature(call).parameters if p != "self"]
            assert found == [p for p in parameters.split(", ") if p], member
        else:
            assert has(thing, member), member


def has(cls: type, member: str) -> bool:
    """A class's attribute, field or property, or what its `__init__` sets."""
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    own = [base for base in cls.__mro__ if base.__module__.startswith("tuneforge.")]
    annotated = {name for base in own for name in vars(base).get("__annotations__", {})}
    written = [base for base in own if "__init__" in vars(base) and not dataclasses.is_dataclass(base)]
    initialised = "".join(inspect.getsource(base.__init__) for base in written)
    return member in fields | annotated or hasattr(cls, member) or f"self.{member}" in initialised


def test_the_promised_types_are_enforced():
    """Each is a rule, not only a hint: the smallest values on either side of its bound."""
    from tuneforge.schema import types

    bounds = {
        "PositiveInt": (1, 0), "Count": (0, -1), "PositiveFloat": (1e-9, 0), "NonNegative": (0, -1e-9),
        "Fraction": (1, 1.1), "Probability": (0.99, 1),
    }  # fmt: skip
    assert {f"tuneforge.schema.types.{n}" for n in bounds} == {
        n for n in SURFACE if n.startswith("tuneforge.schema.types.") and n.rpartition(".")[2] != "Range"
    }
    for name, (good, bad) in bounds.items():
        (rule,) = getattr(types, name).__metadata__
        assert rule.holds(good), name
        assert not rule.holds(bad), name


def test_the_page_is_in_shape():
    text = PAGE.read_text()
    assert max(map(len, text.splitlines())) <= 130
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) >= 4
    assert [x for x in links if not (PAGE.parent / x).exists()] == []
