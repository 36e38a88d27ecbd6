"""What becomes of each column and turn key of a sample: used, listed as metadata, named in a warning, or refused."""

import json
import random
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers import make_tokenizer
from tuneforge.data.columns import assign, check_columns, drop
from tuneforge.data.formats import convert, recognise
from tuneforge.data.reading import read_examples
from tuneforge.data.renderer import Renderer
from tuneforge.data.rows import Row
from tuneforge.data.source import Source, general_examples, read
from tuneforge.errors import TuneforgeError
from tuneforge.schema.data import Data, Replay, Split

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}
SYSTEM = {"role": "system", "content": "S"}
HUMAN = {"from": "human", "value": "hi"}
GPT = {"from": "gpt", "value": "ho"}


def rows(*fields: Mapping[str, Any]) -> list[Row]:
    return [Row(one, f"r.jsonl:{number}") for number, one in enumerate(fields, 1)]


def example(fields: Mapping[str, Any], **options: Any) -> Any:
    given = rows(fields)
    (found,), _ = convert(given, recognise(given, columns=options.get("columns")), **options)
    return found


def write(path: Path, *fields: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in fields))
    return path


def source(path: Path, **options: Any) -> Source:
    split = Split(**{"eval_fraction": 0.5, **options.pop("split", {})})
    data = Data(path=str(path), split=split, **options)
    return read(data, {"_target_": "tuneforge.data.file.file", "path": str(path)}, 0)


def refused(call: Any, *arguments: Any, **options: Any) -> Any:
    with pytest.raises(TuneforgeError) as caught:
        call(*arguments, **options)
    (problem,) = caught.value.problems
    assert problem.fix
    return problem


def supervised(found: Any, train_on: str = "assistant") -> list[str]:
    """The texts of the spans that the loss is taken on."""
    documents = Renderer(TOKENIZER, train_on=train_on).render(found)
    return [document.text[a:b] for document in documents for a, b in document.spans]


def tokenizer() -> Any:
    made = make_tokenizer()
    made.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }};{% endfor %}"
    made.chat_template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    return made


TOKENIZER = tokenizer()


