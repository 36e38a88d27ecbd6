"""One pass over the composed tree against its schema: every problem found, defaults filled in, numbers coerced."""

import copy
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin

from tuneforge.errors import Problem, did_you_mean, near
from tuneforge.interpolation import lookup
from tuneforge.schema.signature import (
    MISSING,
    Field,
    NodeType,
    Of,
    members,
    read_signature,
)
from tuneforge.schema.source import UnreadableTargetError
from tuneforge.schema.types import LARGEST, LARGEST_INT, Home, Range
from tuneforge.shell import local_path
from tuneforge.targets import instead_of, why_borrowed, why_untrusted

ROOT = NodeType("tuneforge.schema.Config")
TARGET = "_target_"

OriginOf = Callable[[str], str]


@dataclass
class Checked:
    """The tree as it will be used, and all that is wrong with it."""

    tree: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    defaults: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Dotted path -> the schema's default and the schema, also where a file or override set another value."""


def check(tree: Mapping[str, Any], origin_of: OriginOf = lambda _: "", schema: NodeType = ROOT) -> Checked:
    """Check a resolved tree of plain containers against the schema of a run, or another one."""
    walk = _Walk(origin_of, tree)
    value = walk.node(dict(tree), schema, "")
    return Checked(value, walk.problems, walk.defaults)


def leaf_paths(target: str = ROOT.target, prefix: str = "") -> list[str]:
    """Every dotted path of the schema; `*` stands for the names of a mapping."""
    found = []
    for name, option in read_signature(target).fields.items():
        path = f"{prefix}.{name}" if prefix else name
        nested = [m for m in members(option.type) if isinstance(m, NodeType)]
        mapped = [m.inner[1] for m in members(option.type) if isinstance(m, Of) and m.outer is dict]
        for node in nested:
            found += leaf_paths(node.target, path)
        for node in [m for m in mapped if isinstance(m, NodeType)]:
            found += leaf_paths(node.target, f"{path}.*")
        if not nested:
            found.append(path)
    return found


class _Walk:
    def __init__(self, origin_of: OriginOf, tree: Mapping[str, Any]) -> None:
        self.origin_of = origin_of
        self.tree = tree
        self.problems: list[Problem] = []
        self.defaults: dict[str, tuple[Any, str]] = {}

    def report(self, code: str, path: str, message: str, fix: str = "") -> None:
        self.problems.append(Problem(code, message, path, self.origin_of(path), fix))

    def node(self, tree: dict[str, Any], type_: NodeType, path: str) -> dict[str, Any]:
        """A mapping against a dataclass, and against the signature of its `_target_` if it is pluggable."""
        signature = read_signature(type_.target)
        fields, accepts_any = dict(signature.fields), signature.accepts_any
        owners = dict.fromkeys(fields, type_.target)
        if signature.pluggable:
            accepts_any |= self.add_target(tree, path, signature.facts, fields, owners)
        done: dict[str, Any] = {}
        for name, value in tree.items():
            where = f"{path}.{name}" if path else name
            if name in fields:
                done[name] = self.value(value, fields[name].type, where)
            elif (name == TARGET and signature.pluggable) or accepts_any:
                done[name] = value
            else:
                self.unknown(name, value, where, fields)
        self.fill(done, fields, path, owners)
        return done

    def add_target(
        self,
        tree: dict[str, Any],
        path: str,
        facts: Mapping[str, Any],
        fields: dict[str, Field],
        owners: dict[str, str],
    ) -> bool:
        """Add the target's own options to `fields`; what the framework reads itself keeps its own type."""
        target, group = tree.get(TARGET), facts["group"]
        where = f"{path}.{TARGET}"
        if target is None:
            if facts["needs_target"]:
                self.report("no-target", path, f"has no {TARGET}, so it is no option of {group}", self.options(path))
            return bool(facts["needs_target"])
        if not isinstance(target, str):
            self.report("bad-target", where, f"must be a dotted path, got {_shown(target)}")
            return True
        refusal = why_untrusted(group, target)
        if refusal:
            self.report("untrusted-target", where, refusal, instead_of(group, target))
            return True
        try:
            signature = read_signature(target)
        except UnreadableTargetError as error:
            self.report("target-not-found", where, f"{target} cannot be found: {error}")
            return True
        borrowed = why_borrowed(group, signature)
        if borrowed:
            self.report("untrusted-target", where, borrowed)
            return True
        for name, option in signature.fields.items():
            known = fields.get(name)
            # A field of the node keeps the type and the documentation; the target may supply the default.
            if known is None or (known.required and not option.required):
                owners[name] = target
                fields[name] = option if known is None else Field(name, known.type, option.default, known.doc)
        return signature.accepts_any

    def options(self, path: str) -> str:
        """What to write instead of a node without a `_target_`: a near one beside it, or the group's options."""
        parent, _, name = path.rpartition(".")
        if not parent:
            return f"choose an option: {name}=NAME"
        beside = [k for k, v in lookup(self.tree, parent).items() if isinstance(v, Mapping) and TARGET in v]
        return did_you_mean(name, beside) if beside else f"give {path}.{TARGET}, or choose an option: {parent}=NAME"

    def fill(self, done: dict[str, Any], fields: Mapping[str, Field], path: str, owners: Mapping[str, str]) -> None:
        for name, option in fields.items():
            where = f"{path}.{name}" if path else name
            nested = [m for m in members(option.type) if isinstance(m, NodeType)]
            default = list(option.default) if isinstance(option.default, tuple) else option.default
            if default is not ... and not option.required:
                self.defaults[where] = (default, owners[name])
            if name in done or any(p.path == where for p in self.problems):
                continue
            if default is ... and nested:
                done[name] = self.node({}, nested[0], where)
            elif default is ...:
                continue  # an expression that only the target itself can evaluate
            elif option.required:
                message = f"is required and nothing sets it ({option.doc or owners[name]})"
                self.report("required-key", where, message, self.options(where) if any(map(_pluggable, nested)) else "")
            else:
                done[name] = copy.deepcopy(default)

    def unknown(self, name: str, value: Any, where: str, fields: Mapping[str, Field]) -> None:
        fix = did_you_mean(name, fields)
        if not near(name, fields):
            elsewhere = [p for p in leaf_paths() if p.rpartition(".")[2] == name]
            close = difflib.get_close_matches(where, elsewhere, n=3, cutoff=0.0)
            if close:
                fix = f"did you mean {' or '.join(map(repr, close))}? {fix}"
            elif where == name and isinstance(value, str) and value.isidentifier():
                fix = f"if it is a group of your own, name its folder: --config-dir DIR with {name}/{value}.yaml; {fix}"
        self.report("unknown-key", where, f"there is no such key (value {_shown(value)})", fix)

    def value(self, value: Any, type_: Any, path: str) -> Any:
        """The value, coerced where nothing is lost (3 for a float), or a problem."""
        for alternative in members(type_):
            if isinstance(alternative, NodeType) and isinstance(value, Mapping):
                return self.node(dict(value), alternative, path)
            if isinstance(alternative, Of):
                if alternative.outer is dict and isinstance(value, Mapping):
                    return {k: self.value(v, alternative.inner[1], f"{path}.{k}") for k, v in value.items()}
                if alternative.outer is not dict and isinstance(value, list | tuple):
                    return self.items(value, alternative, path)
        # 1 is an integer where integers are allowed (a number of steps), and 1.0 is not (the whole run).
        for alternative in sorted(members(type_), key=lambda a: _scalar(a) is not type(value)):
            fits, coerced = _fits(value, alternative)
            if fits:
                return coerced
        wanted = " or ".join(dict.fromkeys(_described(a) for a in members(type_)))
        choices = [str(c) for a in members(type_) if get_origin(a) is Literal for c in get_args(a)]
        close = near(str(value), choices) if isinstance(value, str) else []
        fix = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
        if any(isinstance(m, NodeType) and _pluggable(m) for m in members(type_)):
            fix = self.options(path)
        if isinstance(value, int | float) and not _bounded(value):
            fix = f"numbers are finite and at most {LARGEST:g}, integers at most {LARGEST_INT}"
        self.report("wrong-value", path, f"must be {wanted}, got {_shown(value)}", fix)
        return value

    def items(self, value: list[Any] | tuple[Any, ...], type_: Of, path: str) -> list[Any]:
        """The items of a list; of a pair and the like, each against its own type."""
        types = type_.inner
        if len(types) > 1 and len(value) != len(types):
            self.report("wrong-value", path, f"must be {_described(type_)}, got {_shown(value)}")
            return list(value)
        if len(types) == 1:
            types = types * len(value)
        return [self.value(v, t, path) for v, t in zip(value, types, strict=True)]


