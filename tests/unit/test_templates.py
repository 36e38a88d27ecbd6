"""Chat templates of many kinds: what is supervised, what is refused, and what rendering costs."""

import datetime
import random

import pytest

from chats import (
    HEADERS,
    OPTIONS,
    ORDINARY,
    SYSTEM_IN_LAST_QUESTION,
    SYSTEM_IN_LAST_TURN,
    THINKS_IN_LAST,
    THINKS_OPENED,
    THINKS_UNOPENED,
    chat,
    taught,
    tokenizer_with,
)
from tuneforge.data import chat_spans, rendering
from tuneforge.data.encode import encode
from tuneforge.data.formats import Example
from tuneforge.data.template import CHATML, PLAIN, choose_template
from tuneforge.errors import TuneforgeError


def long_chat(turns: int, seed: int = 0, spaced: bool = True) -> Example:
    rng = random.Random(seed)
    words = ["fox", "dog", "  lazy", "over\n", "question", "the", ":", "assistant", "\n\n", "answer ", "42"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 9))) + "." for _ in range(turns)]
    if not spaced:
        return chat(*texts)
    texts = [(" " * rng.randint(0, 2)) + t + ("\n" * rng.randint(0, 2)) for t in texts]
    return chat(*texts)


@pytest.mark.parametrize("name", ORDINARY)
def test_long_conversations_have_the_mask_that_rendering_each_turn_gives(name, monkeypatch):
    tokenizer = tokenizer_with(ORDINARY[name][0])
    for seed in range(8):
        example = long_chat(24, seed)
        fast = encode([example], tokenizer, **OPTIONS).documents
        monkeypatch.setattr(chat_spans, "ALL_BELOW", 10**6)
        exact = encode([example], tokenizer, **OPTIONS).documents
        monkeypatch.undo()
        assert [list(d.input_ids) for d in fast] == [list(d.input_ids) for d in exact]
        assert [list(d.labels) for d in fast] == [list(d.labels) for d in exact]


@pytest.mark.parametrize("name", ORDINARY)
def test_each_answer_is_taught_once_with_its_end(name):
    template, end = ORDINARY[name]
    tokenizer = tokenizer_with(template)
    answers = [f"answer {i} of the fox" for i in range(12)]
    turns = [text for answer in answers for text in ("the question", answer)]
    documents = encode([chat(*turns)], tokenizer, **OPTIONS).documents
    last = "\n</s>" if name == "eos at the end" else ""
    wanted = [answer + end for answer in answers]
    assert [t.strip() for t in taught(documents, tokenizer)] == [*wanted[:-1], wanted[-1] + last]
    assert len(documents) == 1


@pytest.mark.parametrize("name", ORDINARY)
def test_rendering_a_long_conversation_is_linear(name, monkeypatch):
    tokenizer = tokenizer_with(ORDINARY[name][0])
    apply, rendered = rendering.apply_template, []

    def counting(tokenizer, messages, *args, **kwargs):
        rendered.append(len(messages))
        return apply(tokenizer, messages, *args, **kwargs)

    monkeypatch.setattr(chat_spans, "apply_template", counting)
    # Where nothing but a line break precedes answers, line breaks at the end of questions need each turn rendered.
    encode([long_chat(200, 1, spaced=name != "no generation prompt")], tokenizer, **OPTIONS)
    assert sum(rendered) < 8 * 200


@pytest.mark.parametrize("template", [SYSTEM_IN_LAST_TURN, SYSTEM_IN_LAST_QUESTION])
@pytest.mark.parametrize("turns", [("a?", "one"), ("a?", "one", "b?", "two")])
def test_a_system_prompt_that_moves_is_in_the_document_of_each_answer(template, turns):
    tokenizer = tokenizer_with(template)
    documents = encode([chat(*turns, system="Be brief")], tokenizer, **OPTIONS).documents
    assert [t.strip() for t in taught(documents, tokenizer)] == [f"{answer}</s>" for answer in turns[1::2]]
    for document, asked in zip(documents, turns[::2], strict=True):
        text = tokenizer.decode(document.input_ids)
        assert text.count("Be brief") == 1
        assert f"[INST] Be brief\n\n{asked}[/INST] " in text


@pytest.mark.parametrize("template", [THINKS_OPENED, THINKS_UNOPENED, THINKS_IN_LAST])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_reasoning_of_each_answer_is_taught_and_that_of_earlier_ones_not_shown(template, rounds):
    tokenizer = tokenizer_with(template)
    thoughts = [f"<think>\nthought {i}\n</think>\n\nanswer {i}" for i in range(rounds)]
    turns = [text for i, thought in enumerate(thoughts) for text in (f"question {i}", thought)]
    documents = encode([chat(*turns, system="Be brief")], tokenizer, **OPTIONS).documents
    assert len(documents) == rounds
    found = taught(documents, tokenizer)
    for i, (document, text) in enumerate(zip(documents, found, strict=True)):
        whole = tokenizer.decode(document.input_ids).rstrip()
        end = "<|im_end|>" if template == THINKS_IN_LAST else "</s>"
        opened = template == THINKS_OPENED
        assert text == thoughts[i].removeprefix("<think>\n" if opened else "") + end
        assert whole.endswith(thoughts[i] + end)
        assert whole.count("thought") == 1
        assert "Be brief" in whole
        assert all(f"answer {k}" in whole for k in range(i))