# System texts


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message", "system_instruction", "sys_prompt"])
@pytest.mark.parametrize(
    "fields",
    [
        {"conversations": [HUMAN, GPT]},
        {"messages": [USER, ANSWER]},
        {"messages": [SYSTEM, USER, ANSWER]},
        {"messages": [{"role": "system", "content": " "}, USER, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
        {"prompt": "hi", "completion": "ho"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"instruction": "hi", "output": "ho"},
        {"question": "hi", "answer": "ho"},
    ],
)
def test_a_system_column_is_the_system_turn(column: str, fields: dict[str, Any]) -> None:
    found = example({column: "S", **fields})
    assert list(found.messages) == [SYSTEM, USER, ANSWER]
    assert supervised(found) == ["ho;"]


def test_two_system_texts_are_refused() -> None:
    other = {"system": "T", "messages": [SYSTEM, USER, ANSWER]}
    problem = refused(example, other)
    assert "'system' is one system text, and a system turn another one" in problem.message
    assert problem.fix.endswith("data.columns.system=null")
    assert list(example(other, columns={"system": None}).messages) == [SYSTEM, USER, ANSWER]
    problem = refused(example, {"system_prompt": "T", "messages": [SYSTEM, USER, ANSWER]})
    assert problem.fix.endswith("data.columns.system_prompt=null")
    problem = refused(example, {"system": "S", "system_prompt": "T", "instruction": "hi", "output": "ho"})
    assert "'system' and 'system_prompt' hold different system texts" in problem.message
    assert "'system' is a number" in refused(example, {"system": 3, "messages": [USER, ANSWER]}).message


def test_prompts_without_a_system_text_are_turns_too_where_others_have_one() -> None:
    given = rows({"prompt": "a", "completion": "b"}, {"prompt": "hi", "completion": "ho", "system": "S"})
    plain, spoken = convert(given, recognise(given))[0]
    assert [message["role"] for message in plain.messages] == ["user", "assistant"]
    assert [message["role"] for message in spoken.messages] == ["system", "user", "assistant"]


# History


@pytest.mark.parametrize(
    "history",
    [[["x", "y"]], json.dumps([["x", "y"]]), [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]],
)
def test_history_is_the_earlier_turns(history: Any) -> None:
    found = example({"system": "S", "instruction": "hi", "output": "ho", "history": history})
    assert [message["content"] for message in found.messages] == ["S", "x", "y", "hi", "ho"]
    assert supervised(found) == ["y;", "ho;"]
    found = example({"prompt": "hi", "completion": "ho", "history": history})
    assert [message["content"] for message in found.messages] == ["x", "y", "hi", "ho"]
    assert supervised(found) == ["ho;"]


@pytest.mark.parametrize("history", [None, [], "", "[]", " "])
def test_an_empty_history_is_none(history: Any) -> None:
    assert list(example({"instruction": "hi", "output": "ho", "history": history}).messages) == [USER, ANSWER]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ("x", "'history' is text"),
        ([["x"]], "item 1 of 'history' is a list of 1, not a pair"),
        ([["x", "y", "z"]], "item 1 of 'history' is a list of 3"),
        ([["x", "y"], "z"], "item 2 of 'history' is text"),
        ([["x", None]], "the answer of item 1 of 'history' is null"),
        ([["x", ""]], "the answer of item 1 of 'history' is empty"),
        ([[1, "y"]], "the question of item 1 of 'history' is a number"),
        ({"x": "y"}, "'history' is an object"),
    ],
)
def test_a_malformed_history_is_refused_with_its_row(history: Any, reason: str) -> None:
    problem = refused(example, {"instruction": "hi", "output": "ho", "history": history})
    assert f"r.jsonl:1: {reason}" in problem.message


# Flags


SECOND = {"role": "assistant", "content": "hu"}


@pytest.mark.parametrize(
    "off",
    [{"train": False}, {"loss": False}, {"trainable": False}, {"weight": 0}, {"weight": 0.0}, {"loss_mask": 0},
     {"mask": True}, {"mask": 1, "train": False}, {"train_on": False}, {"no_loss": True}, {"masked": True},
     {"loss_weight": 0}, {"loss_scale": 0.0}],
)  # fmt: skip
@pytest.mark.parametrize("on", [{}, {"train": True}, {"loss": None}, {"weight": 1}, {"mask": False}])
def test_a_turn_that_is_marked_is_without_loss(off: dict[str, Any], on: dict[str, Any]) -> None:
    found = example({"messages": [USER, ANSWER | off, USER, SECOND | on]})
    assert supervised(found) == ["hu;"]
    assert supervised(found, "all") == ["<user>hi;", "<user>hi;<assistant>hu;"]
    found = example({"messages": [USER | off, ANSWER]})
    assert (supervised(found), supervised(found, "all")) == (["ho;"], ["<assistant>ho;"])
    found = example({"system": "S", "conversations": [HUMAN, GPT | off, HUMAN, GPT | on]})
    assert found.answers == [4]


@pytest.mark.parametrize("key", ["is_trained_on", "include_in_loss", "supervise", "loss_masking"])
@pytest.mark.parametrize("value", [False, True, 0, 0.5])
def test_a_key_that_may_be_a_flag_and_is_not_known_is_refused(key: str, value: Any) -> None:
    problem = refused(example, {"messages": [USER, ANSWER, USER, SECOND | {key: value}]})
    assert f"turn 4 of 'messages' has {key!r}, which is not known; write 'train': false" in problem.message
    assert supervised(example({"messages": [USER, ANSWER, USER, SECOND | {"train": False}]})) == ["ho;"]


