"""Endless repetition is seen; a base that never ends is no finding; prompts and answers are those of the samples."""

import json

import pytest

from guards.conftest import found
from tuneforge.callbacks.generation_watch import Measures, measured, repetition

EVERY = ("samples.num=4", "samples.max_new_tokens=32", "callbacks.generation_watch.max_share=1")


def test_measures_by_hand():
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 8) == pytest.approx(1 - 1 / 5)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert measured([[1, 1, 2], [2, 3]], 0.5) == Measures(0.0, 3 / 5, 3 / 5, 0.5)
    assert measured([]) == Measures(0.0, 0.0, 0.0, None)


def watch(ran):
    return ran.record["guards"]["generation_watch"]
