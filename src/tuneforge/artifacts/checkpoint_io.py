"""How Lightning saves and loads the checkpoints of unsharded strategies: one `state.pt` in a checkpoint's folder."""

from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from tuneforge.artifacts import whole
from tuneforge.artifacts.background import Background

STATE = "state.pt"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's own save goes through TMPDIR (a copy, not a rename, on another filesystem) and hides EPERM."""

    def __init__(self, background: Background | None = None) -> None:
        """Saves and removals are jobs of `background`, in their order; without one they are done, and raise, at once.

        A failed save drops the removals behind it: what it was to replace stays.
        """
        self.background = background

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint `path`; asynchronously, a copy in host memory is written, one at a time.

        Raises:
            TuneforgeError: without a background, it could not be written.
        """
        target = Path(path)
        if self.background is None:
            _write(checkpoint, target)
            return
        if self.background.asynchronous:
            self.background.wait()
            checkpoint = apply_to_collection(checkpoint, torch.Tensor, _on_host)
        self.background.do(lambda: _write(checkpoint, target))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint of plain containers and tensors; a pickle with anything else in it is refused."""
        source = Path(path)
        whole.require(source)
        return torch.load(source / STATE, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the checkpoint `path`."""
        if self.background is None:
            whole.remove(Path(path))
        else:
            self.background.do(lambda: whole.remove(Path(path)))


def _write(checkpoint: dict[str, Any], target: Path) -> None:
    with whole.written(target) as folder, _Telling(FileIO(folder / STATE, "w")) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch's zip writer says "unexpected pos" and not why.
            if file.error is None:
                raise
            raise file.error from error


class _Telling(BufferedWriter):
    """A file that keeps the system's error."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
