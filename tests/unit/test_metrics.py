"""Classification's numbers, worked out by hand."""

import numpy as np
import pytest

from tuneforge.data.labels import Labels
from tuneforge.metrics import Classified


def test_one_label_a_text():
    counts = np.array([[3, 1, 0], [2, 2, 0], [1, 0, 0]])
    found = Classified(Labels(("a", "b", "c"), multi=False), counts, exact=5, total=9)
    # a: tp 3, fp 3, fn 1 -> 6/10; b: tp 2, fp 1, fn 2 -> 4/7; c: never predicted -> 0.
    assert found.metrics() == pytest.approx({"accuracy": 5 / 9, "macro_f1": (6 / 10 + 4 / 7) / 3})
    a, _, c = found.as_record()["classes"]
    assert a == pytest.approx({"label": "a", "precision": 3 / 6, "recall": 3 / 4, "f1": 0.6, "support": 4})
    assert c == {"label": "c", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_several_labels_a_text():
    # rightly given, wrongly given, wrongly not given, rightly not given
    counts = np.array([[4, 1, 1, 4], [1, 0, 3, 6]])
    found = Classified(Labels(("a", "b"), multi=True), counts, exact=5, total=10)
    expected = {"micro_f1": 10 / (10 + 1 + 4), "macro_f1": (8 / 10 + 2 / 5) / 2, "subset_accuracy": 0.5}
    assert found.metrics() == pytest.approx(expected)
