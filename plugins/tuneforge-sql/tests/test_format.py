"""Rows to conversations, what is wrong with a row in words, and the template they are written in."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tuneforge.data.formats import RowError
from tuneforge_sql.format import schema_and_sql, text_to_sql

TEMPLATE = Path(__file__).parents[1] / "src" / "tuneforge_sql" / "template.jinja"
ROW = {"schema": "CREATE TABLE t (a INTEGER);\n\nCREATE TABLE u (b TEXT);", "question": "How many?", "sql": "SELECT 1"}


def test_a_row_becomes_a_question_and_its_answer():
    example = text_to_sql({**ROW, "question": "How\n\nmany? ", "more": 1})
    assert [m["role"] for m in example.messages] == ["user", "assistant"]
    assert example.messages[0]["content"] == ROW["schema"] + "\n\nHow many?"
    assert example.messages[1]["content"] == "SELECT 1"
    assert schema_and_sql(example) == (ROW["schema"], ROW["sql"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sql": " \n"}, "'sql' is empty"),
        ({"question": None}, "'question' is null, not text"),
        ({"sql": ["SELECT 1"]}, "'sql' is a list, not text"),
        ({"schema": "t(a, b)"}, r"'schema' has no CREATE TABLE: 't\(a, b\)'"),
    ],
)
def test_a_row_that_does_not_fit_says_why(change, says):
    with pytest.raises(RowError, match=says):
        text_to_sql({**ROW, **change})


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(RowError, match=r"no column 'schema' \(it has: 'query'\)"):
        text_to_sql({"query": "SELECT 1"})


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_the_template_needs_no_token_but_eos(bos):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>", bos_token=bos)
    tokenizer.chat_template = TEMPLATE.read_text()
    messages = [{"role": "system", "content": "Be brief."}, *text_to_sql(ROW).messages]
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert prompt == f"{bos or ''}### System\nBe brief.\n\n### User\n{ROW['schema']}\n\nHow many?\n\n### SQL\n"
    assert whole == prompt + "SELECT 1</s>\n\n"
