"""Checkpoints that are whole or not there: written beside their place, synced, renamed, and checked by hash on load."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from tuneforge.artifacts.folder import read_json, write_json
from tuneforge.errors import TuneforgeError


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's own save goes through TMPDIR (a copy, not a rename, on another filesystem) and hides EPERM."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `path`, then its manifest; the manifest is the mark of a finished checkpoint."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256(temporary)
        temporary.replace(target)
        _sync_folder(target.parent)
        write_json(manifest_of(target), {"file": target.name, "sha256": digest, "bytes": target.stat().st_size})

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint of plain containers and tensors; a pickle with anything else in it is refused."""
        source = Path(path)
        if not is_whole(source):
            raise TuneforgeError(
                "checkpoint-damaged",
                f"{source}: the checkpoint is incomplete or damaged (its hash differs from its manifest)",
                path="resume",
                fix="resume from an older checkpoint of the same folder",
            )
        return torch.load(source, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the manifest first: what is left without one is no checkpoint."""
        manifest_of(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def manifest_of(checkpoint: Path) -> Path:
    """The manifest's path."""
    return checkpoint.with_suffix(".json")


def is_whole(checkpoint: Path) -> bool:
    """Whether the file is there with the size and hash of its manifest."""
    manifest = manifest_of(checkpoint)
    if not checkpoint.is_file() or not manifest.is_file():
        return False
    facts = read_json(manifest)
    return bool(checkpoint.stat().st_size == facts["bytes"] and sha256(checkpoint) == facts["sha256"])


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is whole; damaged ones are passed over."""
    found = sorted(folder.glob("step-*.ckpt"), reverse=True)
    return next((c for c in found if is_whole(c)), None)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