def test_a_weight_of_the_loss_is_followed_at_0_and_1_and_refused_between(tmp_path: Path) -> None:
    good = [{"instruction": f"hi {i}", "output": "ho", "loss_weight": 1} for i in range(4)]
    found = source(write(tmp_path / "r.jsonl", *good, {"instruction": "no", "output": "no", "loss_weight": 0.0}))
    assert len(found.train) + len(found.eval) == 4
    assert found.unread == {}
    assert "'loss_weight' is not supported" in refused(example, good[0] | {"loss_weight": 0.5}).message
    problem = refused(example, {"messages": [USER, ANSWER | {"loss_weight": 0.5}]})
    assert "turn 2 of 'messages' has 'loss_weight', which is not supported" in problem.message


@pytest.mark.parametrize("value", ["false", "no", 0.5, 2, [], {}, -1, float("nan")])
@pytest.mark.parametrize("key", ["train", "loss", "weight", "mask"])
def test_a_flag_of_a_wrong_type_is_refused(key: str, value: Any) -> None:
    problem = refused(example, {"messages": [USER, ANSWER | {key: value}]})
    assert f"r.jsonl:1: turn 2 of 'messages': {key!r} is " in problem.message
    assert "wanted: true or false" in problem.message
    problem = refused(example, {"instruction": "hi", "output": "ho", key: value})
    assert f"r.jsonl:1: {key!r} is " in problem.message
    assert problem.fix.endswith(f"data.columns.{key}=null")
    assert example({"instruction": "hi", "output": "ho", key: value}, columns={key: None}).messages


def test_flags_that_contradict_each_other_are_refused() -> None:
    problem = refused(example, {"messages": [USER, ANSWER | {"train": True, "weight": 0}]})
    assert "turn 2 of 'messages': 'train' and 'weight' contradict each other" in problem.message


def test_a_sample_marked_as_a_whole_is_left_out_and_counted(tmp_path: Path, capsys: Any) -> None:
    good = [{"instruction": f"hi {i}", "output": "ho", "train": True} for i in range(4)]
    off = [{"instruction": "no", "output": "no", "train": False}] * 2
    found = source(write(tmp_path / "r.jsonl", *good, *off))
    assert len(found.train) + len(found.eval) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "data.path (r.jsonl:5): 2 of 6 rows are marked to be without loss and are left out" in said
    assert "every row asks to be without loss" in refused(source, write(tmp_path / "r.jsonl", *off)).message


def test_a_flag_on_a_turn_of_the_user_is_named(tmp_path: Path, capsys: Any) -> None:
    asked = {"messages": [USER | {"train": True}, ANSWER]}
    source(write(tmp_path / "r.jsonl", {"messages": [USER, SECOND]}, asked))
    said = " ".join(capsys.readouterr().out.split())
    assert "(r.jsonl:2): 1 of 2 rows ask for a loss on a turn that is not the assistant's" in said


# Prompts of turns


def test_answers_in_a_prompt_are_without_loss() -> None:
    fields = {"prompt": [USER, ANSWER, USER], "completion": [SECOND, USER, ANSWER]}
    found = example(fields)
    assert supervised(found) == ["hu;", "ho;"]
    assert len(supervised(found, "all")) == 1
    problem = refused(example, {"prompt": [USER, ANSWER], "completion": [USER]})
    assert "no assistant turn" in problem.message
    found = example({"system": "S", **fields, "completion": [SECOND | {"train": False}, USER, ANSWER]})
    assert supervised(found) == ["ho;"]


# What cannot be kept


