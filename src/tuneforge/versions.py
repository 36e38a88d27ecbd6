"""Installed versions of what a result depends on."""

import importlib.metadata
import platform

PACKAGES = ("tuneforge", "torch", "transformers", "peft", "lightning", "bitsandbytes", "hydra-core", "omegaconf")


def versions() -> dict[str, str]:
    """Python's and each package's version, as run.json keeps them."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
