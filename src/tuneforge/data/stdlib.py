"""The installed standard library's documentation, read from its source with `ast`; nothing is ever imported.

Importing would run code (`antigravity` opens a browser, `this` prints), need tkinter and curses to be there,
and describe C modules differently from machine to machine. The source is on nearly every machine that has Python.
"""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tuneforge.errors import TuneforgeError

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__", "ensurepip"}
)
"""Not the library itself: installed packages, its tests, an editor, a grammar dump, demos, bundled wheels."""

FAMILIES = {
    "aifc": "wave",
    "sunau": "wave",
    "chunk": "wave",
    "gzip": "bz2",
    "lzma": "bz2",
    "compression": "bz2",
    "threading": "asyncio",
    "threading_local": "asyncio",
    "queue": "asyncio",
    "shutil": "distutils",
    "sysconfig": "distutils",
    "osx_support": "distutils",
    "wsgiref": "email",
    "cgi": "urllib",
    "nturl2path": "urllib",
    "imp": "importlib",
    "zipfile": "tarfile",
    "pydoc": "inspect",
    "collections_abc": "collections",
    "shelve": "dbm",
    "ntpath": "os",
    "posixpath": "os",
    "genericpath": "os",
    "cProfile": "profile",
}
"""Packages that share copied text with another (3 % or more of the eight-word sequences on 3.11) or are part of it."""

SPLIT_SALT = "tuneforge-230"
"""Packages differ in size a hundredfold, so nine salts in ten give 3 to 21 % of the rows. This one was searched for
on Python 3.11: 10 % of rows and text, 9-12 % of each task, no package over a fifth of it, and the same 10 % without
the modules that 3.12 and 3.13 removed. Another salt makes another evaluation set: old numbers no longer compare.
"""
SPLIT_MODULUS = 10

_TYPEWRITER = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--"})
"""Quotes and dashes that some docstrings have and most do not: one spelling is enough for a small vocabulary."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as the caller sees it: no `self`, no `cls`."""

    name: str
    """With its stars: `*args`, `**kwargs`."""
    default: str | None
    """Source text of the default, None when there is none."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A module, class, function or method that has a docstring."""

    module: str
    qualname: str
    """`JSONDecoder.decode`; "" for the module itself."""
    signature: str
    """`def decode(self, s)`, `class JSONDecoder(Base)`, `module json.decoder`."""
    doc: str
    """The docstring, cleaned as `inspect.cleandoc` does."""
    kind: str
    """module, class, function, method or property."""
    parameters: tuple[Parameter, ...] = ()
    """What the caller passes; of a class: what its `__init__` takes."""

    @property
    def dotted(self) -> str:
        """`json.decoder.JSONDecoder.decode`."""
        return f"{self.module}.{self.qualname}" if self.qualname else self.module

    @property
    def name(self) -> str:
        """The last part of it."""
        return self.dotted.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Module:
    """One source file and all that it documents, in the order of the file; its own docstring comes first."""

    name: str
    path: Path
    symbols: tuple[Symbol, ...]


def package(module: str) -> str:
    """The unit that a split must not tear: the top-level package, or the one it shares copied text with."""
    # `_pydecimal` is the source of `decimal`, `_pyio` of `io`, `_strptime` of `time.strptime`.
    top = re.sub(r"^_(py_?)?(?=[a-z])", "", module.partition(".")[0])
    return FAMILIES.get(top, top)


