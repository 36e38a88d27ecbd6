"""How far a GPU is used, as its driver and torch's allocator tell; neither makes anyone wait for the device."""

from collections import deque
from contextlib import suppress

import torch

_UNTOLD: tuple[type[Exception], ...] = (ModuleNotFoundError, RuntimeError)
"""What asking raises where nobody can tell; the driver's own error is neither."""
with suppress(ModuleNotFoundError):
    import pynvml

    _UNTOLD += (pynvml.NVMLError,)

EVERY = 1.0
"""Seconds between two questions: the driver's own numbers are means over up to a second."""
RECENT = 10
"""Answers that are looked at together."""
AT_LEAST = 3
"""Fewer say nothing."""


class GpuUse:
    """Utilisation and memory of one GPU, in shares."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._total = torch.cuda.get_device_properties(device).total_memory
        self._asked = 0.0
        self._told = utilisation(device) is not None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._sum, self._count = 0.0, 0

    def look(self, now: float) -> None:
        """Ask the driver, where a second has passed since it was asked."""
        if not self._told or now - self._asked < EVERY:
            return
        self._asked = now
        share = utilisation(self.device)
        if share is not None:
            self._recent.append(share)
            self._sum, self._count = self._sum + share, self._count + 1

    def recent(self) -> float | None:
        """Mean share of the last seconds in which something ran; None where too little, or nothing, is known."""
        return sum(self._recent) / len(self._recent) if len(self._recent) >= AT_LEAST else None

    def idle(self) -> float:
        """The rest of it; 0 where too little is known."""
        busy = self.recent()
        return 0.0 if busy is None else 1 - busy

    def memory(self) -> float:
        """Share of the memory that the run has held at most."""
        return torch.cuda.max_memory_reserved(self.device) / self._total

    def now(self) -> dict[str, float]:
        """For the log."""
        recent = self.recent()
        return {**({} if recent is None else {"utilisation": recent}), "memory": self.memory()}

    def as_shares(self) -> dict[str, float]:
        """Of the whole run, for the record."""
        found = {"gpu_memory": self.memory()}
        return {"gpu_utilisation": self._sum / self._count, **found} if self._count else found


def utilisation(device: torch.device) -> float | None:
    """Share of the last moments in which a kernel ran; None where the driver does not tell (MIG, no nvidia-ml-py)."""
    try:
        return torch.cuda.utilization(device) / 100
    except _UNTOLD:
        return None
