"""Tokenizer files that are missing, broken, newer, or need another package: exit 2, naming the file."""

import base64
import json
import shutil

import pytest
from transformers import AutoConfig, LlamaConfig

from helpers import make_tokenizer
from tuneforge import tokenizer_files
from tuneforge.errors import TuneforgeError
from tuneforge.models import check_vocabulary, load_tokenizer
from tuneforge.schema.model import Model

RANKS = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
PIECES = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer("llama").save_pretrained(folder)
    LlamaConfig(vocab_size=512).save_pretrained(folder)
    return folder


def refused(folder, **options) -> str:
    with pytest.raises(TuneforgeError) as raised:
        load_tokenizer(Model(name="m", path=str(folder)), **options)
    problem = raised.value.problems[0]
    assert problem.path == "model.path"
    return f"{problem.code}: {problem.message}: {problem.fix}"


def changed(text: bytes, **keys) -> bytes:
    return json.dumps({**json.loads(text), **keys}).encode()


EDITS = {
    "cut off": ("tokenizer.json", lambda t: t[: len(t) // 2], "cut off"),
    "empty": ("tokenizer.json", lambda _: b"", "cut off"),
    "list": ("tokenizer.json", lambda _: b"[]", "no JSON object"),
    "null": ("tokenizer.json", lambda _: b"null", "no JSON object"),
    "nothing in it": ("tokenizer.json", lambda _: b"{}", "cannot be read by tokenizers"),
    "binary": ("tokenizer.json", lambda _: b"\xff\xfe\x00", "not UTF-8"),
    "newer model": ("tokenizer.json", lambda t: changed(t, model={"type": "Quantum"}), "pip install -U transformers"),
    "newer part": (
        "tokenizer.json",
        lambda t: changed(t, pre_tokenizer={"type": "Frob"}),
        "cannot be read by tokenizers",
    ),
    "config cut off": ("tokenizer_config.json", lambda t: t[: len(t) // 2], "cut off"),
    "config list": ("tokenizer_config.json", lambda _: b"[]", "no JSON object"),
    "template number": ("tokenizer_config.json", lambda t: changed(t, chat_template=5), "`chat_template` is neither"),
    "template unnamed": (
        "tokenizer_config.json",
        lambda t: changed(t, chat_template=[{"nme": "a"}]),
        "KeyError: 'name'",
    ),
    "eos number": ("tokenizer_config.json", lambda t: changed(t, eos_token=5), "TypeError"),
    "length text": ("tokenizer_config.json", lambda t: changed(t, model_max_length="x"), "`model_max_length` is 'x'"),
    "length list": ("tokenizer_config.json", lambda t: changed(t, model_max_length=[1]), "not a number"),
    "BOS without an id": (
        "tokenizer.json",
        lambda t: changed(t, post_processor={**json.loads(t)["post_processor"], "special_tokens": {}}),
        "tokenizers fails on it",
    ),
    "special tokens": ("special_tokens_map.json", lambda _: b'{"a": ', "cut off"),
    "special tokens list": ("special_tokens_map.json", lambda _: b"[1]", "no JSON object"),
    "added tokens": ("added_tokens.json", lambda _: b'{"a": ', "cut off"),
    "template binary": ("chat_template.jinja", lambda _: b"\xff\xfe", "not UTF-8"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_broken_file_is_named(name, whole, tmp_path):
    file, edit, wanted = EDITS[name]
    folder = shutil.copytree(whole, tmp_path / "m")
    before = (folder / file).read_bytes() if (folder / file).exists() else b""
    (folder / file).write_bytes(edit(before))
    said = refused(folder)
    assert said.startswith("broken-tokenizer: ")
    assert file in said
    assert wanted in said


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma"])
def test_a_model_without_a_tokenizer_is_refused(architecture, tmp_path):
    AutoConfig.for_model(architecture).save_pretrained(tmp_path)
    assert refused(tmp_path).startswith("no-tokenizer: ")
    (tmp_path / "tokenizer_config.json").write_text("{}")  # transformers makes some an empty vocabulary
    assert refused(tmp_path).startswith("no-tokenizer: ")


@pytest.mark.parametrize(
    ("file", "content", "package"),
    [
        ("tokenizer.model", PIECES, "sentencepiece"),
        ("tokenizer.model", RANKS, "tiktoken"),
        ("tiktoken.model", RANKS, "tiktoken"),
        ("qwen.tiktoken", RANKS, "tiktoken"),
    ],
)
def test_a_vocabulary_of_another_package_names_that_package(file, content, package, tmp_path, monkeypatch):
    missing = ("sentencepiece", "tiktoken")
    installed = tokenizer_files._installed
    monkeypatch.setattr(tokenizer_files, "_installed", lambda m: m not in missing and installed(m))
    architecture = "qwen2" if file.startswith("qwen") else "llama"
    AutoConfig.for_model(architecture, vocab_size=512).save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    said = refused(tmp_path)
    assert said.startswith("tokenizer-needs-package: ")
    assert f"{file} is read by {package}" in said
    assert f"pip install {package}" in said


def test_a_tokenizer_without_offsets_is_refused_where_answers_are_masked(tmp_path):
    LlamaConfig(vocab_size=512).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    said = refused(tmp_path)
    assert said.startswith("slow-tokenizer: ")
    assert "ByT5Tokenizer" in said
    assert not load_tokenizer(Model(name="m", path=str(tmp_path)), generates=False).is_fast  # the advice


def test_ids_beyond_the_embedding_are_refused_and_rows_to_spare_are_not(whole):
    model = Model(name="m", path=str(whole))
    tokenizer = load_tokenizer(model)
    for rows in (len(tokenizer), 512, 1024):
        check_vocabulary(model, LlamaConfig(vocab_size=rows), tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(
        TuneforgeError, match=rf"ids up to {len(tokenizer) - 1}, .*{len(tokenizer) - 1} rows .*<\|new\|>"
    ):
        check_vocabulary(model, LlamaConfig(vocab_size=len(tokenizer) - 1), tokenizer)