def test_an_answer_without_the_reasoning_that_its_prompt_opens_is_refused_or_skipped(capsys):
    tokenizer = tokenizer_with(THINKS_OPENED)
    bare, whole = chat("a?", "one", origin="t:1"), chat("b?", "<think>\nt\n</think>\ntwo", origin="t:2")
    with pytest.raises(TuneforgeError, match=r"t:1 after its own generation prompt") as raised:
        encode([bare, whole], tokenizer, **OPTIONS)
    assert "train_on" not in str(raised.value.problems[0])
    documents = encode([bare, whole], tokenizer, **OPTIONS, on_bad="skip").documents
    assert [d.origin for d in documents] == ["t:2"]
    assert "1 of 2 rows were skipped" in capsys.readouterr().out
    assert choose_template(tokenizer, "plain")  # the advice
    assert len(encode([bare, whole], tokenizer, **OPTIONS).documents) == 2


@pytest.mark.parametrize("train_on", ["assistant", "all"])
@pytest.mark.parametrize(
    ("turn", "prompt"),
    [("<start>{}\n{}<end>\n", "<start>assistant\n"), ("{}: {}\n", "assistant:"), ("<{}>{}", "<assistant>")],
)
def test_a_template_that_always_asks_for_an_answer_is_refused_and_the_advice_works(turn, prompt, train_on, tmp_path):
    turns = "{% for m in messages %}" + turn.replace("{}", "{{ m['role'] }}", 1).replace("{}", "{{ m['content'] }}")
    tokenizer = tokenizer_with(turns + "{% endfor %}" + prompt)
    options = {**OPTIONS, "train_on": train_on}
    with pytest.raises(TuneforgeError, match="also where it is not told to") as raised:
        encode([chat("a?", "one", "b?", "two")], tokenizer, **options)
    assert raised.value.problems[0].code == "template-always-prompts"
    file = tmp_path / "mine.jinja"
    file.write_text(turns + "{% endfor %}{% if add_generation_prompt %}" + prompt + "{% endif %}")
    choose_template(tokenizer, str(file))
    (document,) = encode([chat("a?", "one", "b?", "two")], tokenizer, **options).documents
    assert prompt.strip() not in tokenizer.decode(document.input_ids)[-len(prompt) - 2 :]
    tokenizer.chat_template = turns + "{% endfor %}" + prompt
    assert encode([Example(prompt="a?", completion="one", origin="t:1")], tokenizer, **options).documents  # not used


def test_a_rewriting_template_makes_a_bounded_number_of_documents_and_says_so(capsys):
    tokenizer = tokenizer_with(THINKS_IN_LAST)
    turns = [f"turn {i}" for i in range(200)]
    documents = encode([chat(*turns)], tokenizer, **OPTIONS).documents
    assert len(documents) == 16
    out = capsys.readouterr().out
    assert "1 conversations became 16 documents with" in out
    assert "84 answers beyond data.max_turn_documents=16 are not learnt from" in out
    more = encode([chat(*turns)], tokenizer, **OPTIONS, max_turn_documents=100).documents
    assert len(more) == 100
    assert "not learnt from" not in capsys.readouterr().out


def test_a_template_that_writes_the_date_writes_that_of_the_run(monkeypatch):
    monkeypatch.setattr(rendering, "_day", rendering._day)
    tokenizer = tokenizer_with("{{ strftime_now('%d %b %Y') }} " + CHATML)
    rendering.set_day(datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC))
    (document,) = encode([chat("a?", "one")], tokenizer, **OPTIONS).documents
    assert tokenizer.decode(document.input_ids).startswith("<s>02 Jan 2025 <|im_start|>")
    assert f"{rendering.written_day(tokenizer):%Y}" == "2025"
    assert rendering.written_day(tokenizer_with(CHATML)) is None


def test_text_that_the_template_leaves_out_is_named(capsys):
    tokenizer = tokenizer_with(SYSTEM_IN_LAST_TURN)
    encode([chat("a?", "one", system="Be brief")], tokenizer, **{**OPTIONS, "train_on": "all"})
    assert "leaves out text of 1 of 1 rows (a system turn of t:1 first)" in capsys.readouterr().out
    tokenizer.chat_template = PLAIN
    encode([chat("a?", "one", system="Be brief")], tokenizer, **OPTIONS)
    assert "leaves out" not in capsys.readouterr().out


