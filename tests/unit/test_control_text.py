"""Text of the data that names a control token, and answers that bring an end of their own."""

import pytest
from tokenizers import pre_tokenizers

from chats import HEADERS, OPTIONS, chat, taught, tokenizer_with
from helpers import make_tokenizer
from tuneforge.callbacks.start_checks import check_labels
from tuneforge.data.control_text import CUT, map_texts
from tuneforge.data.encode import encode
from tuneforge.data.formats import Example
from tuneforge.data.labelled import encode_labelled
from tuneforge.data.labels import Labels
from tuneforge.data.template import CHATML, PLAIN
from tuneforge.data.turn_marks import turn_marks
from tuneforge.errors import TuneforgeError


def written(prompt: str = "", completion: str = "", text: str = "", origin: str = "t:1") -> Example:
    return Example(prompt=prompt, completion=completion, text=text, origin=origin)


@pytest.mark.parametrize("end", ["</s>", "</s>\n", " </s>", "</s></s>", "<|im_end|>", "<|im_end|></s>\n"])
def test_a_completion_that_brings_its_end_gets_no_second_one(end, capsys):
    tokenizer = tokenizer_with(CHATML)
    document = encode([written("the quick", f" fox{end}")], tokenizer, **OPTIONS).documents[0]
    kept = "<|im_end|>" if end.startswith("<|im_end|>") else "</s>"
    assert taught([document], tokenizer) == [" fox" + (" " if end[0] == " " else "") + kept]
    assert "control tokens" not in capsys.readouterr().out
    text = encode([written(text=f"the fox{end}")], tokenizer, **OPTIONS).documents[0]
    assert tokenizer.decode(text.input_ids).count("<|im_end|>") + tokenizer.decode(text.input_ids).count("</s>") == 1


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (PLAIN, "</s>"),
        (PLAIN, "</s>\n"),
        (CHATML, "</s>"),
        (CHATML, "<|im_end|>\n"),
        (CHATML, "<|im_end|></s>"),
        (HEADERS, "<|eot|>\n"),
        (CHATML.replace("im_end", "unknown_end"), "<|unknown_end|>"),
        (CHATML.replace("im_end", "unknown_end"), "<|unknown_end|></s>\n"),
    ],
)
def test_an_answer_that_brings_its_end_is_taught_with_one(template, end):
    tokenizer = tokenizer_with(template)
    document = encode([chat("a?", f"one{end}")], tokenizer, **OPTIONS).documents
    assert taught(document, tokenizer) == [f"one{turn_marks(tokenizer).end}"]


def test_a_bracket_that_ends_an_answer_stays():
    tokenizer = tokenizer_with("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    assert taught(encode([chat("a?", "see [1]")], tokenizer, **OPTIONS).documents, tokenizer) == ["[see [1]]"]


def test_bos_of_the_row_and_of_the_tokenizer_is_one():
    tokenizer = tokenizer_with(PLAIN)
    ids = encode([written(text="<s>the fox")], tokenizer, **OPTIONS).documents[0].input_ids
    assert list(ids).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["<|im_end|>", "</s>", "<|im_start|>", "<pad>"])
@pytest.mark.parametrize("place", ["user", "assistant", "system", "prompt", "completion", "text"])
def test_control_tokens_in_text_warn_escape_or_refuse(name, place, capsys):
    tokenizer = tokenizer_with(CHATML)
    texts = dict.fromkeys(("user", "assistant", "system"), "the fox")
    texts[place] = f"the {name} fox"
    fine = chat("a?", "one", origin="t:9")
    if place in ("prompt", "completion", "text"):
        other = {"prompt": "the", "completion": "fox"} if place != "text" else {}
        example = written(**{**other, place: texts[place]})
    else:
        example = chat(texts["user"], texts["assistant"], system=texts["system"])
    control = tokenizer.convert_tokens_to_ids(name)
    clean = encode([clean_of(example, name)], tokenizer, **OPTIONS).documents[0]
    capsys.readouterr()

    warned = encode([fine, example], tokenizer, **OPTIONS).documents[1]
    assert list(warned.input_ids).count(control) == list(clean.input_ids).count(control) + 1
    assert f"1 of 2 rows hold control tokens as text ({name!r} in t:1 first)" in capsys.readouterr().out

    escaped = encode([fine, example], tokenizer, **OPTIONS, special_tokens="escape").documents[1]
    assert list(escaped.input_ids).count(control) == list(clean.input_ids).count(control)
    assert tokenizer.decode(escaped.input_ids) == tokenizer.decode(warned.input_ids)

    with pytest.raises(TuneforgeError, match=r"t:1 holds .* in its text"):
        encode([fine, example], tokenizer, **OPTIONS, special_tokens="refuse")
    kept = encode([fine, example], tokenizer, **OPTIONS, special_tokens="refuse", on_bad="skip").documents
    assert [d.origin for d in kept] == ["t:9"]


def clean_of(example: Example, name: str) -> Example:
    return map_texts(example, lambda text: text.replace(name, "quick"))


