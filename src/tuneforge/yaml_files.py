"""The one way to read YAML: as data, within bounds.

OmegaConf's loader builds `!!python/object/apply:pathlib.PosixPath`, and its bound on aliases can be lifted by an
environment variable. Option files, recorded runs and imported configs may come from elsewhere, so neither holds here.
Numbers and booleans are read as OmegaConf reads them: `1e-4` is a number, `2026-11-28` a text.
"""

from importlib.resources.abc import Traversable
from typing import Any

import yaml
from omegaconf._yaml import BaseLoader, get_yaml_loader

from tuneforge.errors import TuneforgeError

MAX_BYTES = 2_000_000
"""Size of a file. A resolved config is about 10 kB."""
MAX_NODES = 20_000
"""Scalars, lists and mappings of a file, with every alias replaced by what it stands for."""
MAX_DEPTH = 40
"""Lists and mappings inside of one another. A resolved config has 5 levels."""


MAX_DIGITS = 40
"""Characters of an integer: Python cannot print one of more than 4,300 digits."""
KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
"""The kinds of values that a config has; YAML's others (set, binary, timestamp, ...) are objects in Python."""


class _Loader(get_yaml_loader(max_yaml_expanded_nodes=MAX_NODES)):  # type: ignore[misc]
    """OmegaConf's loader for values of `KINDS` alone."""

    def construct_yaml_int(self, node: yaml.Node) -> int:
        """An integer of a length that Python can print."""
        if len(str(node.value)) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                problem=f"an integer of more than {MAX_DIGITS} digits", problem_mark=node.start_mark
            )
        return int(super().construct_yaml_int(node))


_PREFIX = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {f"{_PREFIX}{kind}": _Loader.yaml_constructors[f"{_PREFIX}{kind}"] for kind in KINDS}
_Loader.yaml_constructors[f"{_PREFIX}int"] = _Loader.construct_yaml_int
# A lone `=`, to which YAML 1.1 gives a type of its own.
_Loader.yaml_constructors[f"{_PREFIX}value"] = _Loader.yaml_constructors[f"{_PREFIX}str"]
_Loader.yaml_constructors[None] = _Loader.construct_undefined


def read_yaml(text: str, name: str) -> Any:
    """The data in a YAML text; None where it is empty.

    Args:
        text: the YAML.
        name: the file, for the message of an error.

    Raises:
        TuneforgeError: it is no YAML, has tags that build objects, or is larger or deeper than any config.
    """
    try:
        _check_bounds(text, name)
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader, see above
    except yaml.YAMLError as error:
        raise _unreadable(error, name) from error
    except (ValueError, KeyError) as error:  # `!!int x`, `!!bool x`
        raise TuneforgeError("bad-yaml", f"{name}: no value of its tag: {error}", fix="drop the tag") from error


def read_yaml_file(path: Traversable, name: str = "") -> Any:
    """The data in a YAML file.

    Raises:
        TuneforgeError: as `read_yaml`, or the file is too large or no UTF-8 text.
        OSError: it cannot be read.
    """
    return read_yaml(read_text(path, name), name or str(path))


def read_text(path: Traversable, name: str = "") -> str:
    """The text of a YAML file.

    Raises:
        TuneforgeError: the file is too large or no UTF-8 text.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        found = file.read(MAX_BYTES + 1)
    if len(found) > MAX_BYTES:
        raise _too_much(name or str(path), f"{MAX_BYTES:,} bytes")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TuneforgeError("bad-yaml", f"{name or path} is no UTF-8 text: {error}", fix="save it as UTF-8") from error


def node_of(text: str) -> yaml.Node | None:
    """The nodes of a YAML text that `read_yaml` has read, with their lines."""
    return yaml.compose(text, Loader=BaseLoader)


def _check_bounds(text: str, name: str) -> None:
    """Count nodes and levels from the stream of events: nothing is built, so nothing deep can overflow the stack."""
    if len(text) > MAX_BYTES:
        raise _too_much(name, f"{MAX_BYTES:,} bytes")
    depth = nodes = 0
    for event in yaml.parse(text, Loader=BaseLoader):
        opens = isinstance(event, yaml.CollectionStartEvent)
        depth += opens - isinstance(event, yaml.CollectionEndEvent)
        nodes += opens or isinstance(event, yaml.ScalarEvent | yaml.AliasEvent)
        if depth > MAX_DEPTH:
            raise _too_much(name, f"{MAX_DEPTH} levels", event.start_mark)
        if nodes > MAX_NODES:
            raise _too_much(name, f"{MAX_NODES:,} values", event.start_mark)


def _too_much(name: str, bound: str, mark: Any = None) -> TuneforgeError:
    where = f"{name}:{mark.line + 1}" if mark else name
    return TuneforgeError("yaml-too-large", f"{where}: more than {bound}, which no config has", fix="check the file")


def _unreadable(error: yaml.YAMLError, name: str) -> TuneforgeError:
    problem = str(getattr(error, "problem", None) or error).splitlines()[0]
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    if "could not determine a constructor for the tag" in problem:
        tag = problem.rpartition("tag ")[2].strip("'\"")
        message = f"{where}: the tag {tag} builds an object, and a config is data"
        return TuneforgeError("yaml-tag", message, fix="write the value itself, without the tag")
    if "nesting depth" in problem:
        return _too_much(name, f"{MAX_DEPTH} levels", mark)
    if "expan" in problem:
        return _too_much(name, f"{MAX_NODES:,} values with its aliases replaced", mark)
    context = getattr(error, "context", None)
    message = f"{where}: cannot be read as YAML: {f'{context}: ' if context else ''}{problem}"
    return TuneforgeError("bad-yaml", message, fix="correct that line")
