"""The Python source of a module or of a name in it, found and parsed without importing it."""

import ast
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneforge.plugins import registry


class UnreadableTargetError(Exception):
    """The target's source cannot be found or holds no such name."""


@dataclass(frozen=True)
class Module:
    """A parsed module."""

    name: str
    is_package: bool
    names: Mapping[str, ast.stmt]
    """Classes, functions and assignments of its top level."""
    imports: Mapping[str, str]
    """Imported name -> its dotted path."""

    def absolute(self, name: str) -> str:
        """The dotted path that `name` stands for in this module."""
        return self.imports.get(name, f"{self.name}.{name}")

    def resolved(self, node: ast.expr) -> str:
        """The dotted path of a name that was imported, under whatever other name: `dc.field` is `dataclasses.field`."""
        head, dot, rest = dotted(node).partition(".")
        return f"{self.imports.get(head, head)}{dot}{rest}"


def locate(target: str, depth: int = 0) -> tuple[Module, ast.stmt]:
    """The module and the statement that define a dotted path, through re-exports.

    Raises:
        UnreadableTargetError: there is no such module or name, or no source of it.
    """
    module_name, _, name = target.rpartition(".")
    if not module_name or depth > 8:
        raise UnreadableTargetError(f"{target} names no module and attribute")
    module = read_module(module_name)
    if name in module.names:
        return module, module.names[name]
    if name in module.imports:
        return locate(module.imports[name], depth + 1)
    raise UnreadableTargetError(f"module {module_name} has no {name!r}")


@functools.cache
def read_module(name: str) -> Module:
    """A module's names and imports.

    Raises:
        UnreadableTargetError: there is no such module, or its source cannot be read.
    """
    path = _source_of(name)
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError, OSError) as error:
        line = getattr(error, "lineno", None)
        raise UnreadableTargetError(f"{path}{f':{line}' if line else ''} cannot be read: {error}") from error
    is_package = path.name == "__init__.py"
    names: dict[str, ast.stmt] = {}
    imports: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node
        for found in [node, *_guarded(node)]:
            imports.update(_imports_of(found, name, is_package))
    return Module(name, is_package, names, imports)


def _guarded(node: ast.stmt) -> list[ast.stmt]:
    """The statements under an `if` or `try` at module level: `if TYPE_CHECKING:` and optional imports."""
    return [*node.body] if isinstance(node, ast.If | ast.Try) else []


def _imports_of(node: ast.stmt, module: str, is_package: bool) -> dict[str, str]:
    if isinstance(node, ast.Import):
        return {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
    if not isinstance(node, ast.ImportFrom):
        return {}
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package] if node.level else []
    source = ".".join([*base, *([node.module] if node.module else [])])
    return {a.asname or a.name: f"{source}.{a.name}" for a in node.names}


def _source_of(module: str) -> Path:
    """The file of a module. Only the top-level package is looked up by the import system: no parent is imported."""
    top, *rest = module.split(".")
    origin = _init_of(top)
    if not rest:
        return origin
    # Only tuneforge.conf lies elsewhere (editable installs map it); no target lives there.
    base = origin.parent.joinpath(*rest)
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    raise UnreadableTargetError(f"there is no module {module!r}")


def _init_of(top: str) -> Path:
    """The `__init__.py` of a top-level package, or the file of a top-level module."""
    dropped = registry.package_dir(top)
    if dropped is not None:
        return dropped / "__init__.py"
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError) as error:
        raise UnreadableTargetError(f"package {top!r} cannot be found: {error}") from error
    if spec is None or spec.origin is None:
        raise UnreadableTargetError(f"there is no package {top!r}")
    return Path(spec.origin)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute; "" for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


registry.on_change(read_module.cache_clear)
