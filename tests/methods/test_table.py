"""docs/methods.md is what the code says."""

from pathlib import Path

import pytest

from tuneforge.methods.table import SIZES, table, trained_weights

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_what_the_generator_writes():
    assert PAGE.read_text() == table()


def test_the_counts_agree_with_a_hand_computation():
    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    layer = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    whole = 32 * layer + 2 * SIZES["vocab_size"] * hidden + hidden
    assert trained_weights("full") == (whole, whole) == (6_738_415_616, 6_738_415_616)
    lora = 32 * 16 * (4 * 2 * hidden + 3 * (hidden + inner))
    assert trained_weights("lora") == (lora, whole) == (39_976_960, whole)
    assert trained_weights("ia3")[0] == 32 * (2 * hidden + inner)
    assert trained_weights("prompt_tuning")[0] == 20 * hidden
    assert trained_weights("freeze")[0] == pytest.approx(2 * layer)
