"""What a confusion matrix says: precision, recall and F1 of each class, and their summaries."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tuneforge.data.labels import Labels

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Classified:
    """The counts of an evaluation."""

    labels: Labels
    counts: Counts
    """[classes, classes]: texts by their class (rows) and the predicted one (columns). With several labels a text
    [classes, 4]: of each class, texts that have it and were given it, were wrongly given it, were wrongly not given it,
    and rightly not."""
    exact: int
    """Texts whose predicted classes are all right, and no others."""
    total: int
    """Texts."""

    def metrics(self) -> dict[str, float]:
        """accuracy and macro F1; with several labels a text micro F1, macro F1 and subset accuracy.

        F1 of a class that neither occurs nor is predicted is 0, as scikit-learn has it.
        """
        hits, wrong, missed = self._hits()
        macro = float(_f1(hits, wrong, missed).mean())
        if not self.labels.multi:
            return {"accuracy": self.exact / self.total, "macro_f1": macro}
        micro = float(_f1(hits.sum(), wrong.sum(), missed.sum()))
        return {"micro_f1": micro, "macro_f1": macro, "subset_accuracy": self.exact / self.total}

    def as_record(self) -> dict[str, Any]:
        """For run.json: the counts and each class's numbers."""
        hits, wrong, missed = self._hits()
        rows = zip(
            self.labels.names,
            _share(hits, hits + wrong),
            _share(hits, hits + missed),
            _f1(hits, wrong, missed),
            hits + missed,
            strict=True,
        )
        classes = [_Class(name, float(p), float(r), float(f), int(n)) for name, p, r, f, n in rows]
        return {
            "multi_label": self.labels.multi,
            "total": self.total,
            "confusion": self.counts.tolist(),
            "classes": [asdict(c) for c in classes],
        }

    def _hits(self) -> tuple[Counts, Counts, Counts]:
        """Of each class: texts rightly given it, wrongly given it, and wrongly not given it."""
        if self.labels.multi:
            return self.counts[:, 0], self.counts[:, 1], self.counts[:, 2]
        hits: Counts = self.counts.diagonal()
        return hits, self.counts.sum(0) - hits, self.counts.sum(1) - hits


@dataclass(frozen=True)
class _Class:
    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """Texts that have it."""


def _f1(hits: Any, wrong: Any, missed: Any) -> npt.NDArray[np.float64]:
    return _share(2 * hits, 2 * hits + wrong + missed)


def _share(part: Any, whole: Any) -> npt.NDArray[np.float64]:
    """part / whole, and 0 where there is nothing."""
    share: npt.NDArray[np.float64] = np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
    return share