@pytest.mark.parametrize("template", [PLAIN, CHATML, HEADERS, THINKS_IN_LAST])
def test_a_conversation_may_begin_with_an_answer(template):
    tokenizer = tokenizer_with(template)
    greeting = Example(
        messages=(
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "bye"},
        ),
        origin="t:1",
    )
    found = taught(encode([greeting], tokenizer, **OPTIONS).documents, tokenizer)
    assert ["hello" in found[0], "bye" in found[1]] == [True, True]


FAILING = {
    "1/0": "{{ 1/0 }}",
    "no such attribute": "{{ messages[0].content.nothing.at_all }}",
    "index": "{{ messages[7]['content'] }}",
    "type": "{{ 'a' + 1 }}",
    "raise": "{{ raise_exception('no') }}",
    "unknown filter value": "{{ messages | map('nothing') | list }}",
}


@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_names_the_row(name):
    tokenizer = tokenizer_with(FAILING[name])
    with pytest.raises(TuneforgeError, match="t:1") as raised:
        encode([chat("a?", "one")], tokenizer, **OPTIONS)
    assert raised.value.problems[0].code == "template-refuses-row"


def test_a_template_that_refuses_some_rows_skips_and_counts_them(capsys):
    tokenizer = tokenizer_with(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    rows = [chat("a?", "one", origin="t:1"), *(chat("b?", "two", system="S", origin=f"t:{i}") for i in (2, 3))]
    with pytest.raises(TuneforgeError, match=r"(?s)refuses t:2 .*no system.*2 of 3 rows are refused.*t:3"):
        encode(rows, tokenizer, **OPTIONS)
    assert len(encode(rows, tokenizer, **OPTIONS, on_bad="skip").documents) == 1
    assert "2 of 3 rows were skipped; the first: the chat template refuses t:2" in capsys.readouterr().out
    with pytest.raises(TuneforgeError, match="refuses t:2"):
        encode(rows[1:], tokenizer, **OPTIONS, on_bad="skip")


def test_a_template_with_a_syntax_error_is_told_by_its_line(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}\n{{ m['content'] }\n{% endfor %}")
    with pytest.raises(TuneforgeError, match=r"mine.jinja: line 2: ") as raised:
        choose_template(tokenizer_with(PLAIN), str(file))
    assert raised.value.problems[0].code == "broken-template"
    file.write_bytes(b"\xff\xfe\x00{{")
    with pytest.raises(TuneforgeError, match="cannot be read as UTF-8"):
        choose_template(tokenizer_with(PLAIN), str(file))


def test_several_templates_need_a_default_or_a_choice():
    tokenizer = tokenizer_with({"tool_use": CHATML, "rag": PLAIN})
    with pytest.raises(TuneforgeError, match="'tool_use', 'rag' and none named 'default'") as raised:
        choose_template(tokenizer, "auto")
    assert "model.chat_template=tool_use" in raised.value.problems[0].fix
    assert "tool_use" in choose_template(tokenizer, "tool_use")  # the advice
    assert taught(encode([chat("a?", "one")], tokenizer, **OPTIONS).documents, tokenizer) == ["one<|im_end|>"]


ODD = {
    "two answers in a row": (("user", "q"), ("assistant", "a1"), ("assistant", "a2")),
    "no last answer": (("user", "q"), ("assistant", "a1"), ("user", "q2")),
    "a tool": (("user", "q"), ("assistant", "call"), ("tool", "result"), ("assistant", "final")),
    "no reasoning": (("user", "q"), ("assistant", "<think>\n\n</think>\n\nfinal")),
    "text before reasoning": (("user", "q"), ("assistant", "hm <think>x</think>final")),
    "an echo": (("user", "same"), ("assistant", "same"), ("user", "same"), ("assistant", "same")),
    "whitespace": (("user", " q \n"), ("assistant", "\n  code:\n    x\n"), ("user", "q2 "), ("assistant", " b ")),
    "private characters": (("user", "q \U000f5a10"), ("assistant", "a\U000f5a11b")),
    "the placeholder": (("user", "Zqxj"), ("assistant", "Zqxj Zqxj")),
}
REWRITING = (SYSTEM_IN_LAST_TURN, THINKS_OPENED, THINKS_UNOPENED, THINKS_IN_LAST)


@pytest.mark.parametrize("name", ODD)
def test_odd_conversations_are_taught_whole_or_refused_by_row(name):
    messages = tuple({"role": role, "content": content} for role, content in ODD[name])
    for template in (*(template for template, _ in ORDINARY.values()), *REWRITING):
        tokenizer = tokenizer_with(template)
        documents, refusals = [], []
        try:
            documents = encode([Example(messages=messages, origin="t:1")], tokenizer, **OPTIONS).documents
        except TuneforgeError as error:
            refusals = [problem.code for problem in error.problems]
        if refusals:
            assert template in REWRITING
            assert set(refusals) <= set(rendering.ROW_CODES)
            continue
        found = "".join("".join(text.split()) for text in taught(documents, tokenizer))
        for role, content in ODD[name]:
            rest = content.removeprefix("<think>\n") if template == THINKS_OPENED else content
            assert ("".join(rest.split()) in found) or role != "assistant"
