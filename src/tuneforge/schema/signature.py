"""The options of a dataclass, class or function, read from its source without importing it.

A config is checked before anything heavy is imported, and a plugin is never imported by a run that does not name it.
So what `_target_: package.module.name` accepts is read with `ast`: a dataclass's fields (bases included), a class's
`__init__`, or a function's parameters. Positional-only parameters are objects that the code passes in, and so are
positional ones without a default where there are keyword-only ones; every other parameter is an option.
"""

import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tuneforge.plugins import registry
from tuneforge.schema import types
from tuneforge.schema.source import Module, UnreadableTargetError, dotted, locate

MISSING: Any = type("MISSING", (), {"__repr__": lambda _: "MISSING"})()

MAX_ALIASES = 20
"""Names of types that stand for one another."""

_BUILTINS: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "None": None, "dict": dict, "list": list, "tuple": tuple,
    "Mapping": Mapping, "Sequence": list, "Iterable": list, "Dict": dict, "List": list, "Tuple": tuple,
    "Literal": Literal, "Annotated": Annotated, "Any": Any, "Range": types.Range,
}  # fmt: skip


@dataclass(frozen=True)
class NodeType:
    """A nested dataclass, named and not yet read."""

    target: str


@dataclass(frozen=True)
class Of:
    """`list[T]` or `dict[K, T]` whose members may be node types, which typing's own generics refuse."""

    outer: type
    inner: tuple[Any, ...]


@dataclass(frozen=True)
class OneOf:
    """`A | B | None`, for the same reason."""

    members: tuple[Any, ...]


def members(type_: Any) -> tuple[Any, ...]:
    """The alternatives of a type: those of a union, else the type alone."""
    return type_.members if isinstance(type_, OneOf) else (type_,)


@dataclass(frozen=True)
class Field:
    """One option: its name, type, default and documentation."""

    name: str
    type: Any
    """A typing object, a `NodeType`, or `Any` where the source says nothing that can be checked."""
    default: Any
    """`MISSING` when the option is required; `Any` value otherwise (`...` when it is an expression)."""
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether the config must give it."""
        return self.default is MISSING


@dataclass(frozen=True)
class Signature:
    """What a target accepts from the config."""

    target: str
    fields: Mapping[str, Field]
    num_objects: int = 0
    """How many positional arguments the code passes in."""
    home: str = ""
    """The module that defines it, which is another than `target` says where that only imports it."""
    accepts_any: bool = False
    """It takes `**kwargs`, so unknown names cannot be refused from here."""
    pluggable: bool = False
    """The class derives from `Pluggable`: a `_target_` in the node adds its own options."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """A class's literal attributes that are no fields, those of its bases included: what it says of itself."""


@functools.cache
def read_signature(target: str) -> Signature:
    """The options of `target`, a dotted path.

    Raises:
        UnreadableTargetError: no such module or name, or no Python source for it.
    """
    try:
        module, node = locate(target)
        if isinstance(node, ast.ClassDef):
            return _of_class(target, module, node)
        if isinstance(node, ast.FunctionDef):
            return _of_function(target, module, node, ast.get_docstring(node) or "")
    except RecursionError as error:
        raise UnreadableTargetError(f"{target} derives from itself, or a type of it is made of itself") from error
    raise UnreadableTargetError(f"{target} is neither a class nor a function")


def _of_class(target: str, module: Module, node: ast.ClassDef) -> Signature:
    bases = [b for b in map(dotted, node.bases) if b]
    inherited = [s for s in (_try_read(module.absolute(b)) for b in bases) if s is not None]
    pluggable = any(module.absolute(b) == "tuneforge.schema.types.Pluggable" for b in bases)
    pluggable = pluggable or any(s.pluggable for s in inherited)
    facts: dict[str, Any] = {}
    for base in reversed(inherited):
        facts.update(base.facts)
    facts.update(_facts(node))
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        return dataclasses.replace(_of_function(target, module, init, ast.get_docstring(node) or ""), facts=facts)
    fields: dict[str, Field] = {}
    for base in reversed(inherited):
        fields.update(base.fields)
    if _is_dataclass(module, node):
        fields.update(_dataclass_fields(module, node))
    accepts_any = any(s.accepts_any for s in inherited)
    # A dataclass has an __init__ of its own; any other class has the first that a base has.
    objects = 0 if _is_dataclass(module, node) else next((s.num_objects for s in inherited if s.num_objects), 0)
    return Signature(
        target, fields, objects, home=module.name, accepts_any=accepts_any, pluggable=pluggable, facts=facts
    )


def _facts(node: ast.ClassDef) -> dict[str, Any]:
    """Literal values that the class body gives to plain names, or to names annotated as `ClassVar`."""
    found: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, value = statement.targets[0].id, _default(statement.value)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            if "ClassVar" not in ast.unparse(statement.annotation):
                continue
            name, value = statement.target.id, _default(statement.value)
        else:
            continue
        if value is not ...:
            found[name] = value
    return found


def _try_read(target: str) -> Signature | None:
    try:
        return read_signature(target)
    except UnreadableTargetError:
        return None


def _is_dataclass(module: Module, node: ast.ClassDef) -> bool:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(module.resolved(d).rpartition(".")[2] == "dataclass" for d in decorators)


def _dataclass_fields(module: Module, node: ast.ClassDef) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = _unquoted(statement.annotation)
        # `_: KW_ONLY` only marks what follows it.
        if "ClassVar" in ast.unparse(annotation) or module.resolved(annotation) == "dataclasses.KW_ONLY":
            continue
        if _left_out(module, statement.value):
            continue
        name = statement.target.id
        doc = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            doc = str(following.value.value)
        default = MISSING if statement.value is None else _field_default(module, statement.value)
        fields[name] = Field(name, _Types(module).read(statement.annotation), default, " ".join(doc.split()))
    return fields