def is_held_out(module: str) -> bool:
    """Whether the module is on the evaluation side; a function of its name alone, so the same on every machine."""
    digest = hashlib.sha256(f"{SPLIT_SALT}:{package(module)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SPLIT_MODULUS == 0


def modules(root: Path | None = None) -> list[Module]:
    """Every module below `root` (default: the running Python's standard library) that parses, by dotted name."""
    where = _root(root)
    found = _scan(where)
    if not found:
        raise TuneforgeError(
            "no-stdlib-source",
            f"no Python source in {where}, so there is no documentation to read",
            path="data",
            fix="use a Python that ships its library as .py files, or your own rows: data=file data.path=FILE",
        )
    return list(found)


@cache
def symbols(root: Path | None = None) -> tuple[Symbol, ...]:
    """Every documented symbol, by module; of equal docstrings the first, and training before held-out modules.

    Taking the training side first keeps text that stands on both sides out of the evaluation.
    """
    found = [symbol for module in modules(root) for symbol in module.symbols]
    first: dict[str, Symbol] = {}
    for symbol in sorted(found, key=lambda s: is_held_out(s.module)):
        first.setdefault(symbol.doc, symbol)
    kept = set(first.values())
    return tuple(symbol for symbol in found if symbol in kept)


def documents(held_out: bool, root: Path | None = None) -> Iterator[str]:
    """Plain text, one document a module as `help()` would show it; for training also the language reference."""
    by_module: dict[str, list[Symbol]] = {}
    for symbol in symbols(root):
        if is_held_out(symbol.module) == held_out:
            by_module.setdefault(symbol.module, []).append(symbol)
    for name, documented in by_module.items():
        yield _render(name, documented).translate(_TYPEWRITER)
    if not held_out:
        yield from (topic.translate(_TYPEWRITER) for topic in topics(root))


def topics(root: Path | None = None) -> list[str]:
    """The language reference as shipped for `help("if")`, without the topics that a longer one contains.

    Empty where the distribution leaves it out.
    """
    path = _root(root) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return []
    texts = _dict_literal(ast.parse(path.read_bytes()), "topics")
    seen: set[str] = set()
    kept: set[str] = set()
    for name in sorted(texts, key=lambda name: (-len(texts[name]), name)):
        paragraphs = [part.strip() for part in texts[name].split("\n\n") if part.strip()]
        # 0.7: `if` and `while` are sections of `compound` with another underline below the heading.
        if sum(part in seen for part in paragraphs) < 0.7 * len(paragraphs):
            kept.add(name)
            seen.update(paragraphs)
    return [texts[name].strip() + "\n" for name in sorted(kept)]


def _root(root: Path | None) -> Path:
    return root or Path(sysconfig.get_paths()["stdlib"])


@cache
def _scan(root: Path) -> tuple[Module, ...]:
    found = [module for path in _sources(root) if (module := _read(path, _dotted(path.relative_to(root))))]
    return tuple(sorted(found, key=lambda module: module.name))


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            # `lib-dynload` and `config-3.11-x86_64-linux-gnu` are no packages: their names are no identifiers.
            if path.name.isidentifier() and path.name not in SKIPPED_FOLDERS:
                yield from _sources(path)
        elif path.suffix == ".py" and path.stem.isidentifier():
            yield path


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _read(path: Path, name: str) -> Module | None:
    """The module at `path`; None when it is not valid source for this Python."""
    try:
        with warnings.catch_warnings():
            # Where warnings are errors, an invalid escape in an old module would otherwise lose the module.
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None
    documented: dict[str, Symbol] = {}
    if doc := _docstring(tree):
        documented[""] = Symbol(name, "", f"module {name}", doc, "module")
    for symbol in _documented(tree, name, ""):
        # A setter follows its getter under the same name, and a fallback its original: the first one counts.
        documented.setdefault(symbol.qualname, symbol)
    return Module(name, path, tuple(documented.values()))


def _documented(parent: ast.AST, module: str, prefix: str) -> Iterator[Symbol]:
    for node in _definitions(parent):
        qualname = prefix + node.name
        if doc := _docstring(node):
            is_method = isinstance(parent, ast.ClassDef)
            yield Symbol(module, qualname, _signature(node), doc, _kind(node, is_method), _callable(node, is_method))
        if isinstance(node, ast.ClassDef):
            yield from _documented(node, module, f"{qualname}.")


def _definitions(parent: ast.AST) -> Iterator[Definition]:
    """The definitions directly in a body, also those inside `if`, `try` and `with`, which make no new name."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Definition):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _definitions(node)


def _docstring(node: Definition | ast.Module) -> str:
    text = (ast.get_docstring(node) or "").strip()
    return "\n".join(line.rstrip() for line in text.splitlines())


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(part) for part in [*node.bases, *node.keywords])
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{start} {node.name}({ast.unparse(node.args)}){returns}"


def _kind(node: Definition, is_method: bool) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    if not is_method:
        return "function"
    return "property" if any("property" in name for name in _decorators(node)) else "method"


def _decorators(node: Definition) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def _callable(node: Definition, is_method: bool) -> tuple[Parameter, ...]:
    """What a caller passes to the function, the method or the class."""
    if isinstance(node, ast.ClassDef):
        inits = [part for part in _definitions(node) if part.name == "__init__"]
        return _callable(inits[0], True) if inits and not isinstance(inits[0], ast.ClassDef) else ()
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    named = list(zip(plain, defaults, strict=True))
    if is_method and "staticmethod" not in _decorators(node):
        named = named[1:]
    found = [_parameter(arg.arg, default) for arg, default in named]
    if args.vararg:
        found.append(Parameter(f"*{args.vararg.arg}", None))
    found += [_parameter(arg.arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        found.append(Parameter(f"**{args.kwarg.arg}", None))
    return tuple(found)


def _parameter(name: str, default: ast.expr | None) -> Parameter:
    return Parameter(name, None if default is None else ast.unparse(default))


def _render(name: str, documented: list[Symbol]) -> str:
    """A module's page: its docstring, a table of contents, then every symbol with its signature.

    Contents, parameters and defaults say again what stands elsewhere on the page, as reference pages do. A small model
    learns from that to look back, which is what most questions about a signature ask of it.
    """
    lines: list[str] = [f"module {name}"]
    contents = [line for symbol in documented if (line := _contents_line(symbol))]
    shown: set[str] = set()
    for symbol in documented:
        if symbol.kind == "module":
            lines += ["", *_indented(symbol.doc, 0)]
            continue
        if contents:
            lines, contents = [*lines, "", "Contents", *_indented("\n".join(contents), 1)], []
        parts = symbol.qualname.split(".")
        for depth in range(1, len(parts)):
            # A class without a docstring is no symbol; its methods still need to stand below its name.
            if (owner := ".".join(parts[:depth])) not in shown:
                lines += ["", *_indented(f"class {parts[depth - 1]}", depth - 1)]
                shown.add(owner)
        shown.add(symbol.qualname)
        lines += ["", *_indented(symbol.signature, len(parts) - 1), *_indented(symbol.doc, len(parts))]
        lines += _indented("\n".join(_reference(symbol)), len(parts))
    return "\n".join(lines) + "\n"


def _contents_line(symbol: Symbol) -> str:
    summary = " ".join(symbol.doc.partition("\n\n")[0].split())
    return "" if symbol.kind == "module" or len(summary) > 120 else f"{symbol.name}: {summary}"


def _reference(symbol: Symbol) -> list[str]:
    """The parameters' names, and the defaults of those that have one."""
    if not symbol.parameters:
        return []
    defaults = [f"{p.name} is {p.default}" for p in symbol.parameters if p.default is not None]
    names = ", ".join(p.name for p in symbol.parameters)
    return [f"Parameters of {symbol.name}: {names}", *([f"Defaults: {', '.join(defaults)}"] if defaults else [])]


def _indented(text: str, depth: int) -> list[str]:
    return [f"{'    ' * depth}{line}" if line else "" for line in text.splitlines()]


def _dict_literal(tree: ast.Module, name: str) -> dict[str, str]:
    """The dict of strings assigned to `name` at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            found = ast.literal_eval(node.value)
            return {str(key): str(value) for key, value in found.items()}
    return {}