@pytest.mark.parametrize("value", [[{"name": "f"}], '[{"name": "f"}]', {"name": "f"}])
@pytest.mark.parametrize("column", ["tools", "functions", "function_call", "images", "reasoning", "reasoning_content"])
@pytest.mark.parametrize("form", [{"messages": [USER, ANSWER]}, {"instruction": "hi", "output": "ho"}])
def test_a_column_that_would_be_lost_is_refused_by_name(column: str, value: Any, form: dict[str, Any]) -> None:
    problem = refused(example, {**form, column: value})
    assert f"r.jsonl:1: {column!r} is not supported" in problem.message
    assert problem.fix.endswith(f"data.columns.{column}=null")
    assert list(example({**form, column: value}, columns={column: None}).messages) == [USER, ANSWER]
    for blank in (None, [], "", "[]", {}):
        assert example({**form, column: blank}).messages


@pytest.mark.parametrize(
    "key", ["reasoning", "reasoning_content", "thinking", "tool_calls", "function_call", "tool_call_id", "images",
            "loss_scale", "train_detail"],
)  # fmt: skip
def test_a_key_of_a_turn_that_would_be_lost_is_refused_by_name(key: str) -> None:
    problem = refused(example, {"messages": [USER, ANSWER | {key: [{"a": 1}]}]})
    assert f"r.jsonl:1: turn 2 of 'messages' has {key!r}, which is not supported" in problem.message
    assert example({"messages": [USER, ANSWER | {key: None}]}).messages


def test_parts_that_are_no_text_are_refused_by_kind() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    problem = refused(example, {"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert "'content' of turn 1 of 'messages' has a part of type 'image_url'" in problem.message


# Columns under other names


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"instruction": "hi", "context": "you", "response": "ho", "category": "c"}, "hi\n\nyou"),
        ({"instruction": "hi", "context": "", "response": "ho"}, "hi"),
        ({"instruction": "hi", "context": "you", "output": "ho"}, "hi\n\nyou"),
        ({"question": "hi", "answer": "ho"}, "hi"),
        ({"query": "hi", "response": "ho"}, "hi"),
        ({"prompt": "hi", "response": "ho"}, "hi"),
        ({"input": "hi", "output": "ho"}, "hi"),
        ({"instruction": "hi", "input": "you", "response": "ho"}, "hi\n\nyou"),
        ({"document": "hi", "summary": "ho"}, "hi"),
        ({"problem": "hi", "solution": "ho"}, "hi"),
        ({"prompt": [USER], "response": [ANSWER]}, "hi"),
        ({"human": "hi", "gpt": "ho"}, "hi"),
        ({"inputs": "hi", "targets": "ho"}, "hi"),
        ({"input": "hi", "target": "ho"}, "hi"),
        ({"user": 7, "question": "hi", "assistant": "ho"}, "hi"),
    ],
)
def test_a_known_layout_is_read_under_its_own_names(fields: dict[str, Any], asked: str) -> None:
    user, answer = example(fields).messages
    assert (user["content"], answer["content"]) == (asked, "ho")


@pytest.mark.parametrize("columns", [{"prompt": "question"}, {"completion": "answer"}])
def test_one_assignment_decides_the_format(columns: dict[str, str]) -> None:
    found = example({"question": "hi", "answer": "ho"}, columns=columns)
    assert (found.messages, found.prompt, found.completion) == ((), "hi", "ho")


def test_a_blank_flag_says_nothing() -> None:
    assert example({"instruction": "hi", "output": "ho", "weight": "", "train": None}).answers == [1]


def test_a_plugins_format_may_read_columns_of_any_name() -> None:
    given = rows({"front": "a"})
    check_columns({"face": "front"}, given, "flashcards.cards.card")
    assert refused(check_columns, {"face": "front"}, given).code == "unknown-column"


