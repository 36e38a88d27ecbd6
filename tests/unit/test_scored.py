"""Scores by two routes, and what counts as a fall."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import make_tokenizer
from tuneforge.data.known import CHOICES, QUESTIONS, known
from tuneforge.data.rows import Row
from tuneforge.data.scored import ScoredTask, read_tasks, scored_task
from tuneforge.errors import TuneforgeError

TASKS = {"descriptions": 0.9, "reference": 0.9}
"""What is below each score of the bundled model; by chance one choice in four is right."""
OPTIONS = {"at_most": 0, "max_length": 64, "seed": 0}


def rows(*fields):
    return [Row(f, origin=f"rows.jsonl:{i}") for i, f in enumerate(fields, 1)]


def test_the_choice_is_the_likeliest_as_a_whole_or_by_character():
    asked = rows({"question": "Q", "choices": ["the fox", "the lazy dog jumps"], "answer": 1})
    whole, by_character = (scored_task("t", asked, make_tokenizer(), metric=m, **OPTIONS) for m in ("acc", "acc_norm"))
    sums = np.asarray([-7.0, -9.0])
    assert whole.items(sums).tolist() == [0.0]  # -7 > -9
    assert by_character.items(sums).tolist() == [1.0]  # -9 / 18 > -7 / 7
    assert by_character.characters == [7, 18]


def test_only_the_choice_is_scored_and_a_long_question_loses_its_beginning():
    asked = rows({"question": "fox " * 200, "choices": ["dog", "lazy dog"], "answer": "lazy dog"})
    task = scored_task("t", asked, make_tokenizer("gpt2"), metric="acc", **OPTIONS)
    tokenizer = make_tokenizer("gpt2")
    for document, choice in zip(task.documents, ("dog", "lazy dog"), strict=True):
        assert len(document.input_ids) == 64
        assert tokenizer.decode(document.input_ids[document.labels != -100]) == f" {choice}"
    assert task.questions == [(0, 2, 1)]


def test_texts_and_answers_are_scored_by_the_likelihood_of_a_token():
    given = rows({"text": "the quick fox"}, {"text": "dog"})
    texts = scored_task("t", given, make_tokenizer(), metric="acc", **OPTIONS)
    sums = np.asarray([-2.0, -4.0])
    tokens = sum(d.num_labels for d in texts.documents)
    assert texts.metric == "likelihood"
    assert texts.score(texts.items(sums)) == pytest.approx(math.exp(-6 / tokens))


def one(metric, items):
    documents = [type("D", (), {"num_labels": 10})() for _ in range(items)]
    questions = [] if metric == "likelihood" else [(i, i + 1, i) for i in range(items)]
    return ScoredTask("t", metric, documents, questions)


def test_five_percent_of_a_likelihood_is_the_same_loss_wherever_it_starts():
    task = one("likelihood", 8)
    for loss in (0.3, 3.0):
        base = np.full(8, -10 * loss)
        assert task.compare(base, base - 10 * 0.0514).beyond(0.05)
        assert not task.compare(base, base - 10 * 0.0512).beyond(0.05)


def test_a_question_or_two_are_chance_and_many_are_not():
    task, base = one("acc", 40), np.ones(40)
    now = base.copy()
    now[:3] = 0
    fall = task.compare(base, now)
    assert fall.share == pytest.approx(3 / 40)
    assert fall.share > 0.05
    assert not fall.beyond(0.05)
    now[:9] = 0
    assert task.compare(base, now).beyond(0.05)
    # By the binomial spread: 9 lost and none won.
    fall = task.compare(base, now)
    exact = 3 * math.sqrt(9 / 40 * (1 - 9 / 40) / 40)
    assert fall.noise == pytest.approx(exact)
    # As many won as lost is no fall at all.
    mixed = np.concatenate([np.zeros(5), np.ones(35)])
    assert task.compare(np.concatenate([np.ones(35), np.zeros(5)]), mixed).share == pytest.approx(0.0)


BAD = [
    ({"question": "q", "choices": ["a", "b"], "answer": 2}, "'answer' is 2"),
    ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "'answer' is 'c'"),
    ({"question": "q", "choices": ["a", "b"]}, "'answer' is null"),
    ({"question": "q", "choices": ["a", "b"], "answer": True}, "'answer' is True"),
    ({"question": "q", "choices": ["a"], "answer": 0}, "no list of two texts"),
    ({"choices": ["a", "b"], "answer": 0}, "no text in 'question'"),
]


@pytest.mark.parametrize(("fields", "says"), BAD)
def test_a_row_that_is_no_question_is_named(fields, says):
    good = {"question": "q", "choices": ["a", "b"], "answer": 0}
    with pytest.raises(TuneforgeError, match=says) as raised:
        scored_task("t", rows(good, fields), make_tokenizer(), metric="acc", **OPTIONS)
    assert "1 of 2 rows" in raised.value.args[0]
    assert "rows.jsonl:2" in raised.value.args[0]


def test_an_error_names_the_task_and_not_the_train_data(tmp_path):
    given = {"facts": str(tmp_path / "none.jsonl")}
    with pytest.raises(TuneforgeError) as raised:
        read_tasks(given, make_tokenizer(), max_length=64, seed=0, path="callbacks.forgetting_check.tasks")
    assert [p.path for p in raised.value.problems] == ["callbacks.forgetting_check.tasks.facts"]


def test_the_bundled_tasks_are_the_same_each_time_and_the_base_does_them_above_chance():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import tuneforge

    assets = Path(tuneforge.__file__).parent / "assets" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(assets)
    model = AutoModelForCausalLM.from_pretrained(assets, dtype=torch.float32).eval()
    assert {name: len(found) for name, found in known().items()} == dict.fromkeys(TASKS, QUESTIONS)
    for found in known().values():
        for row in found:
            assert len(set(row.fields["choices"])) == CHOICES
    scores = {}
    for whole in read_tasks({}, tokenizer, max_length=256, seed=0, path=""):
        count = 24
        task = dataclasses.replace(
            whole,
            documents=whole.documents[: count * CHOICES],
            questions=whole.questions[:count],
            characters=whole.characters[: count * CHOICES],
        )
        with torch.no_grad():
            # The second route: one document at a time, all logits, no packing and no hooks.
            sums = [
                -float(model(ids[None], labels=labels[None]).loss) * d.num_labels
                for d in task.documents
                for ids, labels in [(torch.from_numpy(d.input_ids), torch.from_numpy(d.labels))]
            ]
        scores[task.name] = task.score(task.items(np.asarray(sums)))
    assert set(scores) == set(TASKS)
    for name, least in TASKS.items():
        assert scores[name] > least, scores
