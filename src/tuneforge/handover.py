"""A composed config and its place as JSON: what one process composes, and others run."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from tuneforge.artifacts.folder import RunFolder
from tuneforge.compose import PLACES, Composed, structure, used_plugins
from tuneforge.interpolation import lookup
from tuneforge.masking import remember, remember_keys
from tuneforge.plugins import registry
from tuneforge.plugins.discovery import discover
from tuneforge.provenance import Origin
from tuneforge.resume import Place
from tuneforge.schema import Config
from tuneforge.trial import Trial


def pack(composed: Composed) -> dict[str, Any]:
    """What another process needs to run the same."""
    return {
        "tree": composed.tree,
        "choices": composed.choices,
        "overrides": list(composed.overrides),
        "origins": {k: o.as_dict() for k, o in composed.origins.items()},
        "pickers": composed.pickers,
        "config_dirs": [str(d) for d in composed.config_dirs],
        "run_dir": str(composed.run_dir),
        "base": str(composed.base) if composed.base else None,
        "trial": dataclasses.asdict(composed.trial) if composed.trial else None,
        "from_environment": dict(composed.from_environment),
    }


def unpack(packed: dict[str, Any]) -> Composed:
    """The opposite of `pack`."""
    registry.use(discover())
    remember_keys(packed["tree"])
    for path, written in packed["from_environment"].items():
        if path not in PLACES:
            remember(lookup(packed["tree"], path), str(written))
    return Composed(
        config=structure(Config, packed["tree"]),
        tree=packed["tree"],
        choices=packed["choices"],
        overrides=tuple(packed["overrides"]),
        origins={k: Origin.of_dict(o) for k, o in packed["origins"].items()},
        run_dir=Path(packed["run_dir"]),
        pickers=packed["pickers"],
        config_dirs=tuple(map(Path, packed["config_dirs"])),
        plugins=used_plugins(packed["choices"], packed["tree"]),
        base=Path(packed["base"]) if packed["base"] else None,
        trial=Trial(**packed["trial"]) if packed["trial"] else None,
        from_environment=packed["from_environment"],
    )


def pack_place(place: Place) -> dict[str, Any]:
    """A run's folder and checkpoint."""
    return {
        "folder": str(place.folder.root),
        "checkpoint": str(place.checkpoint) if place.checkpoint else None,
        "finished": place.finished,
    }


def unpack_place(packed: dict[str, Any]) -> Place:
    """The opposite of `pack_place`; whoever packed it holds the folder."""
    checkpoint = Path(packed["checkpoint"]) if packed["checkpoint"] else None
    return Place(RunFolder(Path(packed["folder"])), checkpoint, packed["finished"])


def fingerprint(composed: Composed) -> str:
    """Hash of what a process is going to run."""
    return hashlib.sha256(json.dumps(pack(composed), sort_keys=True).encode()).hexdigest()
