"""How checkpoints are saved and loaded: `state.pt` in a folder, and beside it the parts of split tensors, if any."""

from collections.abc import Mapping
from io import BufferedWriter, FileIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from tuneforge.artifacts import parts, whole
from tuneforge.artifacts.background import Background
from tuneforge.artifacts.parts import Like, Part
from tuneforge.errors import TuneforgeError

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
        self.save_part(checkpoint, None, Path(path), whole.ALONE)

    def save_part(
        self, checkpoint: dict[str, Any], own: Mapping[str, Part] | None, path: Path, ranks: whole.Ranks
    ) -> None:
        """Write this process's share of a checkpoint that `ranks` write together, as `save_checkpoint` does.

        Args:
            checkpoint: all but the split tensors; the first process writes it.
            own: what this process holds of the split ones; None where there are none.
            path: the checkpoint's folder.
            ranks: the processes.
        """
        if self.background is None:
            _write(checkpoint, own, path, ranks)
            return
        if self.background.asynchronous:
            self.background.wait()
            checkpoint = apply_to_collection(checkpoint, torch.Tensor, _on_host)
            own = own and {name: Part(_on_host(part.values), part.place) for name, part in own.items()}
        self.background.do(lambda: _write(checkpoint, own, path, ranks))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint of plain containers and tensors; a pickle with anything else in it is refused."""
        return load(Path(path), map_location=map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the checkpoint `path`."""
        if self.background is None:
            whole.remove(Path(path))
        else:
            self.background.do(lambda: whole.remove(Path(path)))


def load(source: Path, like: Like = parts.whole, map_location: Any = None) -> Any:
    """A checkpoint, whether it was written by one process or in parts; `like` says what split tensors are read into.

    Raises:
        TuneforgeError: it is damaged.
    """
    whole.require(source)
    try:
        checkpoint = torch.load(source / STATE, map_location=map_location or "cpu", weights_only=True)
    except UnpicklingError as error:
        raise TuneforgeError(
            "pickled-weights",
            f"{source / STATE} holds more than tensors and plain containers, so tuneforge did not write it: reading it "
            "could run any code",
            path="resume",
            fix="resume a run that tuneforge wrote, or start a new one from its adapter/ (model.adapter=...)",
        ) from error
    if parts.are_in(source):
        parts.put_together(checkpoint, parts.read(source, like))
    return checkpoint


def _write(checkpoint: dict[str, Any], own: Mapping[str, Part] | None, target: Path, ranks: whole.Ranks) -> None:
    def fill(folder: Path) -> list[Path]:
        files = []
        if ranks.rank == 0:
            files.append(folder / STATE)
            _write_state(checkpoint, files[-1])
        if own is not None:
            files.append(folder / parts.file_of(ranks.rank))
            parts.write(
                files[-1], {name: Part(part.values.cpu().contiguous(), part.place) for name, part in own.items()}
            )
        return files

    whole.write(target, fill, ranks)


def _write_state(checkpoint: dict[str, Any], path: Path) -> None:
    with _Telling(FileIO(path, "w")) as file:
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
