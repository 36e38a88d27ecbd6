"""A working directory of its own for each test, and plugins written into it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HARDWARE = """\
name: {option}
kind: cuda
match: [none]
vram_gb: 12
compute_capability: "8.6"
precisions: [fp32, bf16]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory in which plugins count; what they put on the import path goes again."""
    monkeypatch.delenv("TUNEFORGE_PLUGINS")
    monkeypatch.delenv("TUNEFORGE_PLUGIN_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("plug_", "tuneforge_my")):
            del sys.modules[name]


@pytest.fixture
def write(here: Path) -> Callable[..., Path]:
    """Write a plugin: `write("name", {file: text})` gives plugins/name, with one hardware profile."""

    def call(name: str, files: dict[str, str] | None = None, folder: str = "plugins", **toml: object) -> Path:
        root = here / folder / name
        package = str(toml.pop("package", f"plug_{name}"))
        point = toml.pop("point", f'{toml.pop("entry", name)} = "{package}"')
        lines = ["[project]", f'name = "{name}"', f'version = "{toml.pop("version", "1.2")}"']
        lines += [f"{k} = {v}" for k, v in toml.items()]
        lines += ['[project.entry-points."tuneforge.plugins"]', str(point)]
        contents = {
            "pyproject.toml": "\n".join(lines),
            f"{package}/__init__.py": "raise RuntimeError('imported')\n",
            f"{package}/conf/hardware/{name}_box.yaml": HARDWARE.format(option=f"{name}_box"),
        }
        for relative, text in {**contents, **(files or {})}.items():
            file = root / relative
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return root

    return call