def _unquoted(annotation: ast.expr) -> ast.expr:
    """An annotation that is written as a text, such as "int", as the expression in it."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        with suppress(SyntaxError):
            return ast.parse(annotation.value, mode="eval").body
    return annotation


def _left_out(module: Module, node: ast.expr | None) -> bool:
    """Whether a field is no parameter: `field(init=False)`."""
    if not isinstance(node, ast.Call) or module.resolved(node.func) != "dataclasses.field":
        return False
    return any(k.arg == "init" and isinstance(k.value, ast.Constant) and not k.value.value for k in node.keywords)


def _of_function(target: str, module: Module, node: ast.FunctionDef, doc: str) -> Signature:
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    pairs = list(zip(positional, defaults, strict=True))[node.name == "__init__" :]
    given = {a.arg for a in args.posonlyargs}
    options = [(a, d) for a, d in pairs if a.arg not in given and not (args.kwonlyargs and d is None)]
    num_objects = len(pairs) - len(options)
    options += zip(args.kwonlyargs, args.kw_defaults, strict=True)
    types_ = _Types(module)
    fields = {
        a.arg: Field(
            a.arg,
            types_.read(a.annotation) if a.annotation else Any,
            MISSING if d is None else _default(d),
            _parameter_doc(doc, a.arg),
        )
        for a, d in options
    }
    return Signature(target, fields, num_objects, module.name, accepts_any=args.kwarg is not None)


def _parameter_doc(doc: str, name: str) -> str:
    """The line of a Google-style `Args:` section that describes `name`."""
    for line in doc.splitlines():
        if line.strip().startswith((f"{name}:", f"{name} (")):
            return line.partition(":")[2].strip()
    return ""


def _field_default(module: Module, node: ast.expr) -> Any:
    """The default of a dataclass's field, which may be described by `field()`."""
    if not isinstance(node, ast.Call) or module.resolved(node.func) != "dataclasses.field":
        return _default(node)
    given = {k.arg: k.value for k in node.keywords}
    if "default" in given:
        return _default(given["default"])
    if "default_factory" in given:
        return {"list": [], "dict": {}}.get(dotted(given["default_factory"]), ...)
    # `field(**described)` may say anything.
    return ... if None in given else MISSING


def _default(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return ...


class _Types:
    """Turns an annotation's source into a typing object, in the names of the module it stands in."""

    def __init__(self, module: Module, aliases: int = 0) -> None:
        self.module = module
        self.aliases = aliases

    def read(self, node: ast.expr) -> Any:
        """The type, or `Any` for a form that says nothing a config value could be checked against."""
        readers: dict[type[ast.expr], Callable[[Any], Any]] = {
            ast.Constant: self._constant,
            ast.Name: self._name,
            ast.Attribute: self._name,
            ast.BinOp: self._union,
            ast.Subscript: self._subscript,
        }
        reader = readers.get(type(node))
        return reader(node) if reader else Any

    def _constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, str):
            try:
                return self.read(ast.parse(node.value, mode="eval").body)
            except SyntaxError:
                return Any
        return node.value

    def _union(self, node: ast.BinOp) -> Any:
        left, right = self.read(node.left), self.read(node.right)
        return Any if Any in (left, right) else OneOf((*members(left), *members(right)))

    def _name(self, node: ast.expr) -> Any:
        name = dotted(node)
        if name.rpartition(".")[2] in _BUILTINS:
            return _BUILTINS[name.rpartition(".")[2]]
        try:
            module, found = locate(self.module.absolute(name))
        except (UnreadableTargetError, SyntaxError, OSError):
            return Any
        if isinstance(found, ast.Assign):
            # `X = X`, and longer circles of aliases.
            return _Types(module, self.aliases + 1).read(found.value) if self.aliases < MAX_ALIASES else Any
        if isinstance(found, ast.ClassDef) and (_is_dataclass(module, found) or found.name == "Pluggable"):
            return NodeType(f"{module.name}.{found.name}")
        return Any

    def _subscript(self, node: ast.Subscript) -> Any:
        head = dotted(node.value).rpartition(".")[2]
        inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if head == "Literal":
            choices = [_default(i) for i in inner]
            return Any if ... in choices else Literal[tuple(choices)]
        if head == "Annotated":
            base, constraints = self.read(inner[0]), [c for c in map(self._constraint, inner[1:]) if c is not None]
            return Annotated[base, *constraints] if constraints else base
        if head in ("Optional", "Union"):
            alternatives = [m for i in inner for m in members(self.read(i))] + ([None] if head == "Optional" else [])
            return Any if Any in alternatives else OneOf(tuple(alternatives))
        outer = _BUILTINS.get(head)
        if outer is tuple and not any(isinstance(i, ast.Constant) and i.value is ... for i in inner):
            return Of(outer, tuple(self.read(i) for i in inner))
        if outer in (list, tuple):
            return Of(outer, (self.read(inner[0]),))
        if outer in (dict, Mapping) and len(inner) == 2:
            return Of(dict, tuple(self.read(i) for i in inner))
        return Any

    def _constraint(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and dotted(node.func).endswith("Home"):
            return types.Home()
        if isinstance(node, ast.Call) and dotted(node.func).endswith("Range"):
            bounds = {str(k.arg): _default(k.value) for k in node.keywords}
            return None if ... in bounds.values() else types.Range(**bounds)
        return None


registry.on_change(read_signature.cache_clear)