def test_a_layout_says_what_it_takes_for_what(tmp_path: Path, capsys: Any) -> None:
    dolly = [{"instruction": f"{i}", "context": "you", "response": "ho", "category": "qa"} for i in range(4)]
    found = source(write(tmp_path / "r.jsonl", *dolly))
    said = " ".join(capsys.readouterr().out.split())
    assert "'response' as output, 'context' as input (data.columns.output=response data.columns.input=context)" in said
    assert "metadata columns of data.path, not trained on: category" in said
    assert (found.metadata, found.unread) == (("category",), {})
    problem = refused(example, {"question": "hi", "answer": 3})
    assert "'answer' is a number, not text" in problem.message


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({"text": "long", "summary": "short"}, {"instruction": "text", "output": "summary"}),
        ({"question": "a", "query": "b", "answer": "c"}, {"instruction": "question", "output": "answer"}),
        ({"question": "a", "answer": "b", "response": "c"}, {"instruction": "question", "output": "response"}),
    ],
)
def test_what_is_not_clear_is_asked_and_the_advice_works(fields: dict[str, Any], choice: dict[str, str]) -> None:
    problem = refused(example, fields)
    assert problem.path == "data.columns"
    for ours, own in choice.items():
        assert assign(own, ours) in problem.fix
    found = example(fields, columns=choice)
    assert [message["content"] for message in found.messages] == [fields[own] for own in choice.values()]
    if "text" in fields:
        assert recognise(rows(fields), "text") == "text"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"id": "x", "Frage": "hi", "Antwort": "ho"}, "auto"),
        ({"source": "hi", "target_text": "ho"}, "prompt_completion"),
        ({"url": "x", "dialog": [USER, ANSWER]}, "auto"),
        ({"dialog": [USER, ANSWER]}, "chat"),
        ({"passage": "hi", "n": 3}, "text"),
    ],
)
def test_unknown_columns_are_refused_with_an_assignment_that_works(fields: dict[str, Any], wanted: str) -> None:
    fix = refused(recognise, rows(fields), wanted).fix
    advised = dict(re.findall(r"data\.columns\.([a-z]+)=(\S+)", fix.partition("for example ")[2]))
    assert advised
    given = rows(fields)
    check_columns(advised, given)
    (found,), _ = convert(given, recognise(given, wanted, advised), columns=advised)
    assert "hi" in repr(found)
    fix = refused(recognise, rows({"a": [1], "b": 2}), wanted).fix
    assert "for example" not in fix


def test_a_context_is_never_advised_to_be_a_text() -> None:
    problem = refused(recognise, rows({"context": "a", "reply_a": "b", "replies": "c"}))
    assert "close to" not in problem.fix
    assert "data.columns.OURS=YOURS" in problem.fix


