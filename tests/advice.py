"""What the errors of the source advise: found in the code, and read as a person would type it."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "tuneforge"
MAKERS = ("TuneforgeError", "RefusedError", "Problem", "_error", "self.report")
POSITION = {"self.report": 3, "_error": 2, "Problem": 4}
"""Where the advice stands among the arguments that are not named."""
SETTING = re.compile(
    r"""(?<![\w.=/$"{-])([a-z_]\w*(?:[./][\w{}]+)*)="""  # a key, or a group
    r"""(\[[^\]]*\]|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|<.*?>|\$\{.*?\}|[^\s,;:)'"]+)"""  # its value
)
NO_KEYS = ("key", "https", "orient")


def settings(text: str) -> list[tuple[str, str]]:
    """The overrides in a text: key and value."""
    return [(key, value) for key, value in SETTING.findall(text) if key not in NO_KEYS]


@dataclass(frozen=True)
class Way:
    """One of the ways that an advice names: overrides to give, and keys to take back."""

    give: tuple[str, ...]
    drop: tuple[str, ...] = ()

    def taken(self, overrides: Iterable[str]) -> tuple[str, ...]:
        """What is typed by someone who goes this way."""
        keys = {o.partition("=")[0] for o in self.give} | set(self.drop)
        return (*(o for o in overrides if o.partition("=")[0].lstrip("+") not in keys), *self.give)


def ways(fix: str, path: str = "") -> list[Way]:
    """The ways that an advice on the key `path` names, as far as they are overrides: `a=x or y` are two.

    What is no override (a file to correct, a model to choose) is left out.
    """
    found: list[Way] = []
    last = path if "set it to" in fix else ""
    for part in re.split(r"; |, or |, | or ", fix.replace("set it to ", f"{path}=") if path else fix):
        given, word = settings(part), re.fullmatch(r"[a-z0-9_-]+", part.strip())
        dropped = re.findall(r"(?:leave|without) ([a-z_]\w*(?:[./]\w+)+|[a-z]+(?==))", part)
        if re.match(r"drop (it|the key|the path)\b", part.strip()):
            dropped.append(path)
        if "leave" in part and given:
            dropped, given = [key for key, _ in given], []
        if given:
            last = given[-1][0]
        elif word and last and word[0] not in ("more", "less", "lower"):
            given = [(last, word[0])]
        if given or dropped:
            found.append(Way(tuple(f"{key}={value}" for key, value in given), tuple(dropped)))
    return found


@cache
def advices() -> dict[str, list[str]]:
    """Code of an error -> the advices that name an override, as the source has them; `{...}` is worked out by it."""
    found: dict[str, list[str]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        module = ast.parse(file.read_text(encoding="utf-8"))
        for function in ast.walk(module):
            if isinstance(function, ast.FunctionDef):
                for code, text in _of(function, module):
                    if settings(text) and text not in found.setdefault(code, []):
                        found[code].append(text)
    return {code: texts for code, texts in sorted(found.items()) if texts}


def _of(function: ast.FunctionDef, module: ast.Module) -> Iterator[tuple[str, str]]:
    for call in ast.walk(function):
        maker = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if not isinstance(call, ast.Call) or maker not in MAKERS or not call.args:
            continue
        given = [k.value for k in call.keywords if k.arg == "fix"]
        given += call.args[POSITION.get(maker, 9) :][:1]
        codes = list(_texts(call.args[0], function, module))
        yield from itertools.product(codes, (t for node in given for t in _texts(node, function, module)))


def _texts(
    node: ast.AST, function: ast.FunctionDef, module: ast.Module, names: frozenset[str] = frozenset()
) -> Iterator[str]:
    """The texts that an expression can become: literals, names that the function assigns, functions of the module."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        for inner in (n for v in node.values for n in ast.walk(v) if isinstance(n, ast.JoinedStr)):
            yield from _texts(inner, function, module, names)
    elif isinstance(node, ast.Name) and node.id not in names:
        for assigned in ast.walk(function):
            targets = assigned.targets if isinstance(assigned, ast.Assign) else []
            if any(isinstance(n, ast.Name) and n.id == node.id for t in targets for n in ast.walk(t)):
                yield from _texts(assigned.value, function, module, names | {node.id})  # type: ignore[attr-defined]
    elif isinstance(node, ast.Call):
        called = [f for f in ast.walk(module) if isinstance(f, ast.FunctionDef) and f.name == ast.unparse(node.func)]
        for inner in (n for f in called for n in ast.walk(f) if isinstance(n, ast.JoinedStr | ast.Constant)):
            yield from _texts(inner, called[0], module, names)
        for argument in node.args:
            yield from _texts(argument, function, module, names)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(child, function, module, names)
