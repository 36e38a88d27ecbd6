"""`plan --why KEY`: the chain that set a value, and what it would be without the chain's last step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tuneforge.compose import Composed, compose
from tuneforge.errors import TuneforgeError, did_you_mean
from tuneforge.interpolation import leaves, references
from tuneforge.masking import mask
from tuneforge.provenance import COMMAND_LINE, Origin, masked_origin
from tuneforge.rerun import ABSENT, value_at


@dataclass(frozen=True)
class Explanation:
    """Why one leaf has its value."""

    path: str
    value: Any
    steps: tuple[Origin, ...]
    """All that set it, oldest first; the last won."""
    reads: "tuple[Explanation, ...]"
    """The keys that the last step's interpolation reads."""
    picked_by: str
    """What picked the option whose file set it; "" when no option's file did."""
    without: str
    """What it would be without the last step, in words."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "path": self.path,
            "value": self.value,
            "steps": [{"where": s.where, "written": s.written} for s in self.steps],
            "reads": [r.as_dict() for r in self.reads],
            "picked_by": self.picked_by,
            "without_last_step": self.without,
        }


def explain(composed: Composed, path: str) -> list[Explanation]:
    """Why the leaf at `path`, or each leaf of the node there, has its value.

    Raises:
        TuneforgeError: there is no such key.
    """
    flat = leaves(composed.recorded)
    wanted = [p for p in flat if p == path or p.startswith(f"{path}.")]
    if not wanted:
        last = path.rpartition(".")[2]
        same_name = [p for p in flat if p.rpartition(".")[2] == last]
        known = same_name or [p for p in flat if p.partition(".")[0] == path.partition(".")[0]] or list(flat)
        raise TuneforgeError("unknown-node", f"--why {path}: there is no such key", fix=did_you_mean(path, known))
    return [_explain(composed, p, flat[p], set()) for p in wanted]


def text(explanation: Explanation) -> str:
    """The explanation as the console shows it."""
    return "\n".join(_lines(explanation, ""))


def _lines(e: Explanation, indent: str) -> Iterator[str]:
    yield f"{indent}{e.path} = {show(e.value)}"
    for number, step in enumerate(e.steps, 1):
        won = "" if number == len(e.steps) else "   (replaced)"
        yield f"{indent}  {number}. {step.where:<44} {step.written}{won}"
    if e.picked_by:
        yield f"{indent}  picked by {e.picked_by}"
    for read in e.reads:
        yield from _lines(read, f"{indent}     ")
    if e.without:
        yield f"{indent}  {e.without}"


def show(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _explain(composed: Composed, path: str, value: Any, told: set[str], inner: bool = False) -> Explanation:
    """`told`: the keys whose interpolations are shown already. A recorded run may name them in a circle."""
    origin = nearest(composed, path)
    steps = masked_origin(path, origin).chain
    reads = references(origin.expression, composed.tree, path) if path not in told else []
    told.add(path)
    flat = leaves(composed.recorded)
    return Explanation(
        path,
        value,
        steps,
        tuple(_explain(composed, r, flat[r], told, inner=True) for r in reads if r in flat and r != path),
        _picker(composed, steps[-1]),
        "" if inner else _without(composed, path, origin.chain),
    )


def nearest(composed: Composed, path: str) -> Origin:
    """The origin of a leaf: its own, or that of the nearest node around it (an item of a list, an empty mapping)."""
    while path:
        if path in composed.origins:
            return composed.origins[path]
        path = path.rpartition(".")[0]
    return Origin("computed", written="")


def _picker(composed: Composed, step: Origin) -> str:
    """`conf/optim/adamw.yaml:4` was picked by what picked the option of the group `optim`."""
    if step.typed or not step.where.rpartition(":")[0].endswith(".yaml"):
        return ""
    folder = step.where.rpartition("/")[0].rpartition("/")[2]
    return composed.pickers.get(folder, "")


def _without(composed: Composed, path: str, steps: tuple[Origin, ...]) -> str:
    """What the leaf would be if its last step had not been taken, found by composing again."""
    last = steps[-1]
    if last.typed:
        overrides = [o for o in composed.overrides if o.lstrip("+") != last.typed]
        return f"without `{mask(last.typed)}`: {_value_of(composed, overrides, path)}"
    picker = _picker(composed, last)
    if picker.startswith(COMMAND_LINE):
        typed = picker.removeprefix(COMMAND_LINE)
        overrides = [o for o in composed.overrides if o.lstrip("+") != typed]
        return f"without `{typed}`: {_value_of(composed, overrides, path)}"
    if len(steps) == 1:
        if last.where.startswith("default of "):
            return "nothing else sets it"
        return f"without {last.where}: absent or required, nothing else sets it"
    before = steps[-2]
    if before.where.startswith("default of ") or "${" not in before.written:
        return f"without {last.where}: {masked_origin(path, before).written}"
    return f"without {last.where}: {_value_of(composed, [*composed.overrides, f'{path}={before.written}'], path)}"


def _value_of(composed: Composed, overrides: list[str], path: str) -> str:
    try:
        value = value_at(compose(overrides, composed.config_dirs).recorded, path)
    except TuneforgeError as error:
        return f"the config would be refused ({error.problems[0]})".replace("\n  ", "; ")
    return "there would be no such key" if value is ABSENT else show(value)