@pytest.mark.parametrize(
    ("columns", "path", "near"),
    [
        ({"instruction": "qestion"}, "data.columns.instruction", "'question'"),
        ({"instructoin": "question"}, "data.columns.instructoin", "'instruction'"),
        ({"qestion": None}, "data.columns.qestion", "'question'"),
    ],
)
def test_a_misspelt_assignment_is_refused(columns: dict[str, Any], path: str, near: str, tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", {"question": "hi", "answer": "ho"})
    problem = refused(source, file, columns=columns)
    assert (problem.code, problem.path) == ("unknown-column", path)
    assert f"did you mean {near}?" in problem.fix


@pytest.mark.parametrize("name", ["question", "my column", "a.b", "a,b", "null", 'say "x"', "3", "über"])
def test_advised_assignments_can_be_typed(name: str) -> None:
    (typed,) = shlex.split(assign(name, "output"))
    (override,) = OverridesParser.create().parse_overrides([typed])
    assert override.value() == name
    if not drop(name).startswith("remove the column"):
        (typed,) = shlex.split(drop(name))
        (override,) = OverridesParser.create().parse_overrides([typed])
        assert override.value() in (None, {name: None})
    assert drop(name).startswith("remove") == (name in ("a,b", 'say "x"', "3", "über"))


# Columns and keys that nothing reads


def test_columns_that_are_not_read_are_named_once_with_their_count(tmp_path: Path, capsys: Any) -> None:
    given = [{"id": i, "lang": "en", "score": 0.5, "n": i, "instruction": f"{i}", "output": "b"} for i in range(6)]
    given[2] |= {"rationale": "because"}
    given[4] |= {"rationale": "since", "chosen": [USER]}
    found = source(write(tmp_path / "r.jsonl", *given))
    said = " ".join(capsys.readouterr().out.split())
    assert "'rationale' (in 2 of 6 rows, first r.jsonl:3), 'chosen' (in 1 of 6 rows, first r.jsonl:5)" in said
    assert "not trained on: id, lang, score, n" in said
    assert (found.metadata, found.unread) == (("id", "lang", "score", "n"), {"rationale": 2, "chosen": 1})
    source(write(tmp_path / "r.jsonl", *given), columns={"input": "rationale", "chosen": None})
    said = " ".join(capsys.readouterr().out.split())
    assert "does not read" not in said
    assert "not trained on: chosen, id" in said


def test_turn_keys_that_are_not_read_are_named(tmp_path: Path, capsys: Any) -> None:
    given = [{"messages": [USER | {"id": 3, "mood": "sad"}, ANSWER]}, {"messages": [USER | {"name": "Al"}, SECOND]}]
    source(write(tmp_path / "r.jsonl", *given))
    said = " ".join(capsys.readouterr().out.split())
    assert "turn keys 'mood' (in 1 of 2 rows, first r.jsonl:1), 'name' (in 1 of 2 rows, first r.jsonl:2)" in said
    assert "metadata turn keys of data.path, not trained on: id" in said


@pytest.mark.parametrize("value", [False, True, 0, 3, 0.5, "x", ["x"], {"x": None}])
def test_a_value_of_any_kind_is_listed_or_named(value: Any, tmp_path: Path, capsys: Any) -> None:
    given = [{"surplus": value, "messages": [USER, answer | {"beside": value}]} for answer in (ANSWER, SECOND)]
    found = source(write(tmp_path / "r.jsonl", *given))
    said = " ".join(capsys.readouterr().out.split())
    assert ("surplus" in found.metadata) == isinstance(value, int | float)
    assert ("'surplus' (in 2 of 2 rows" in said) != ("surplus" in found.metadata)
    assert "'beside' (in 2 of 2 rows" in said


def test_numbers_that_may_change_what_is_learnt_are_no_metadata(tmp_path: Path, capsys: Any) -> None:
    columns = {"label": False, "train_mask": 1, "note": 3}
    given = [{"prompt": "a", "completion": f"{i}", **columns} for i in range(2)]
    given.append({"prompt": "a", "completion": "b", "note": "important"})
    found = source(write(tmp_path / "r.jsonl", *given))
    assert (found.metadata, found.unread) == ((), {"label": 2, "train_mask": 2, "note": 1})


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"instruction": "hi", "output": "ho", "chat_history": [["x", "y"]]}, "history"),
        ({"instruction": "hi", "output": "ho", "sys_text": "S"}, "system"),
        ({"instruction": "hi", "output": "ho", "passage": "p"}, "input"),
        ({"messages": [USER, ANSWER], "the_system": "S"}, "system"),
        ({"instruction": "hi", "input": "i", "output": "ho", "passage": "p"}, None),
        ({"instruction": "hi", "output": "ho", "candidates": ["a", "b"]}, None),
        ({"instruction": "hi", "output": "ho", "text": "hi ho"}, None),
    ],
)
def test_following_the_advice_about_an_unread_column_reads_it(fields: dict[str, Any], wanted: Any, capsys: Any) -> None:
    read_examples(rows(fields))
    advised = re.findall(r"data\.columns\.([a-z]+)=([a-z_]+)", capsys.readouterr().out)
    assert [ours for ours, own in advised if own != "null"] == ([wanted] if wanted else [])
    found = read_examples(rows(fields), columns={ours: own if own != "null" else None for ours, own in advised[:1]})
    assert found.leftover.columns == {}
    assert bool(wanted) != bool(found.leftover.metadata)


