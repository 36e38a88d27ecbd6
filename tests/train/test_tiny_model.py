"""The bundled model is what its card says."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneforge.models import locate
from tuneforge.tiny import held_out_loss, write_tokenizer

FOLDER = Path(locate("bundled:tiny"))
CARD = json.loads((FOLDER / "card.json").read_text())


def test_it_is_small_and_loads():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 8_000_000
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == CARD["parameters"] <= 4_000_000
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id


@pytest.mark.soak
def test_its_loss_on_the_text_that_ships_with_it_is_its_cards():
    assert held_out_loss(FOLDER) == pytest.approx(CARD["held_out_loss"], abs=2e-3)


def test_its_template_ends_answers_in_eos():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False
    )
    assert text.endswith("b" + tokenizer.eos_token)


def test_making_the_tokenizer_again_gives_the_same_one(tmp_path):
    import platform

    if platform.python_version() != CARD["python"]:
        pytest.skip(f"made from the library of Python {CARD['python']}, this is {platform.python_version()}")
    write_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
