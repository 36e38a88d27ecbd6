"""Families of methods under every strategy on two processes, against one process; and the page that shows it.

`python tests/distributed/grid.py docs/strategies.md` writes the table into the page.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import several

from tuneforge import resume, rules
from tuneforge.artifacts import whole
from tuneforge.artifacts.checkpoint_io import STATE
from tuneforge.artifacts.folder import read_json
from tuneforge.compose import Composed, compose
from tuneforge.data import source
from tuneforge.errors import TuneforgeError
from tuneforge.front import front, groups
from tuneforge.handover import pack, pack_place

LOSS, NORM = 1e-5, 1e-4
"""Largest relative differences that count as equal."""
DEVICES, GROUPS = 2, {"fsdp_tp": 2}
"""Processes of a run, and how many of them compute a row together."""
SECONDS = 120
"""Of one case; collective operations that wait for each other would wait forever."""

with front() as loader:
    _GROUPS = groups(loader)
# One of each family, and those that a strategy refuses; the others differ by an option or in shapes.
METHODS = ("full", "freeze", "lora", "dora", "qlora", "qlora_8bit", "prompt_tuning", "adalora", "vblora")
STRATEGIES = tuple(s for s in _GROUPS["strategy"] if s not in ("auto", "single"))
STAGES = tuple(s for s in STRATEGIES if s.startswith("deepspeed"))
BEGIN, END = "<!-- equality -->", "<!-- /equality -->"

# Adam's first updates are about lr * sign(gradient): a large rate blows rounding up into the next steps' gradients.
OPTIONS = (
    *("trainer.max_steps=5", "data.max_rows=64", "data.split.max_eval_rows=8", "samples.num=0", "batch.effective=8"),
    *(
        "trainer.val_check_interval=5",
        "task_recipe.dropout=0",
        "data.packing=false",
        "optim=adamw",
        "optim.lr=2e-5",
        "trainer.accelerator=cpu",
    ),
)


def composed(method: str, strategy: str, folder: Path, more: tuple[str, ...] = ()) -> Composed:
    """Raises TuneforgeError where a rule refuses the pair."""
    devices = 1 if strategy == "single" else DEVICES
    rows = 4 * GROUPS.get(strategy, 1) // devices
    spread = (f"batch.per_device={rows}", f"trainer.devices={devices}")
    where = f"hydra.run.dir={folder / f'{method}-{strategy}'}"
    return compose([f"method={method}", f"strategy={strategy}", *OPTIONS, *spread, where, *more])


def run(cases: list[tuple[str, str]], devices: int, folder: Path, more: tuple[str, ...] = ()) -> None:
    """Train each case in the same warm processes, one alone in this one; a case that fails leaves no steps."""
    folder.mkdir(exist_ok=True)
    handovers = [handed_over(composed(m, s, folder, more), folder / f"{m}-{s}.json") for m, s in cases]
    if devices == 1:
        several.run_all(handovers)
    else:
        start("several", *handovers, devices=devices, seconds=SECONDS * len(cases))


def handed_over(found: Composed, file: Path) -> Path:
    """What the processes of a run are given, in a file."""
    place = resume.choose(found, source.read(found.config.data, found.tree["data"], found.config.seed))
    with place.claim:
        file.write_text(json.dumps({"config": pack(found), "place": pack_place(place)}))
    return file


def start(script: str, *arguments: Path | str, devices: int, seconds: float) -> None:
    """Run a module of this folder in as many processes, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    done = subprocess.run(
        [*command, "-m", script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def series(folder: Path, method: str, strategy: str) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a finished case."""
    path = folder / f"{method}-{strategy}" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    steps = [m for m in lines if "train/loss" in m]
    return [m["train/loss"] for m in steps], [m["train/grad_norm"] for m in steps]


def differences(folder: Path, method: str, strategy: str) -> tuple[float, float]:
    """Largest relative differences of loss and norm from the single process's; infinite where it did not end well."""
    one, two = series(folder, method, "single"), series(folder, method, strategy)
    if len(two[0]) != 5 or read_json(folder / f"{method}-{strategy}" / "run.json")["status"] != "done":
        return float("inf"), float("inf")
    pairs = [max(abs(a - b) / abs(a) for a, b in zip(x, y, strict=True)) for x, y in zip(one, two, strict=True)]
    return pairs[0], pairs[1]


def assert_same_checkpoint(one: Path, two: Path) -> None:
    """Of two run folders: the same names, shapes and types, in the same order, and the same numbers within rounding.

    Two processes sum a batch's gradients in another order, so each gradient differs by about 1e-6 of the largest in its
    tensor. Adam's moments are means of gradients and of their squares and differ as much, small elements like large
    ones: each is compared with the largest of its tensor.

    A weight moves by lr * m / sqrt(v), which is about lr however small its gradient is. Where a gradient is no larger
    than rounding, its sign is chance: after k steps that weight may differ by 2 * k * lr, all the way there and back.
    About one element in 1e5 is such a one, so what is compared is the root mean square of a tensor's differences, with
    k * lr: one element of 4,096 is 2 / 64 = 0.03 of that. Measured under ZeRO-3 after 4 steps: 7e-5 of k * lr, and 8e-5
    of the largest moment. With other rows in the last step alone it is 0.03 and 1.3: moments show what is broken.
    """
    import torch

    found = [whole.newest(folder / "checkpoints")[0] for folder in (one, two)]
    assert found[0] is not None
    assert found[1] is not None
    a, b = (torch.load(path / STATE, weights_only=True) for path in found)
    assert a.keys() == b.keys()
    assert list(a["state_dict"]) == list(b["state_dict"])
    (first,), (second,) = a["optimizer_states"], b["optimizer_states"]
    assert first["param_groups"] == second["param_groups"]
    assert list(first["state"]) == list(second["state"])
    assert all(x.keys() == second["state"][i].keys() for i, x in first["state"].items())
    moved = a["global_step"] * max(group["initial_lr"] for group in first["param_groups"])
    for name, x in a["state_dict"].items():
        assert rounded(x, b["state_dict"][name], moved, mean=True) < 0.05, name
    for i, state in first["state"].items():
        for key, x in state.items():
            assert rounded(x, second["state"][i][key], float(x.abs().max()), mean=False) < 1e-3, (i, key)


def rounded(x: Any, y: Any, scale: float, *, mean: bool) -> float:
    """The root mean square, or the largest, of the differences of two tensors of one kind; in parts of a scale."""
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    difference = (x - y).double().abs()
    return float(difference.square().mean().sqrt() if mean else difference.max()) / (scale or 1.0)


def refusal(method: str, strategy: str) -> str:
    """The code of the rule that refuses a pair; "" where none does."""
    try:
        composed(method, strategy, Path("outputs"))
    except TuneforgeError as error:
        return error.problems[0].code
    return ""


def table(cells: dict[tuple[str, str], str]) -> str:
    """Markdown: a row a method, a column a strategy."""
    head = f"| method | {' | '.join(STRATEGIES)} |\n|---|{'---|' * len(STRATEGIES)}\n"
    return head + "".join(f"| {m} | {' | '.join(cells[m, s] for s in STRATEGIES)} |\n" for m in METHODS)


def measured(folder: Path, strategies: tuple[str, ...] = STRATEGIES) -> dict[tuple[str, str], str]:
    """Cell texts of the whole grid: the larger of both differences, or the code of the refusal."""
    run([(m, "single") for m in METHODS], 1, folder)
    # DeepSpeed in processes of its own: what it does to torch must not be why others are equal.
    for part in (set(strategies) - set(STAGES), set(strategies) & set(STAGES)):
        run([(m, s) for m in METHODS for s in strategies if s in part and not refusal(m, s)], 2, folder)
    cells = {}
    for method in METHODS:
        for strategy in strategies:
            code = refusal(method, strategy)
            loss, norm = (0.0, 0.0) if code else differences(folder, method, strategy)
            cells[method, strategy] = f"`{code}`" if code else f"{loss:.0e} / {norm:.0e}"
    return cells


def main(page: Path) -> None:
    """Write the measured table between the marks of the page."""
    assert rules.listing()
    with tempfile.TemporaryDirectory(prefix="tuneforge-grid-") as folder:
        made = table(measured(Path(folder)))
    text = page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{made}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
