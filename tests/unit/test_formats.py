"""Formats: which one the columns say, what each row becomes, what a bad row is told, and the shuffled control."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tuneforge.data.formats import FORMATS, Example, Message, convert, recognise
from tuneforge.data.rows import Row
from tuneforge.data.shuffle import shuffle_answers
from tuneforge.errors import TuneforgeError

USER: Message = {"role": "user", "content": "hi"}
ANSWER: Message = {"role": "assistant", "content": "ho"}
HUMAN = {"from": "human", "value": "hi"}
GPT = {"from": "gpt", "value": "ho"}
CHAT = (USER, ANSWER)


def rows(*fields: Mapping[str, Any]) -> list[Row]:
    return [Row(one, f"r.jsonl:{number}") for number, one in enumerate(fields, 1)]


def refused(call: Any, *arguments: Any) -> tuple[str, str, str]:
    """(path, message, fix) of the one problem."""
    with pytest.raises(TuneforgeError) as caught:
        call(*arguments)
    (problem,) = caught.value.problems
    assert problem.fix
    return problem.path, problem.message, problem.fix


# One good row for each way of writing each format: (format, fields, what it becomes)

GOOD: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "alpaca": ("alpaca", {"instruction": "hi", "output": "ho"}, {"messages": CHAT}),
    "alpaca, input": (
        "alpaca",
        {"instruction": "hi", "input": "you", "output": "ho"},
        {"messages": ({"role": "user", "content": "hi\n\nyou"}, ANSWER)},
    ),
    "alpaca, input only": ("alpaca", {"instruction": "", "input": "hi", "output": "ho"}, {"messages": CHAT}),
    "alpaca, null input and blank system": (
        "alpaca",
        {"instruction": "hi", "input": None, "system": " ", "output": "ho"},
        {"messages": CHAT},
    ),
    "alpaca, system": (
        "alpaca",
        {"system": "be brief", "instruction": "hi", "input": "", "output": "ho"},
        {"messages": ({"role": "system", "content": "be brief"}, *CHAT)},
    ),
    "alpaca, rendered text": ("alpaca", {"instruction": "hi", "output": "ho", "text": "x"}, {"messages": CHAT}),
    "chat": ("chat", {"messages": list(CHAT)}, {"messages": CHAT}),
    "chat, all roles": (
        "chat",
        {"messages": [{"role": "system", "content": ""}, USER, {"role": "tool", "content": "3"}, ANSWER, USER]},
        {"messages": ({"role": "system", "content": ""}, USER, {"role": "tool", "content": "3"}, ANSWER, USER)},
    ),
    "chat, assistant first": ("chat", {"messages": [ANSWER]}, {"messages": (ANSWER,)}),
    "chat, extra keys": (
        "chat",
        {"id": 3, "tools": None, "messages": [USER | {"name": "x", "weight": 1}, ANSWER | {"tool_calls": None}]},
        {"messages": CHAT},
    ),
    "ShareGPT": ("chat", {"conversations": [HUMAN, GPT]}, {"messages": CHAT}),
    "ShareGPT, plain roles": (
        "chat",
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "user", "value": "hi"},
                {"from": "assistant", "value": "ho"},
            ],
        },
        {"messages": ({"role": "system", "content": "s"}, *CHAT)},
    ),
    "conversations with roles": ("chat", {"conversations": list(CHAT), "messages": None}, {"messages": CHAT}),
    "prompt and completion": (
        "prompt_completion",
        {"prompt": "", "completion": " ho"},
        {"prompt": "", "completion": " ho"},
    ),
    "prompt and completion, turns": (
        "prompt_completion",
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": CHAT},
    ),
    "text": ("text", {"text": " hi\n"}, {"text": " hi\n"}),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_row_is_recognised_and_becomes_its_example(case: str) -> None:
    name, fields, expected = GOOD[case]
    assert recognise(rows(fields)) == name
    assert recognise(rows(fields), name) == name
    assert convert(rows(fields), name) == ([Example(origin="r.jsonl:1", **expected)], [])


def test_every_format_has_a_good_row() -> None:
    assert FORMATS == ("alpaca", "chat", "prompt_completion", "text", "classification")
    assert {name for name, _, _ in GOOD.values()} == set(FORMATS) - {"classification"}


@pytest.mark.parametrize(
    ("fields", "labels", "several"),
    [
        ({"text": "a", "label": " good "}, ("good",), False),
        ({"text": "a", "label": 1}, ("1",), False),
        ({"text": "a", "label": True}, ("true",), False),
        ({"text": "a", "labels": ["y", "x", "y"]}, ("x", "y"), True),
        ({"text": "a", "labels": []}, (), True),
    ],
)
def test_labels_are_read_by_name_and_never_recognised(fields: Any, labels: Any, several: bool) -> None:
    (example,), _ = convert(rows(fields), recognise(rows(fields), "classification"))
    assert (example.labels, example.multi_label) == (labels, several)
    assert recognise(rows(fields)) == "text"


def test_a_control_deals_labels_to_other_texts() -> None:
    examples, _ = convert(rows(*({"text": str(i), "label": str(i)} for i in range(9))), "classification")
    dealt = shuffle_answers(examples, 3)
    assert sorted(e.labels for e in dealt) == sorted(e.labels for e in examples)
    assert all(a.labels != b.labels for a, b in zip(dealt, examples, strict=True))


def test_an_example_keeps_origin_group_and_held_out() -> None:
    examples, _ = convert([Row({"text": "x"}, "o", "g", True), Row({"text": "y"}, "p", "", False)], "text")
    assert examples == [
        Example(text="x", origin="o", group="g", held_out=True),
        Example(text="y", origin="p", held_out=False),
    ]


# Recognition

OTHER_NAMES = "  columns under other names: data.columns.OURS=YOURS"


def test_columns_that_fit_nothing_are_listed_with_the_near_misses() -> None:
    path, message, fix = refused(recognise, rows({"instructions": "a", "OUTPUT": "b", "id": 1}))
    assert path == "data.format"
    assert message == (
        "the columns do not fit any known format; found: 'instructions', 'OUTPUT', 'id' (first row: r.jsonl:1)"
    )
    assert fix.splitlines() == [
        "column 'OUTPUT' is close to 'output': rename it, or data.columns.output=OUTPUT",
        "  column 'instructions' is close to 'instruction': rename it, or data.columns.instruction=instructions",
        "  columns wanted:",
        "    alpaca: instruction + output, optional input, system, history",
        "    chat: messages or conversations, optional system",
        "    prompt_completion: prompt + completion, optional system, history",
        "    text: text",
        f"{OTHER_NAMES}, for example data.columns.instruction=instructions data.columns.output=OUTPUT",
    ]


def test_a_wanted_format_that_does_not_fit_lists_its_own_columns_only() -> None:
    path, message, fix = refused(recognise, rows({"text": "a"}), "chat")
    assert path == "data.format"
    assert message == "the columns do not fit format 'chat'; found: 'text' (first row: r.jsonl:1)"
    assert fix.splitlines() == ["columns wanted:", "    chat: messages or conversations, optional system", OTHER_NAMES]


def test_an_unknown_format_is_refused_with_the_near_name() -> None:
    path, message, fix = refused(recognise, rows({"text": "a"}), "aplaca")
    assert (path, message) == ("data.format", "unknown format 'aplaca'")
    assert fix == "did you mean 'alpaca'? known here: alpaca, auto, chat, classification, prompt_completion, text"


def test_columns_that_fit_two_formats_need_a_choice() -> None:
    both = rows({"prompt": "a", "completion": "b", "messages": list(CHAT)})
    path, message, fix = refused(recognise, both)
    assert path == "data.format"
    assert message == "the columns fit more than one format: chat, prompt_completion (first row: r.jsonl:1)"
    assert fix == "choose one: data.format=chat"
    assert recognise(both, "prompt_completion") == "prompt_completion"
    assert recognise(rows({"text": "x", "messages": list(CHAT)}), "text") == "text"


def test_rows_of_different_formats_are_named() -> None:
    mixed = rows({"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b"}, {"messages": list(CHAT)})
    path, message, _ = refused(recognise, mixed)
    assert path == "data.format"
    assert message == "the rows are of different formats: r.jsonl:1 is alpaca, r.jsonl:3 is chat"


def test_columns_are_the_union_of_the_first_hundred_rows() -> None:
    assert recognise(rows({"instruction": "a"}, {"instruction": "a", "output": "b"})) == "alpaca"
    late = rows(*[{"text": "a"}] * 100, {"instruction": "a", "output": "b"})
    assert recognise(late) == "text"
    assert recognise(late[1:]) == "alpaca"


@pytest.mark.parametrize("column", ["Input", "inputs", " input", "Systems"])
def test_a_misspelt_optional_column_is_not_dropped_in_silence(column: str) -> None:
    path, message, _ = refused(recognise, rows({"instruction": "a", "output": "b", column: "c"}))
    assert path == "data.format"
    assert message.startswith(
        f"column {column!r} is close to {column.strip().lower().rstrip('s')!r}, which alpaca reads"
    )


def test_no_rows_is_refused() -> None:
    assert refused(recognise, [])[:2] == ("data.path", "the data has no rows")
    assert refused(convert, [], "text")[:2] == ("data.path", "the data has no rows")


# Bad rows: (format, fields, reason)

BAD: dict[str, tuple[str, Any, str]] = {
    "missing": ("alpaca", {"instruction": "a"}, "no column 'output' (it has: 'instruction')"),
    "no columns": ("text", {}, "no column 'text' (it has: none)"),
    "null": ("alpaca", {"instruction": "a", "output": None}, "'output' is null"),
    "number": ("alpaca", {"instruction": "a", "output": 3}, "'output' is a number, not text"),
    "NaN": ("alpaca", {"instruction": float("nan"), "output": "b"}, "'instruction' is a number, not text"),
    "true": ("alpaca", {"instruction": "a", "output": True}, "'output' is true or false, not text"),
    "bytes": ("text", {"text": b"a"}, "'text' is a bytes, not text"),
    "optional number": ("alpaca", {"instruction": "a", "input": 3, "output": "b"}, "'input' is a number, not text"),
    "empty output": ("alpaca", {"instruction": "a", "output": " \n"}, "'output' is empty"),
    "empty instruction": ("alpaca", {"instruction": " ", "input": "", "output": "b"}, "'instruction' is empty"),
    "empty completion": ("prompt_completion", {"prompt": "a", "completion": ""}, "'completion' is empty"),
    "empty text": ("text", {"text": ""}, "'text' is empty"),
    "half a character": ("text", {"text": "ab\ud83d"}, "'text' holds half a character, '\\ud83d', at 2"),
    "null turns": ("chat", {"messages": None}, "'messages' is null"),
    "no turns column": ("chat", {"text": "a"}, "no column 'messages' (it has: 'text')"),
    "text for turns": ("chat", {"conversations": "hi"}, "'conversations' is text, not a list of turns"),
    "text for messages": ("chat", {"messages": "hi"}, "'messages' is text, not a list of turns"),
    "no turns": ("chat", {"messages": []}, "the conversation has no turns"),
    "no assistant": ("chat", {"messages": [USER]}, "the conversation has no assistant turn, so nothing to learn"),
    "turn is text": ("chat", {"messages": ["hi"]}, "turn 1 of 'messages' is text, not an object with role and content"),
    "no role": ("chat", {"messages": [{"content": "a"}]}, "turn 1 of 'messages' has no 'role' (it has: 'content')"),
    "no content": ("chat", {"messages": [USER, {"role": "user", "text": "a"}]},
                   "turn 2 of 'messages' has no 'content' (it has: 'role', 'text')"),
    "unknown role": ("chat", {"messages": [{"role": "bot", "content": "a"}]},
                     "turn 1 of 'messages' has the unknown role 'bot' (known: system, user, assistant, tool)"),
    "null role": ("chat", {"messages": [{"role": None, "content": "a"}]},
                  "turn 1 of 'messages' has the unknown role 'None' (known: system, user, assistant, tool)"),
    "unknown speaker": ("chat", {"conversations": [{"from": "bing", "value": "a"}]},
                        "turn 1 of 'conversations' has the unknown role 'bing' "
                        "(known: human, gpt, system, user, assistant)"),
    "null content": ("chat", {"messages": [USER, {"role": "assistant", "content": None}]},
                     "'content' of turn 2 of 'messages' is null"),
    "parts": ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER]},
              "'content' of turn 1 of 'messages' is a list, not text"),
    "empty assistant": ("chat", {"conversations": [HUMAN, {"from": "gpt", "value": ""}]},
                        "'value' of turn 2 of 'conversations' is empty"),
    "tool calls": ("chat", {"messages": [USER, ANSWER | {"tool_calls": [{"id": 1}]}]},
                   "turn 2 of 'messages' has 'tool_calls', which is not supported and would be lost"),
    "weight": ("chat", {"messages": [USER, ANSWER | {"weight": 0}]},
               "every assistant turn is marked to be without loss, so there is nothing to learn"),
    "tools": ("chat", {"messages": list(CHAT), "tools": [{}]},
              "'tools' is not supported: the tools would be missing from the prompt"),
    "turns and text": ("prompt_completion", {"prompt": [USER], "completion": "ho"},
                       "'completion' is text, not a list of turns"),
    "completion without an answer": ("prompt_completion", {"prompt": list(CHAT), "completion": [USER]},
                                     "the conversation has no assistant turn, so nothing to learn"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_its_reason(case: str) -> None:
    name, fields, reason = BAD[case]
    good = next(one for form, one, _ in GOOD.values() if form == name)
    path, message, fix = refused(convert, rows(good, fields), name)
    assert path == "data.path"
    assert message == f"1 of 2 rows cannot be used as {name!r}:\n  r.jsonl:2: {reason}"
    column = "; to leave a column unread: data.columns.tools=null" if case == "tools" else ""
    assert fix == "correct these rows, or leave them out: data.on_bad=skip" + column


def test_many_bad_rows_are_one_error_with_five_of_them() -> None:
    _, message, _ = refused(convert, rows({"text": "x"}, *[{"text": None}] * 7), "text")
    assert message.splitlines() == [
        "7 of 8 rows cannot be used as 'text':",
        *(f"  r.jsonl:{number}: 'text' is null" for number in range(2, 7)),
        "  and 2 more",
    ]


def test_bad_rows_can_be_skipped_and_are_returned() -> None:
    examples, skipped = convert(rows({"text": ""}, {"text": "x"}, {}), "text", on_bad="skip")
    assert examples == [Example(text="x", origin="r.jsonl:2")]
    assert [(one.path, one.origin, one.message) for one in skipped] == [
        ("data.path", "r.jsonl:1", "'text' is empty"),
        ("data.path", "r.jsonl:3", "no column 'text' (it has: none)"),
    ]


def test_skipping_every_row_is_an_error() -> None:
    path, message, fix = refused(convert, rows({"text": ""}, {}), "text", "skip")
    assert path == "data.path"
    assert message.startswith("2 of 2 rows cannot be used as 'text':")
    assert fix == "correct these rows"


# The shuffled control


def examples(count: int) -> list[Example]:
    chat = [
        Example(messages=(USER, {"role": "assistant", "content": f"first {i}"}, USER,
                          {"role": "assistant", "content": f"answer {i}"}, USER), origin=str(i))
        for i in range(count)
    ]  # fmt: skip
    return [*chat[: count // 2], *(Example(prompt=f"p{i}", completion=f"c{i}") for i in range(count - count // 2))]


def last_answer(example: Example) -> str:
    return example.messages[3]["content"] if example.messages else example.completion


@pytest.mark.parametrize("count", [2, 3, 10, 101])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_example_keeps_its_own_answer_and_none_is_lost(count: int, seed: int) -> None:
    before = examples(count)
    after = shuffle_answers(before, seed)
    assert all(last_answer(old) != last_answer(new) for old, new in zip(before, after, strict=True))
    assert Counter(map(last_answer, after)) == Counter(map(last_answer, before))


def test_only_the_last_answer_moves() -> None:
    for old, new in zip(examples(10), shuffle_answers(examples(10), 0), strict=True):
        assert (old.prompt, old.origin, old.messages[:3], old.messages[4:]) == (
            new.prompt,
            new.origin,
            new.messages[:3],
            new.messages[4:],
        )


def test_the_shuffle_is_its_seeds() -> None:
    before = examples(20)
    assert shuffle_answers(before, 7) == shuffle_answers(before, 7)
    assert shuffle_answers(before, 7) != shuffle_answers(before, 8)
    assert before == examples(20)


def test_what_cannot_be_shuffled_is_refused() -> None:
    assert refused(shuffle_answers, examples(2)[:1], 0)[1] == "answers can be shuffled among 2 examples or more"
    path, message, _ = refused(shuffle_answers, [Example(text="x", origin="r.txt:1")] * 2, 0)
    assert (path, message) == ("data.format", "r.txt:1 has no answer to shuffle")
