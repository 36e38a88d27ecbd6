"""Best-fit packing: documents into rows of a fixed number of tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest document first, each into the fullest row that still has room.

    Returns the document indices of each row. Documents are never split, so no text is torn; the waste is what
    best-fit leaves (under 1 % on chat data: arXiv 2404.10830 measures the same rule).

    Raises:
        ValueError: a document is longer than `capacity`.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > capacity:
        raise ValueError(f"document {order[0]} has {lengths[order[0]]} tokens, a row holds {capacity}")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted: the first entry with enough is the best fit
    for i in order:
        at = bisect_left(room, (lengths[i], -1))
        if at == len(room):
            rows.append([i])
            insort(room, (capacity - lengths[i], len(rows) - 1))
            continue
        left, row = room.pop(at)
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return rows
