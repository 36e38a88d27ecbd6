"""Which `_target_`s a config may name: tuneforge itself, and library objects by their exact name."""

from collections.abc import Mapping
from typing import Any

TRUSTED_PACKAGES = ("tuneforge",)

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


def why_untrusted(target: str) -> str:
    """Why a config may not name this target; "" when it may."""
    package = target.partition(".")[0]
    if package in TRUSTED_PACKAGES or target in TRUSTED_NAMES:
        return ""
    return (
        f"{target} is not trusted: a config may name code of {', '.join(TRUSTED_PACKAGES)}, "
        f"or exactly one of {', '.join(sorted(TRUSTED_NAMES))}"
    )


def make(node: Mapping[str, Any], *objects: Any) -> Any:
    """Call what `node["_target_"]` names: with as many of `objects` as it takes, and the keys that are its options."""
    from hydra.utils import instantiate

    from tuneforge.schema.signature import read_signature

    target = node["_target_"]
    signature = read_signature(target)
    options = {k: v for k, v in node.items() if k in signature.fields or (signature.accepts_any and k != "_target_")}
    whitelist = [f"{package}.*" for package in TRUSTED_PACKAGES] + sorted(TRUSTED_NAMES)
    # `_partial_` hands back the callable, so that our objects never pass through a config.
    call = instantiate({"_target_": target, "_partial_": True}, _execution_whitelist_=whitelist)
    return call(*objects[: signature.num_objects], **options)