def test_json_in_a_text_is_text(tmp_path: Path, capsys: Any) -> None:
    asked = json.dumps([{"role": "user", "mood": "sad"}])
    given = [{"instruction": f"{i}", "input": asked, "output": asked} for i in range(2)]
    found = source(write(tmp_path / "r.jsonl", *given))
    assert found.train[0].messages[1]["content"] == asked
    assert "does not read" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([USER, USER, ANSWER], "two user turns in a row"),
        ([USER, ANSWER, SECOND], "two assistant turns in a row"),
        ([USER, ANSWER, USER], "a user turn last, which no answer follows"),
        ([USER, SYSTEM, ANSWER], "a system turn that is not the first"),
    ],
)
def test_an_unusual_order_of_turns_is_kept_and_said(turns: Any, said: str, tmp_path: Path, capsys: Any) -> None:
    found = source(write(tmp_path / "r.jsonl", {"messages": turns}, {"messages": [USER, SECOND]}))
    assert tuple(turns) in [example.messages for example in (*found.train, *found.eval)]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"1 with {said}" in printed
    assert "data.path (r.jsonl:1): of 2 conversations" in printed


# Anything


VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        0.5,
        float("nan"),
        "",
        " ",
        "hi",
        "[]",
        "[1]",
        '[["x", "y"]]',
        "{",
        [],
        {},
        [1],
        [[]],
        [None],
    ),
    *([["x", "y"]], [["x"]], {"a": 1}, [{}], [USER], [ANSWER], [USER, ANSWER], [HUMAN, GPT], [SYSTEM, USER, ANSWER]),
    *(
        [USER, ANSWER | {"train": 0}],
        [USER | {"from": 3}, ANSWER],
        [{"role": [], "content": {}}],
        json.dumps([USER, ANSWER]),
    ),
]
COLUMNS = [
    *(
        "messages",
        "conversations",
        "prompt",
        "completion",
        "instruction",
        "input",
        "output",
        "text",
        "system",
        "context",
    ),
    *(
        "system_prompt",
        "history",
        "tools",
        "train",
        "weight",
        "mask",
        "question",
        "answer",
        "summary",
        "id",
        "split",
        "x",
    ),
]


def test_any_row_is_read_or_refused(tmp_path: Path, capsys: Any) -> None:
    generator = random.Random(5)
    read_rows, problems = 0, []
    for _ in range(1500):
        given = [
            {name: generator.choice(VALUES) for name in generator.sample(COLUMNS, generator.randint(1, 6))}
            for _ in range(generator.randint(1, 3))
        ]
        try:
            found = read_examples(rows(*given), on_bad="skip")
        except TuneforgeError as error:
            problems += error.problems
            continue
        assert all(one.messages or one.completion or one.text for one in found.examples)
        read_rows += len(found.examples)
    assert read_rows > 40
    assert len(problems) > 400
    assert [problem for problem in problems if not problem.message or not problem.fix] == []


# Other files


def test_bad_rows_of_each_file_are_counted_under_its_own_key(tmp_path: Path, capsys: Any) -> None:
    good = [{"instruction": f"{i}", "output": "b"} for i in range(3)]
    main = write(tmp_path / "r.jsonl", *good, {"instruction": "x", "output": ""})
    held = write(tmp_path / "held.jsonl", {"instruction": "y", "output": "z"}, {"output": None}, {"output": 3})
    found = source(main, on_bad="skip", split={"eval_path": str(held)})
    said = " ".join(capsys.readouterr().out.split())
    assert "data.path (r.jsonl:4): 1 of 4 rows do not fit the format 'alpaca' and are skipped" in said
    assert "data.split.eval_path (held.jsonl:2): 2 of 3 rows do not fit the format 'alpaca' and are skipped" in said
    assert (len(found.train), len(found.eval), found.skipped) == (3, 1, 1)
    main = write(tmp_path / "r.jsonl", *good)
    problem = refused(source, main, split={"eval_path": str(held)})
    assert problem.path == "data.split.eval_path"
    assert "held.jsonl:2" in problem.message


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "hi", "output": "ho"},
    "chat": {"messages": [USER, ANSWER]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "question": {"question": "hi", "answer": "ho"},
    "dolly": {"instruction": "hi", "context": "", "response": "ho"},
    "prompt": {"prompt": "hi", "completion": "ho"},
    "turns": {"prompt": [USER], "completion": [ANSWER]},
}


