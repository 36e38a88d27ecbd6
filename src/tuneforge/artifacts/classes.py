"""The report's tables of a classification run: who was taken for whom, and each class's numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST_CLASSES = 24
"""Columns of a matrix that can still be read; of more classes, the commonest confusions are listed."""
CONFUSIONS = 20
"""How many of them."""


def class_tables(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The matrix (or the commonest confusions) after training, and each class before and after; None for other runs.

    Before training alone is shown where a run did not get to its end.
    """
    measured = run.get("classes") or {}
    before, after = measured.get("before"), measured.get("after")
    shown = after or before
    if shown is None:
        return None
    names = [c["label"] for c in shown["classes"]]
    several = shown["multi_label"]
    return {
        "moment": "after training" if after else "before training",
        "names": names,
        "multi_label": several,
        "matrix": None if several or len(names) > MOST_CLASSES else _matrix(names, shown["confusion"]),
        "confusions": [] if several else _confusions(names, shown["confusion"]),
        "classes": _classes(shown, before if after else None),
    }


def _matrix(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """A row a class: its texts by predicted class, and their share of the row in percent for the shade."""
    return [
        {"label": name, "cells": [(n, round(100 * n / max(1, sum(row))), i == j) for j, n in enumerate(row)]}
        for i, (name, row) in enumerate(zip(names, counts, strict=True))
    ]


def _confusions(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[tuple[str, str, int]]:
    """(class, predicted class, texts), the commonest mistakes first."""
    wrong = [(names[i], names[j], n) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    return sorted(wrong, key=lambda one: -one[2])[:CONFUSIONS]


def _classes(shown: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    earlier = {c["label"]: c["f1"] for c in before["classes"]} if before else {}
    return [{**c, "f1_before": earlier.get(c["label"])} for c in shown["classes"]]
