"""Which code a config may name, and the one place where it is called.

A config may come from elsewhere: a run folder, a sweep, an option file of somebody else. So a `_target_` is an option
and not a function at large: trusted are the names that option files give in the same group, and exact names of
libraries. Whatever is built must be of its group's type.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from tuneforge import option_targets
from tuneforge.errors import TuneforgeError, did_you_mean
from tuneforge.plugins import registry
from tuneforge.schema.signature import Signature, read_signature

CORE = "tuneforge"
SAMPLERS, PRUNERS = "hydra/sweeper/sampler", "hydra/sweeper/pruner"

# Exact names: `torch.*` as a package would let `torch.load` through, and with it any pickle.
LIBRARIES: Mapping[str, frozenset[str]] = {
    "callbacks": frozenset(
        f"lightning.pytorch.callbacks.{name}"
        for name in ("DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "Timer")
    ),
    "logger": frozenset(f"lightning.pytorch.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger")),
    "optim": frozenset({"torch.optim.AdamW", "torch.optim.SGD"}),
    SAMPLERS: frozenset(f"optuna.samplers.{name}" for name in ("BruteForceSampler", "NSGAIIISampler", "QMCSampler")),
    PRUNERS: frozenset(f"optuna.pruners.{name}" for name in ("PercentilePruner", "ThresholdPruner", "WilcoxonPruner")),
}
"""Group -> what a config may name there beside what option files do."""


def trusted(group: str) -> frozenset[str]:
    """What a config may name in a group (or at `option_targets.FORMAT` and `EXTENSION`, which name functions)."""
    return option_targets.named(group) | LIBRARIES.get(group, frozenset())


def why_untrusted(group: str, target: str) -> str:
    """Why a config may not name this target in this group; "" when it may."""
    if target in trusted(group):
        return ""
    package = target.partition(".")[0]
    owner = registry.owner_of(package)
    if owner is not None and owner.troubles:
        return f"{target} is of {owner.label}, which is broken: {owner.troubles[0].cause}"
    if owner is not None or package == CORE:
        return f"{target} cannot be found among the targets that options of {group} name, and no other code is called"
    return f"{target} is not trusted: a config may name the targets of {group}'s options, and no other code is called"


def instead_of(group: str, target: str) -> str:
    """What to write instead of a target that is not trusted."""
    return did_you_mean(target, trusted(group))


def why_borrowed(group: str, signature: Signature) -> str:
    """Why an option file may not lend its package's name to this target: the package only imports it from elsewhere."""
    home, package = signature.home.partition(".")[0], signature.target.partition(".")[0]
    if signature.target in LIBRARIES.get(group, frozenset()) or home in (package, CORE):
        return ""
    return f"{signature.target} is really of {signature.home}, which is not trusted"


def make(group: str, node: Mapping[str, Any], kind: type | tuple[type, ...], *objects: Any) -> Any:
    """Build what a node of a group names.

    Args:
        group: the config group, whose options' targets are trusted.
        node: `_target_`, and its options; keys of the node that are no options of the target are left out.
        kind: what has to come out.
        objects: what the target is given by position, as many of them as it takes.

    Raises:
        TuneforgeError: the target is not trusted, its code cannot be imported, or builds something else.
    """
    target = node["_target_"]
    call = load(group, target)
    signature = read_signature(target)
    options = {k: v for k, v in node.items() if k in signature.fields or (signature.accepts_any and k != "_target_")}
    try:
        built = call(*objects[: signature.num_objects], **options)
    except Exception as error:  # whatever a library raises
        if target not in LIBRARIES.get(group, frozenset()):
            raise
        # A library's own bounds are known to its code alone.
        message = f"{target} refuses its options: {' '.join(str(error).split())}"
        raise TuneforgeError("wrong-value", message, path=group, fix="correct the option that it names") from error
    if not isinstance(built, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise TuneforgeError(
            "wrong-kind",
            f"{target} makes a {type(built).__name__}, and {group} is a {wanted}",
            path=group,
            fix=f"return a {wanted} from it (docs/plugins.md), or choose another option",
        )
    return built


def load(group: str, target: str) -> Callable[..., Any]:
    """The class or function of this name, imported.

    Raises:
        TuneforgeError: a config may not name it in this group, or the code of a plugin cannot be imported.
    """
    refusal = why_untrusted(group, target)
    if refusal:
        raise TuneforgeError("untrusted-target", refusal, path=group, fix=instead_of(group, target))
    module, _, name = target.rpartition(".")
    package = target.partition(".")[0]
    registry.make_importable(package)
    try:
        call: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a plugin's code does when it is imported
        owner = registry.owner_of(package)
        if owner is None:
            raise
        raise TuneforgeError(
            "plugin-does-not-import",
            f"{target} of {owner.label} cannot be imported: {_reason(error)}",
            fix=f"tuneforge plugins check {owner.origin}",
        ) from error
    return call


def _reason(error: BaseException) -> str:
    """The last line of the error underneath."""
    first = error
    while (cause := first.__cause__) is not None:
        first = cause
    lines = str(first).strip().splitlines()
    return f"{type(first).__name__}: {lines[-1] if lines else ''}"
