"""What decides how rows become tokens, in two hashes."""

import json

import pytest

from helpers import make_tokenizer
from tuneforge.data.template import CHATML, PLAIN
from tuneforge.models import load_tokenizer
from tuneforge.schema.model import Model
from tuneforge.vocabulary import digests


def folder_digests(folder) -> dict[str, str]:
    return digests(load_tokenizer(Model(name="m", path=str(folder)), generates=False))


def put(text: str):
    def edit(file):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    return edit


def keys(**changed):
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize(
    ("file", "edit", "wanted"),
    [
        ("chat_template.jinja", put(PLAIN), {"model.chat_template"}),
        ("additional_chat_templates/other.jinja", put(PLAIN), {"model.chat_template"}),
        ("tokenizer_config.json", keys(bos_token="<pad>"), {"model.path"}),
        ("tokenizer.json", keys(normalizer={"type": "Lowercase"}), {"model.path"}),
        ("tokenizer.json", keys(post_processor=None), {"model.path"}),
        ("tokenizer_config.json", keys(model_max_length=7), set()),
        ("config.json", put('{"model_type": "llama", "vocab_size": 99}'), set()),
    ],
)
def test_edited_files_change_the_hash_of_what_they_decide(file, edit, wanted, tmp_path):
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 512}')
    before = folder_digests(tmp_path)
    assert folder_digests(tmp_path) == before
    edit(tmp_path / file)
    after = folder_digests(tmp_path)
    assert {key for key in before if before[key] != after[key]} == wanted


def test_a_template_of_the_tokenizer_config_counts(tmp_path):
    make_tokenizer("llama").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 512}')
    none = folder_digests(tmp_path)
    keys(chat_template=CHATML)(tmp_path / "tokenizer_config.json")
    assert folder_digests(tmp_path)["model.chat_template"] != none["model.chat_template"]


def test_padding_and_truncation_of_the_last_call_do_not_count():
    tokenizer = make_tokenizer("llama")
    before = digests(tokenizer)
    tokenizer(["the quick fox"], truncation=True, max_length=2, padding="max_length")
    assert digests(tokenizer) == before
