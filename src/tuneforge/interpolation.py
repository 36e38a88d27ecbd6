"""Which keys an interpolation reads: `${times:${method.lr.${task_recipe.objective}},2}` reads three."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tuneforge.config_bounds import too_complex_expression

_RESOLVER = re.compile(r"[A-Za-z_][\w.]*:")


def references(expression: str, tree: Mapping[str, Any], path: str = "") -> list[str]:
    """The dotted paths that `expression`, standing at `path`, reads in `tree`; inner ones first, each once.

    None of an expression that no composition would have worked out: a recorded one may be of any length.
    """
    if too_complex_expression(expression):
        return []
    found: list[str] = []
    for body in _bodies(expression):
        found += references(body, tree, path)
        if not _RESOLVER.match(body):
            found.append(_absolute(_filled(body, tree, path), path))
    return list(dict.fromkeys(found))


def lookup(tree: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path.

    Raises:
        KeyError: there is none.
    """
    node: Any = tree
    for part in path.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            raise KeyError(path)
    return node


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value; lists and empty mappings are leaves."""
    if not isinstance(tree, Mapping) or (not tree and prefix):
        return {prefix: tree}
    return {p: v for k, node in tree.items() for p, v in leaves(node, f"{prefix}.{k}" if prefix else str(k)).items()}


def replaced(tree: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """A copy of the tree with other values at the dotted paths of `values`."""
    if path and path in values:
        return values[path]
    if isinstance(tree, Mapping):
        return {k: replaced(v, values, f"{path}.{k}" if path else str(k)) for k, v in tree.items()}
    return tree


def _bodies(text: str) -> Iterator[str]:
    """What stands between each outermost `${` and its `}`."""
    at = text.find("${")
    while at >= 0:
        depth, end = 1, at + 2
        while depth and end < len(text):
            depth += text.startswith("${", end) - (text[end] == "}")
            end += 1
        yield text[at + 2 : end - 1]
        at = text.find("${", end)


def _filled(body: str, tree: Mapping[str, Any], path: str) -> str:
    """`method.lr.${task_recipe.objective}` with the inner interpolation replaced by its value."""
    for inner in _bodies(body):
        try:
            value = lookup(tree, _absolute(_filled(inner, tree, path), path))
        except KeyError:
            continue
        body = body.replace(f"${{{inner}}}", str(value))
    return body


def _absolute(key: str, path: str) -> str:
    """`.r` at `method.lora_alpha` is `method.r`: one dot is the node that the key stands in."""
    dots = len(key) - len(key.lstrip("."))
    if not dots:
        return key
    parents = path.split(".")[:-dots]
    return ".".join([*parents, key[dots:]])
