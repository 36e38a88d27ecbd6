"""A canary: things that no config may touch, looked at before and after each test."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from fuzzing import limited

MODULE = "canary_module"


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Path -> mode and sha256 of everything below a folder; of a link, where it points."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link to {os.readlink(path)}"
        else:
            what = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, what)
    return found


def children() -> set[int]:
    """Process ids of this process's children that run or are not waited for."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended since
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@dataclass
class Canary:
    """What an attack aims at. `check` fails where anything of it has changed."""

    folder: Path
    """A folder with files, which an attack tries to delete, move or write into."""
    file: Path
    """A file in it, which an attack tries to overwrite."""
    mark: Path
    """A path at which there is nothing: an attack tries to create it."""
    variable: str
    """An environment variable, which an attack tries to change."""
    process: subprocess.Popen[bytes]
    """A process, which an attack tries to end."""
    module: str = MODULE
    """An importable module. It creates `mark` when it is imported, or when its function `run` is called."""
    variables: frozenset[str] = frozenset(os.environ) - {"PYTEST_CURRENT_TEST"}
    before: dict[str, object] = field(default_factory=dict)

    def state(self) -> dict[str, object]:
        """All of it, and what an attack changes of this process."""
        return {
            "folder": contents(self.folder),
            "mark": os.path.lexists(self.mark),
            # Without those that pytest, or a run of ours, sets for the libraries.
            "environment": {k: v for k, v in os.environ.items() if k in self.variables or k.startswith(self.variable)},
            "process": self.process.poll(),
            "children": children(),
            "module": self.module in sys.modules,
            "working directory": Path.cwd(),
            "signals": {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)},
        }

    def check(self) -> None:
        """Fail where something has changed."""
        after = self.state()
        changed = {k: (v, after[k]) for k, v in self.before.items() if after[k] != v}
        assert changed == {}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    """A canary, checked when the test ends; the working directory is an empty folder."""
    nest, here, modules = (tmp_path / name for name in ("nest", "here", "modules"))
    for folder in (nest, nest / "inner", here, modules):
        folder.mkdir()
    (nest / "egg.txt").write_text("whole")
    (nest / "inner" / "run.json").write_text('{"status": "done"}')
    mark = tmp_path / "mark"
    touch = f"from pathlib import Path\nPath({str(mark)!r}).write_text('hatched')\n"
    (modules / f"{MODULE}.py").write_text(f"{touch}\n\ndef run(*args, **kwargs):\n    {touch.splitlines()[1]}\n")
    monkeypatch.syspath_prepend(str(modules))
    sys.modules.pop(MODULE, None)
    monkeypatch.setenv("CANARY", "sings")
    monkeypatch.chdir(here)
    process = subprocess.Popen(["sleep", "600"])
    found = Canary(nest, nest / "egg.txt", mark, "CANARY", process)
    found.before = found.state()
    try:
        yield found
        found.check()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a run of the default config, as somebody else could have changed it."""
    from stand_in import record_of
    from tuneforge.compose import compose

    def write(
        tree: dict[str, object] | None = None, provenance: dict[str, object] | None = None, **record: object
    ) -> Path:
        """`tree` and `provenance`: dotted path -> value; the rest goes into run.json."""
        composed, root = compose(), tmp_path / "run"
        kept = json.loads(json.dumps(composed.tree))
        for path, value in (tree or {}).items():
            *parents, last = path.split(".")
            node = kept
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        origins = {k: o.as_dict() for k, o in composed.origins.items()} | (provenance or {})
        root.mkdir()
        (root / "config.yaml").write_text(yaml.safe_dump(kept))
        (root / "provenance.json").write_text(json.dumps(origins))
        (root / "run.json").write_text(json.dumps({**record_of(composed), "overrides": [], **record}))
        return root

    return write


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[[dict[str, object]], tuple[str, ...]]:
    """Write an experiment of somebody else; returns the arguments that choose it."""

    def write(data: dict[str, object]) -> tuple[str, ...]:
        file = tmp_path / "dir" / "experiment" / "mine.yaml"
        file.parent.mkdir(parents=True)
        file.write_text("# @package _global_\n" + yaml.safe_dump(data, width=10**6))
        return ("--config-dir", str(tmp_path / "dir"), "+experiment=mine", f"output_root={tmp_path / 'out'}")

    return write


@pytest.fixture
def processor_seconds() -> Callable[[float], AbstractContextManager[None]]:
    """`with processor_seconds(2)`: fail where what is inside takes more of the processor; a busy machine costs none."""

    @contextmanager
    def within(most: float) -> Iterator[None]:
        start = time.process_time()
        yield
        assert time.process_time() - start < most

    return within


@pytest.fixture
def sound(
    canary: Canary, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run a command without the training in it, and check how it ended; returns its exit code and what it printed."""
    from tuneforge import build, finish, train  # noqa: F401  # the first run of a process would pay for the imports
    from tuneforge.cli import run

    monkeypatch.setattr(train, "_train", lambda context, record, place: 0)

    def call(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        with limited():
            code = run(list(arguments))
        captured = capfd.readouterr()
        assert code in (0, 2, 3), (code, arguments, captured.err[-1200:])
        assert "Traceback" not in captured.err, (arguments, captured.err[-1200:])
        if code == 2:
            assert captured.err.startswith("error: "), (arguments, captured.err[:500])
        return code, captured.out + captured.err

    return call