def test_an_escaped_answer_is_taught_as_text():
    tokenizer = tokenizer_with(CHATML)
    documents = encode(
        [chat("how?", "write <|im_end|> and </s> twice: </s>.")], tokenizer, **OPTIONS, special_tokens="escape"
    ).documents
    assert taught(documents, tokenizer) == ["write <|im_end|> and </s> twice: </s>.<|im_end|>"]
    assert list(documents[0].input_ids).count(tokenizer.convert_tokens_to_ids("</s>")) == 0


def test_escaping_adds_no_space_where_a_tokenizer_starts_texts_with_one():
    tokenizer = make_tokenizer("llama")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.chat_template = CHATML
    document = encode([chat("the</s>fox", "x")], tokenizer, **OPTIONS, special_tokens="escape").documents[0]
    assert "the</s>fox" in tokenizer.decode(document.input_ids)
    assert tokenizer.convert_tokens_to_ids("</s>") not in document.input_ids


def test_tags_that_models_write_are_no_control_tokens(capsys):
    tokenizer = tokenizer_with(CHATML)
    tokenizer.add_tokens(["<think>", "</think>", "<table>", "  "])
    encode([chat("a <table>  b?", "<think>x</think> one")], tokenizer, **OPTIONS)
    assert "control tokens" not in capsys.readouterr().out


def test_end_of_turn_tokens_that_are_not_special_are_control_tokens_too(capsys):
    tokenizer = tokenizer_with(HEADERS)  # <|eot|> is an added token, not a special one
    encode([chat("what does <|eot|> mean?", "one")], tokenizer, **OPTIONS)
    assert "('<|eot|>' in t:1 first)" in capsys.readouterr().out


ENDS = {
    "one": (CHATML, ["<|im_end|>"]),
    "eos": (PLAIN, ["</s>"]),
    "several": (CHATML + "{% if not add_generation_prompt %}</s>{% endif %}", ["<|im_end|>", "</s>"]),
    "not special": (HEADERS, ["<|eot|>"]),
    "text": ("{% for m in messages %}{{ m['content'] }}\n### End\n{% endfor %}", []),
    "none": ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", []),
    "needs a system turn": ("{{ messages[0]['content'] if messages[1] }}" + CHATML, ["<|im_end|>"]),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_turn_is_found_in_the_template(name):
    template, ends = ENDS[name]
    tokenizer = tokenizer_with(template)
    assert list(turn_marks(tokenizer).end_ids) == tokenizer.convert_tokens_to_ids(ends)


def test_texts_to_classify_warn_escape_or_refuse_too(capsys):
    tokenizer = make_tokenizer("bert")
    labels = Labels(("a", "b"), multi=False)
    texts = [("the fox", "a"), ("a </s> dog", "b")]
    rows = [Example(text=t, labels=(label,), origin=f"t:{i}") for i, (t, label) in enumerate(texts, 1)]
    options = {"max_length": 64, "overlong": "truncate"}
    end = tokenizer.convert_tokens_to_ids("</s>")
    ids = [list(d.input_ids).count(end) for d in encode_labelled(rows, tokenizer, labels, **options).documents]
    assert ids == [1, 2]
    assert "1 of 2 rows hold control tokens as text ('</s>' in t:2 first)" in capsys.readouterr().out
    escaped = encode_labelled(rows, tokenizer, labels, **options, special_tokens="escape").documents
    assert [list(d.input_ids).count(end) for d in escaped] == [1, 1]
    with pytest.raises(TuneforgeError, match="t:2 holds '</s>' in its text"):
        encode_labelled(rows, tokenizer, labels, **options, special_tokens="refuse")
    kept = encode_labelled(rows, tokenizer, labels, **options, special_tokens="refuse", on_bad="skip").documents
    assert [d.origin for d in kept] == ["t:1"]


def test_what_marks_an_escape_cannot_be_in_a_text_that_is_escaped():
    tokenizer = tokenizer_with(CHATML)
    rows = [chat(f"a </s> {CUT}b?", "one", origin="t:1"), chat(f"{CUT}", "one", origin="t:2")]
    with pytest.raises(TuneforgeError, match=r"t:1 holds '</s>' and U\+F5A12"):
        encode(rows, tokenizer, **OPTIONS, special_tokens="escape")
    documents = encode(rows, tokenizer, **OPTIONS, special_tokens="escape", on_bad="skip").documents
    assert CUT in tokenizer.decode(documents[0].input_ids)


def test_an_end_of_turn_that_is_not_special_is_no_missing_end(capsys):
    for template, missing in (
        (HEADERS, False),
        (CHATML, False),
        ("{{ messages | map(attribute='content') | join }}", True),
    ):
        tokenizer = tokenizer_with(template)
        documents = encode([chat("a?", "one"), chat("b?", "two")], tokenizer, **OPTIONS).documents
        capsys.readouterr()
        check_labels(documents, tokenizer, "assistant", turn_marks(tokenizer).end_ids)
        assert ("do not end in an end-of-turn token" in capsys.readouterr().out) is missing
