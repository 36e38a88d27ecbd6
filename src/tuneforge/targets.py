"""Which `_target_`s a config may name: tuneforge, its plugins, and library objects by their exact name."""

from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import HydraException

from tuneforge.errors import TuneforgeError
from tuneforge.plugins import registry
from tuneforge.schema.signature import Signature, read_signature

CORE = "tuneforge"

# Exact names: `torch.*` as a package would let `torch.load` through, and with it any pickle.
TRUSTED_NAMES = frozenset(
    {
        "lightning.pytorch.callbacks.DeviceStatsMonitor",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.Timer",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "torch.optim.AdamW",
        "torch.optim.SGD",
    }
)


def trusted_packages() -> tuple[str, ...]:
    """The packages whose own code a config may name: ours, and that of each healthy plugin."""
    return (CORE, *(p.package for p in registry.healthy()))


def why_untrusted(target: str) -> str:
    """Why a config may not name this target; "" when it may."""
    package = target.partition(".")[0]
    if package in trusted_packages() or target in TRUSTED_NAMES:
        return ""
    owner = registry.owner_of(package)
    if owner is not None:
        return f"{target} is of {owner.label}, which is broken: {owner.troubles[0].cause}"
    return (
        f"{target} is not trusted: a config may name code of {', '.join(trusted_packages())}, "
        f"or exactly one of {', '.join(sorted(TRUSTED_NAMES))}"
    )


def why_borrowed(signature: Signature) -> str:
    """Why a trusted package may not lend its name to this target: it only imports it from elsewhere."""
    if signature.target in TRUSTED_NAMES or signature.home.partition(".")[0] in trusted_packages():
        return ""
    return f"{signature.target} is really of {signature.home}, which is not trusted"


def make(node: Mapping[str, Any], *objects: Any) -> Any:
    """Call what `node["_target_"]` names: with as many of `objects` as it takes, and the keys that are its options.

    Raises:
        TuneforgeError: the code of a plugin cannot be imported.
    """
    target = node["_target_"]
    signature = read_signature(target)
    options = {k: v for k, v in node.items() if k in signature.fields or (signature.accepts_any and k != "_target_")}
    return load(target)(*objects[: signature.num_objects], **options)


def load(target: str) -> Callable[..., Any]:
    """The class or function of this name, imported.

    Raises:
        TuneforgeError: the code of a plugin cannot be imported.
    """
    from hydra.utils import instantiate

    package = target.partition(".")[0]
    whitelist = [f"{trusted}.*" for trusted in trusted_packages()] + sorted(TRUSTED_NAMES)
    registry.make_importable(package)
    try:
        # `_partial_` hands back the callable, so that our objects never pass through a config.
        call: Callable[..., Any] = instantiate({"_target_": target, "_partial_": True}, _execution_whitelist_=whitelist)
    except HydraException as error:
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
    """The last line of the error underneath: Hydra wraps it in its own."""
    first = error
    while (cause := first.__cause__) is not None:
        first = cause
    lines = str(first).strip().splitlines()
    return f"{type(first).__name__}: {lines[-1] if lines else ''}"
