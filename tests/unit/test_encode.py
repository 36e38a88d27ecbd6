"""What is supervised: the answer's tokens, its end, and nothing else."""

import numpy as np
import pytest

from helpers import make_tokenizer
from tuneforge.data.encode import IGNORE, encode
from tuneforge.data.formats import Example
from tuneforge.data.template import CHATML, PLAIN, choose_template
from tuneforge.errors import TuneforgeError

OPTIONS = {"train_on": "assistant", "max_length": 256, "overlong": "truncate"}


def chat(*turns: str) -> Example:
    roles = ("user", "assistant")
    return Example(messages=tuple({"role": roles[i % 2], "content": t} for i, t in enumerate(turns)), origin="t:1")


@pytest.fixture
def tokenizer():
    made = make_tokenizer("llama")
    made.chat_template = PLAIN
    return made


def supervised(document, tokenizer) -> str:
    return tokenizer.decode(document.labels[document.labels != IGNORE])


def test_only_the_answer_and_its_eos_are_supervised(tokenizer):
    document = encode([chat("who?", "the fox")], tokenizer, **OPTIONS).documents[0]
    assert supervised(document, tokenizer) == "the fox</s>"


def test_every_assistant_turn_is_supervised_with_its_own_end(tokenizer):
    document = encode([chat("a?", "one", "b?", "two")], tokenizer, **OPTIONS).documents[0]
    assert supervised(document, tokenizer) == "one</s>two</s>"


def test_bos_stands_once_whether_tokenizer_or_template_writes_it(tokenizer):
    for template in (PLAIN, CHATML):
        tokenizer.chat_template = template
        ids = encode([chat("a?", "one")], tokenizer, **OPTIONS).documents[0].input_ids
        assert list(ids).count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


def test_a_tokenizer_without_bos_gets_none():
    tokenizer = make_tokenizer("qwen2")
    ids = encode([chat("a?", "one")], tokenizer, **OPTIONS).documents[0].input_ids
    assert tokenizer.convert_tokens_to_ids("<s>") not in ids


def test_pad_equal_to_eos_keeps_the_real_eos_supervised():
    tokenizer = make_tokenizer("gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = PLAIN
    document = encode([chat("a?", "one")], tokenizer, **OPTIONS).documents[0]
    assert document.labels[document.labels != IGNORE][-1] == tokenizer.eos_token_id


def test_chatml_supervises_its_end_of_turn_but_not_the_newline_after_it():
    tokenizer = make_tokenizer("qwen2")
    document = encode([chat("a?", "one")], tokenizer, **OPTIONS).documents[0]
    assert supervised(document, tokenizer) == "one<|im_end|>"


def test_prompt_completion_is_raw_text_that_ends_in_eos(tokenizer):
    document = encode([Example(prompt="the quick ", completion="fox", origin="t:1")], tokenizer, **OPTIONS).documents[0]
    assert tokenizer.decode(document.input_ids) == "<s>the quick fox</s>"
    # " fox" is one token: it holds the whole answer, so it is supervised although the space is the prompt's.
    assert supervised(document, tokenizer) == " fox</s>"


def test_text_is_supervised_whole(tokenizer):
    document = encode([Example(text="the dog", origin="t:1")], tokenizer, **OPTIONS).documents[0]
    assert supervised(document, tokenizer) == "the dog</s>"


def test_train_on_all_supervises_the_prompt_too(tokenizer):
    options = {**OPTIONS, "train_on": "all"}
    document = encode([chat("who?", "the fox")], tokenizer, **options).documents[0]
    assert "who?" in supervised(document, tokenizer)


def test_a_template_that_rewrites_earlier_turns_gives_a_document_a_turn(tokenizer):
    # As reasoning models do: an answer is written in full only while it is the last.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{% if m['role'] == 'assistant' and not loop.last %}...{% else %}{{ m['content'] }}{% endif %}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    documents = encode([chat("a?", "one", "b?", "two")], tokenizer, **OPTIONS).documents
    assert [supervised(d, tokenizer) for d in documents] == ["one</s>", "two</s>"]
    assert "..." in tokenizer.decode(documents[1].input_ids)


def test_a_template_that_refuses_a_role_names_the_row(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(TuneforgeError, match=r"refuses t:1 .*System role not supported"):
        encode([chat("a?", "one")], tokenizer, **OPTIONS)


def test_a_template_without_generation_prompt_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}!!{% endif %}"
    )
    with pytest.raises(TuneforgeError, match="cannot be told apart"):
        encode([chat("a?", "one")], tokenizer, **OPTIONS)


def test_overlong_documents_are_cut_dropped_or_chunked_and_counted(tokenizer):
    example = Example(text="the lazy dog " * 40, origin="t:1")
    cut = encode([example], tokenizer, train_on="all", max_length=16, overlong="truncate")
    assert (len(cut.documents), len(cut.documents[0].input_ids), cut.truncated) == (1, 16, 1)
    chunked = encode([example], tokenizer, train_on="all", max_length=16, overlong="chunk")
    whole = encode([example], tokenizer, train_on="all", max_length=4096, overlong="chunk")
    assert np.array_equal(np.concatenate([d.input_ids for d in chunked.documents]), whole.documents[0].input_ids)
    short = Example(text="dog", origin="t:2")
    dropped = encode([example, short], tokenizer, train_on="all", max_length=16, overlong="drop")
    assert (len(dropped.documents), dropped.dropped) == (1, 1)


def test_rows_whose_answers_are_all_cut_off_are_an_error_that_names_them(tokenizer):
    with pytest.raises(TuneforgeError, match=r"no row has a supervised token .*t:1"):
        encode(
            [chat("the quick brown fox " * 50, "yes")],
            tokenizer,
            train_on="assistant",
            max_length=16,
            overlong="truncate",
        )


def test_choosing_a_template(tokenizer, tmp_path):
    tokenizer.chat_template = None
    assert choose_template(tokenizer, "auto").startswith("chat template: plain")
    assert choose_template(tokenizer, "auto") == "chat template: the tokenizer's own"
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    assert choose_template(tokenizer, str(file)).endswith("mine.jinja")
    assert tokenizer.chat_template == "{{ messages }}"
    with pytest.raises(TuneforgeError, match="neither a name nor a file") as raised:
        choose_template(tokenizer, "palin")
    assert "did you mean 'plain'" in raised.value.problems[0].fix