def _pluggable(type_: NodeType) -> bool:
    return read_signature(type_.target).pluggable


def _scalar(type_: Any) -> Any:
    """The type that a constrained type constrains, or the type itself."""
    return get_args(type_)[0] if get_origin(type_) is Annotated else type_


def _bounded(value: float) -> bool:
    """Whether a number is one that any option takes; NaN and infinities are not."""
    if isinstance(value, int):
        return abs(value) <= LARGEST_INT
    return math.isfinite(value) and abs(value) <= LARGEST


def _fits(value: Any, type_: Any) -> tuple[bool, Any]:
    """Whether a scalar is of the type, and the value to use."""
    if type_ is Any or type_ is MISSING:
        return True, value
    if type_ is None:
        return value is None, value
    if get_origin(type_) is Literal:
        return any(value == c and type(value) is type(c) for c in get_args(type_)), value
    if get_origin(type_) is Annotated:
        inner, *constraints = get_args(type_)
        fits, coerced = _fits(value, inner)
        if fits and any(isinstance(c, Home) for c in constraints):
            coerced = str(local_path(coerced)) if coerced.startswith("~") else coerced
            fits = not coerced.startswith("~")
        return fits and all(c.holds(coerced) for c in constraints if isinstance(c, Range)), coerced
    if type_ is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # An integer may be too large to become a float at all.
        fits = number and abs(value) <= LARGEST and _bounded(value)
        return fits, float(value) if fits else value
    if type_ is int:
        return type(value) is int and _bounded(value), value
    if type_ in (str, bool):
        return type(value) is type_, value
    if type_ in (list, dict):
        return isinstance(value, type_), value
    return False, value


_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "a mapping"}


def _described(type_: Any) -> str:
    if type_ is None:
        return "null"
    if isinstance(type_, NodeType):
        return "a mapping"
    if isinstance(type_, Of):
        if type_.outer is dict:
            return "a mapping"
        several = len(type_.inner) > 1
        kinds = " or ".join(dict.fromkeys(map(_described, type_.inner)))
        return f"a list of {len(type_.inner)}, each {kinds}" if several else f"a list of {kinds}"
    if get_origin(type_) is Literal:
        return " or ".join(repr(c) for c in get_args(type_))
    if get_origin(type_) is Annotated:
        inner, *constraints = get_args(type_)
        return " ".join([_described(inner), *map(str, constraints)])
    return _NAMES.get(type_, str(type_))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
