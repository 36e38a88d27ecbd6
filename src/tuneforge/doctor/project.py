"""The default job's own parts: the bundled model, the text it learns from, the config."""

import json
import sysconfig
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from tuneforge.compose import Composed
from tuneforge.doctor.check import Check, fail, ok, pip_install
from tuneforge.errors import TuneforgeError

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SHOWN = ("model", "data", "method", "task_recipe", "hardware", "strategy")
"""The groups that are told; the others follow from them."""


def bundled_folder() -> Path:
    """Where `model=tiny` lies."""
    return Path(str(resources.files("tuneforge").joinpath("assets", "tiny")))


def bundled_model() -> Check:
    """Whether its files are there and whole."""
    folder = bundled_folder()
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if lacking:
        return fail("bundled model", f"{folder} has no {', '.join(lacking)}", _again())
    broken = [name for name in FILES if not _whole(folder / name)]
    if broken:
        return fail("bundled model", f"{folder}: {', '.join(broken)} cut short or not what it should be", _again())
    return ok("bundled model", f"{folder}")


def _again() -> str:
    if (Path(__file__).parents[3] / ".git").exists():
        return "git checkout -- src/tuneforge/assets/tiny; or make it again: make tiny"
    return pip_install("tuneforge", options="--force-reinstall --no-deps")


def _whole(file: Path) -> bool:
    """JSON that parses; safetensors as long as its header says, which a cut copy or a git-lfs pointer is not."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_bytes())
        elif file.suffix == ".safetensors":
            return _length_of(file) == file.stat().st_size
    except ValueError:
        return False
    return True


def _length_of(file: Path) -> int:
    """Length, header, tensors: the first is 8 bytes, the second says where the last tensor ends."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            return -1
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


def library_source() -> Check:
    """The standard library as text: what data=pydoc asks its questions about."""
    where = Path(sysconfig.get_paths()["stdlib"])
    files = sum(1 for _ in where.glob("*.py"))
    if files:
        return ok("data=pydoc", f"{files} modules in {where}")
    fix = "use a Python that ships its library as .py files, or your own rows: data=file data.path=FILE"
    return fail("data=pydoc", f"no Python source in {where}", fix)


def default_config(compose: Callable[[], Composed]) -> tuple[Check, Path]:
    """Whether the config composes, and the folder that its runs go to."""
    try:
        composed = compose()
    except TuneforgeError as error:
        first, *others = error.problems
        more = f" (and {len(others)} more: python -m tuneforge --cfg job)" if others else ""
        where = f"{first.path}: " if first.path else ""
        fix = first.fix or "python -m tuneforge --cfg job shows the config"
        return fail("config", f"{where}{first.message}{more}", fix), Path("outputs")
    said = f"{' '.join(composed.overrides)}: " if composed.overrides else "default: "
    chosen = ", ".join(f"{group}={composed.choices[group]}" for group in SHOWN if group in composed.choices)
    return ok("config", said + chosen), Path(composed.config.output_root)
