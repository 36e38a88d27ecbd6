"""`tuneforge plugins new`: a working package of one kind, with its test."""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from tuneforge.errors import TuneforgeError

GROUPS = {
    "hardware": "hardware",
    "method": "method",
    "recipe": "task_recipe",
    "data": "data",
    "callback": "callbacks",
    "optim": "optim",
    "scheduler": "scheduler",
}
"""Kind -> the config group that it adds an option to."""
KINDS = tuple(GROUPS)


def write_plugin(folder: Path, name: str, kind: str) -> tuple[Path, str]:
    """Write a plugin that adds one option named like itself; returns its folder and the option as one types it.

    Raises:
        TuneforgeError: the folder is there already.
    """
    if folder.exists() or folder.is_symlink():
        raise TuneforgeError(
            "folder-exists", f"{folder} is there already, and nothing is overwritten", fix="choose another name"
        )
    option, group = name.replace("-", "_"), GROUPS[kind]
    package = f"tuneforge_{option}"
    words = {
        "name": name,
        "kind": kind,
        "package": package,
        "option": option,
        "module": option,
        "choice": f"{group}={option}",
        "Class": "".join(part.capitalize() for part in option.split("_")),
    }
    templates = resources.files("tuneforge.plugins").joinpath("templates")
    code = folder / "src" / package
    files: dict[Path, Traversable] = {
        folder / "pyproject.toml": templates / "common" / "pyproject.toml.txt",
        folder / "README.md": templates / "common" / "README.md.txt",
        folder / "tests" / "test_plugin.py": templates / "common" / "test_plugin.py.txt",
        code / "__init__.py": templates / "common" / "init.py.txt",
        code / "conf" / group / f"{option}.yaml": templates / kind / "option.yaml.txt",
    }
    if (templates / kind / "module.py.txt").is_file():
        files[code / f"{option}.py"] = templates / kind / "module.py.txt"
    for file, template in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
    return folder, words["choice"]
