"""Every option file: found, composed, checked, and equal after a round trip."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tuneforge.compose import compose
from tuneforge.front import front, groups

CONF = Path(__file__).parents[2] / "conf"
SWEEPS = CONF.parent / "sweeps"
FILES = sorted(p for p in [*CONF.glob("*/*.yaml"), *SWEEPS.glob("*.yaml")])
# Those of a sweep alone: hydra/sweeper and what is in it.
OF_HYDRA = sorted(CONF.glob("hydra/**/*.yaml"))
NEEDS = {"file": ["data.path=rows.jsonl"], "hf": ["model.path=somewhere"]}

OPTIONS = {
    "callbacks": ["default", "none"],
    "data": ["file", "pydoc", "pydoc_chat", "pydoc_code", "pydoc_package", "pydoc_text"],
    "hardware": [
        *("a100_40gb", "a100_80gb", "auto", "cpu", "h100", "h200"),
        *("l40s", "mi300x", "mps", "rtx3090", "rtx4090", "t4"),
    ],
    "logger": ["csv", "default", "mlflow", "none", "wandb"],
    "method": [
        *("adalora", "bottleneck_adapter", "corda", "dora", "eva", "fourierft", "freeze", "full", "ia3", "loha"),
        *("lokr", "lora", "lora_plus", "olora", "p_tuning", "pissa", "prefix_tuning", "prompt_tuning", "qdora"),
        *("qlora", "qlora_8bit", "rslora", "vblora", "vera"),
    ],
    "model": ["hf", "tiny"],
    "optim": ["adafactor", "adamw", "adamw_8bit", "lion", "muon", "paged_adamw_8bit"],
    "scheduler": ["constant", "cosine", "cosine_with_restarts", "inverse_sqrt", "linear", "wsd"],
    "strategy": [
        *("auto", "ddp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero2_offload", "deepspeed_zero3"),
        *("deepspeed_zero3_offload", "fsdp", "fsdp_offload", "fsdp_tp", "single"),
    ],
    "sweep": ["batch_lr", "lora_quick", "loss_vs_forgetting", "lr_rank", "methods"],
    "task_recipe": [
        "chat",
        "classification",
        "code",
        "continued_pretrain",
        "domain",
        "instruct",
        "pretrain",
        "small_data",
    ],
}


def test_the_options_are_these():
    with front() as loader:
        assert groups(loader) == OPTIONS
    assert len(FILES) == sum(map(len, OPTIONS.values())) == 87
    assert len(OF_HYDRA) == 13


def group_of(file: Path) -> str:
    """The group that a file is an option of."""
    return "sweep" if file.parent == SWEEPS else str(file.parent.relative_to(CONF))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{group_of(f)}={f.stem}")
def test_an_option_composes_with_the_defaults_and_its_result_composes_to_itself(file):
    group, option = group_of(file), file.stem
    composed = compose([f"{group}={option}", *NEEDS.get(option, [])])
    assert composed.choices[group] == option
    choices = [f"{g}={o}" for g, o in composed.choices.items()]
    again = compose([*choices, *(f"{key}={_typed(value)}" for key, value in composed.tree.items() if value != {})])
    assert again.tree == composed.tree


def _typed(value: object) -> str:
    """A value in the override grammar: every string quoted, so that none is read as something else."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_typed(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    if isinstance(value, str):
        return f"'{value}'"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


@pytest.mark.parametrize("file", [*FILES, *OF_HYDRA], ids=lambda f: f"{group_of(f)}={f.stem}")
def test_an_option_file_starts_with_a_command_that_uses_it(file):
    first, second = file.read_text().splitlines()[:2]
    # Hydra reads its own header from the very first lines.
    command = second if first.startswith("# @package") else first
    assert command.startswith("# python -m tuneforge ")
    assert f"{group_of(file)}={file.stem}" in command.replace("+", "").split()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{group_of(f)}={f.stem}")
def test_a_named_option_says_its_own_name(file):
    content = yaml.safe_load(file.read_text()) or {}
    node = content.get(group_of(file), content)
    if "name" in node:
        assert node["name"] == file.stem


def test_checking_every_option_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from tuneforge.compose import compose\n"
        f"for group, options in {OPTIONS!r}.items():\n"
        "    for option in options:\n"
        f"        compose([group + '=' + option, *{NEEDS!r}.get(option, [])])\n"
        "heavy = {'torch', 'transformers', 'lightning', 'peft', 'bitsandbytes', 'datasets'} & set(sys.modules)\n"
        "print(heavy); sys.exit(len(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
