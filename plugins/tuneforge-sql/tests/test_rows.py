"""The made-up questions: the same every time, valid SQL all, and no database on both sides."""

import dataclasses
import hashlib
import json

from tuneforge_sql.execution import can_judge
from tuneforge_sql.rows import KINDS, sql_questions
from tuneforge_sql.schemas import SCHEMAS


def as_text(rows):
    return json.dumps([dataclasses.astuple(row) for row in rows])


def test_the_rows_hang_on_the_options_alone():
    assert as_text(sql_questions(count=20)) == as_text(sql_questions(count=20))
    assert as_text(sql_questions(count=20, seed=1)) != as_text(sql_questions(count=20))
    # Pinned: another Python or machine must not make others, or runs could not be compared.
    digest = hashlib.sha256(as_text(sql_questions()).encode()).hexdigest()
    assert digest.startswith("b45c63369d51c602")


def test_every_statement_runs_and_finds_something():
    rows = sql_questions(count=10_000)
    assert len(rows) > 800
    assert [r.origin for r in rows if not can_judge(r.fields["schema"], r.fields["sql"])] == []


def test_every_kind_of_question_is_asked_about_every_database():
    rows = sql_questions(count=len(KINDS))
    assert len(rows) == len(KINDS) * len(SCHEMAS)
    for word in ("where", "count(", "avg(", "group by", "order by", "limit", "join"):
        assert {r.group for r in sql_questions() if word in r.fields["sql"]} == {s.name for s in SCHEMAS}, word


def test_no_question_is_asked_twice_and_count_is_kept():
    rows = sql_questions()
    assert len(rows) == 100 * len(SCHEMAS)
    assert len({(r.group, r.fields["question"]) for r in rows}) == len(rows)


def test_a_database_is_on_one_side_whole():
    rows = sql_questions()
    held_out = {row.group for row in rows if row.held_out}
    trained = {row.group for row in rows if row.held_out is False}
    assert held_out == {"library", "clinic"}
    assert trained == {s.name for s in SCHEMAS} - held_out
    assert not {r.fields["schema"] for r in rows if r.held_out} & {r.fields["schema"] for r in rows if not r.held_out}
