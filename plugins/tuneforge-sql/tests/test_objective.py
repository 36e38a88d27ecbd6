"""Which eval rows are executed, and what is logged of them; a written answer stands in for the model's."""

from types import SimpleNamespace

import numpy as np
import pytest

from tuneforge.errors import TuneforgeError
from tuneforge.objectives.causal_lm import CausalLM
from tuneforge_sql import objective
from tuneforge_sql.format import text_to_sql
from tuneforge_sql.rows import sql_questions

MAX_LENGTH = 12


def context(rows, *, prompt=5, answer=4):
    """A context whose documents have tokens 0, 1, 2, ... and labels on the last `answer` of them."""
    examples, documents = [], []
    for row in rows:
        ids = np.arange(prompt + answer)
        examples.append(SimpleNamespace(messages=text_to_sql(row.fields).messages, origin=row.origin))
        documents.append(SimpleNamespace(origin=row.origin, input_ids=ids, labels=np.where(ids < prompt, -100, ids)))
    return SimpleNamespace(
        config=SimpleNamespace(regularise=SimpleNamespace(kl=0.0)),
        eval_examples=tuple(examples),
        eval_rows=SimpleNamespace(documents=documents),
        settled=SimpleNamespace(max_length=MAX_LENGTH),
    )


def test_questions_are_spread_and_end_where_the_answer_does():
    rows = sql_questions(count=3)
    chosen = objective.choose(context(rows), 4)
    assert [q.wanted for q in chosen] == [rows[i].fields["sql"] for i in (0, 7, 15, 23)]
    assert (chosen[0].prompt.tolist(), chosen[0].end, chosen[0].max_new_tokens) == ([0, 1, 2, 3, 4], 8, 7)
    assert objective.choose(context(rows, prompt=2, answer=3), 1)[0].max_new_tokens == 6
    assert len(objective.choose(context(rows), 100)) == len(rows)


@pytest.mark.parametrize("lengths", [{"prompt": 0}, {"prompt": 8}])
def test_without_a_prompt_or_an_end_there_is_nothing_to_execute(lengths):
    with pytest.raises(TuneforgeError, match="no eval row can be judged") as raised:
        objective.choose(context(sql_questions(count=1), **lengths), 4)
    assert "task_recipe.num_executed=0" in raised.value.problems[0].fix
    assert objective.TextToSql(context([]), num_executed=0).questions == []


@pytest.mark.parametrize(("stage", "logged"), [("validate", [("eval/execution_accuracy", 0.75)]), ("fit", [])])
def test_the_share_of_right_answers_is_logged_outside_of_training(monkeypatch, stage, logged):
    module = objective.TextToSql(context(sql_questions(count=1)), num_executed=4)
    answers = iter([*(q.wanted.upper() for q in module.questions[:3]), "select nothing"])
    monkeypatch.setattr(objective, "generate", lambda *_, **__: [next(answers)])
    monkeypatch.setattr(CausalLM, "on_validation_epoch_end", lambda _: None)
    seen = []
    monkeypatch.setattr(module, "log", lambda *pair: seen.append(pair))
    trainer = SimpleNamespace(state=SimpleNamespace(fn=stage))
    module.trainer = trainer
    module.on_validation_epoch_end()
    assert seen == logged