@pytest.mark.parametrize("train", [name for name in CONVERSATIONS if name != "prompt"])
def test_rows_to_evaluate_may_be_conversations_in_another_format(train: str, tmp_path: Path) -> None:
    main = write(tmp_path / "r.jsonl", CONVERSATIONS[train])
    for fields in CONVERSATIONS.values():
        held = write(tmp_path / "held.jsonl", fields, fields)
        found = source(main, split={"eval_path": str(held)})
        assert [[*one.messages] for one in (*found.train, *found.eval)] == [[USER, ANSWER]] * 3
        held = write(tmp_path / "held.jsonl", {"text": "hi"})
        assert refused(source, main, split={"eval_path": str(held)}).path == "data.split.eval_path"


def test_raw_prompts_stay_raw_whatever_the_eval_file_is(tmp_path: Path) -> None:
    main = write(tmp_path / "r.jsonl", CONVERSATIONS["prompt"])
    held = write(tmp_path / "held.jsonl", CONVERSATIONS["chat"])
    assert "do not fit format 'prompt_completion'" in refused(source, main, split={"eval_path": str(held)}).message
    held = write(tmp_path / "held.jsonl", CONVERSATIONS["question"])
    assert source(main, split={"eval_path": str(held)}).train[0].completion == "ho"


def test_columns_of_the_eval_file_alone_can_be_assigned_as_advised(tmp_path: Path, capsys: Any) -> None:
    main = write(tmp_path / "r.jsonl", {"instruction": "hi", "output": "ho"})
    held = write(tmp_path / "held.jsonl", {"front": "hi", "back": "hu", "mood": ["sad"]})
    fix = refused(source, main, split={"eval_path": str(held)}).fix
    advised = dict(re.findall(r"data\.columns\.([a-z]+)=(\S+)", fix.partition("for example ")[2]))
    found = source(main, split={"eval_path": str(held)}, columns=advised)
    assert [one.messages[1]["content"] for one in (*found.train, *found.eval)] == ["ho", "hu"]
    assert "data.columns.mood=null" in capsys.readouterr().out
    source(main, split={"eval_path": str(held)}, columns=advised | {"mood": None})
    assert "warning" not in capsys.readouterr().out
    problem = refused(source, main, split={"eval_path": str(held)}, columns=advised | {"mode": None})
    assert problem.path == "data.columns.mode"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{", "broken line"), ('{"text": "a"}', "do not fit"), ("", "empty")],
)
def test_errors_name_the_key_of_the_file(content: str | None, message: str, tmp_path: Path) -> None:
    main = write(tmp_path / "r.jsonl", *[{"instruction": f"{i}", "output": "b"} for i in range(3)])
    held = tmp_path / "held.jsonl"
    if content is not None:
        held.write_text(content)
    problem = refused(source, main, split={"eval_path": str(held)})
    assert problem.path == "data.split.eval_path"
    assert message in problem.message
    if content != '{"text": "a"}':
        replay = Replay(fraction=0.5, path=str(held))
        assert refused(source, main, replay=replay).path == "data.replay.path"


def test_skipped_rows_of_replay_are_counted(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path / "general.jsonl", {"text": "a"}, {"text": ""}, {"text": "b"})
    assert len(general_examples(str(file), 9, 0, "data.replay.path")) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "data.replay.path (general.jsonl:2): 1 of 3 rows do not fit the format 'text' and are skipped" in said
