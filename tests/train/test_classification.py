"""Texts into classes, from a user's file to what plain transformers and PEFT make of the result."""

import json
import os
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tuneforge.objectives.base import Objective

WORDS = {"animal": "the quick fox jumps", "speech": "question answer user", "rest": "over the lazy dog"}
SHORT = ("trainer.max_steps=6", "batch.effective=8", "batch.per_device=2", "samples.num=2", "optim.lr=1e-2")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def single(count: int = 45) -> list[dict]:
    names = list(WORDS)
    return [{"text": f"{WORDS[names[i % 3]]} {'a' * (i // 3)}", "label": names[i % 3]} for i in range(count)]


def several(count: int = 45) -> list[dict]:
    names = list(WORDS)
    chosen = [[n for j, n in enumerate(names) if (i >> j) & 1] for i in range(count)]
    return [
        {"text": " ".join(WORDS[n] for n in some) + " dog" * i + ".", "labels": some} for i, some in enumerate(chosen)
    ]


def arguments(folder, rows) -> list[str]:
    return ["task_recipe=classification", "data=file", f"data.path={rows}", "model=hf", f"model.path={folder}"]


def reloaded(ran, folder):
    """The result as its user loads it."""
    config = AutoConfig.from_pretrained(ran.folder / "adapter")
    torch.manual_seed(99)
    base = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)
    return PeftModel.from_pretrained(base, ran.folder / "adapter").eval(), config


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_classifier_is_measured_as_plain_peft_measures_it(command, model_folders, tmp_path, architecture):
    folder = model_folders[architecture]
    rows, held = write(tmp_path / "rows.jsonl", single()), write(tmp_path / "held.jsonl", single(17))
    ran = command(*arguments(folder, rows), *SHORT, f"data.split.eval_path={held}")
    assert ran.code == 0, ran.err + ran.out
    model, config = reloaded(ran, folder)
    assert config.id2label == dict(enumerate(sorted(WORDS)))
    tokenizer = AutoTokenizer.from_pretrained(ran.folder / "adapter")
    right, losses, pairs = 0, 0.0, []
    for row in single(17):
        with torch.no_grad():
            logits = model(**{k: v for k, v in tokenizer(row["text"], return_tensors="pt").items() if "type" not in k})
        gold = config.label2id[row["label"]]
        losses += float(torch.nn.functional.cross_entropy(logits.logits, torch.tensor([gold])))
        pairs.append((gold, int(logits.logits.argmax())))
        right += pairs[-1][0] == pairs[-1][1]
    after = ran.record["metrics"]["after"]
    assert after["eval/loss"] == pytest.approx(losses / 17, rel=1e-4)
    assert after["eval/accuracy"] == pytest.approx(right / 17)
    # By the definition: F1 = 2 tp / (2 tp + fp + fn), and their mean.
    f1 = [2 * pairs.count((c, c)) / max(1, sum((g == c) + (p == c) for g, p in pairs)) for c in range(3)]
    assert after["eval/macro_f1"] == pytest.approx(sum(f1) / 3)
    classes = ran.record["classes"]["after"]
    assert classes["confusion"] == [[pairs.count((g, p)) for p in range(3)] for g in range(3)]
    assert sum(c["support"] for c in classes["classes"]) == 17
    for shown in ("eval loss", "eval accuracy", "eval macro f1"):
        assert shown in ran.out
    page = (ran.folder / "report.html").read_text()
    assert 'class="matrix"' in page
    assert "Eval macro f1" in page
    sample = ran.record["samples"]["after"][0]
    assert sample["wanted"] in WORDS
    assert sample["answer"] in WORDS


def test_several_labels_a_text_are_learnt_and_measured(command, model_folders, tmp_path):
    rows = write(tmp_path / "rows.jsonl", several())
    ran = command(*arguments(model_folders["llama"], rows), *SHORT, "trainer.max_steps=30")
    assert ran.code == 0, ran.err + ran.out
    model, config = reloaded(ran, model_folders["llama"])
    assert config.problem_type == "multi_label_classification"
    after = ran.record["metrics"]["after"]
    assert after["eval/loss"] < ran.record["metrics"]["before"]["eval/loss"]
    assert {"eval/micro_f1", "eval/macro_f1", "eval/subset_accuracy"} <= after.keys()
    assert all(len(counts) == 4 for counts in ran.record["classes"]["after"]["confusion"])
    assert 'class="matrix"' not in (ran.folder / "report.html").read_text()
    assert model.config.num_labels == 3


def test_the_whole_model_and_given_labels_come_back_in_their_order(command, model_folders, tmp_path):
    rows = write(tmp_path / "rows.jsonl", single())
    given = "data.labels=[speech,rest,animal,unseen]"
    ran = command(*arguments(model_folders["bert"], rows), *SHORT, "method=full", "optim.lr=1e-3", given)
    assert ran.code == 0, ran.err + ran.out
    config = AutoConfig.from_pretrained(ran.folder / "model")
    assert list(config.id2label.values()) == ["speech", "rest", "animal", "unseen"]
    again = command(
        *arguments(ran.folder / "model", rows), *SHORT, "method=full", "data.labels=[rest,unseen,speech,animal]"
    )
    assert again.code == 0, again.err + again.out
    assert again.record["data"]["labels"] == ["speech", "rest", "animal", "unseen"]
    assert again.record["metrics"]["before"]["eval/loss"] == pytest.approx(ran.record["metrics"]["after"]["eval/loss"])


def test_an_adapter_goes_on_with_its_head_and_refuses_other_labels(command, model_folders, tmp_path):
    folder, rows = model_folders["llama"], write(tmp_path / "rows.jsonl", single())
    ran = command(*arguments(folder, rows), *SHORT)
    more = command(*arguments(folder, rows), *SHORT, f"model.adapter={ran.folder / 'adapter'}")
    assert more.code == 0, more.err
    before, after = more.record["metrics"]["before"], ran.record["metrics"]["after"]
    assert {k: before[k] for k in before if "eval" in k} == pytest.approx({k: after[k] for k in after if "eval" in k})
    others = write(tmp_path / "others.jsonl", [{**row, "label": row["label"] + "!"} for row in single()])
    other = command(*arguments(folder, others), *SHORT, f"model.adapter={ran.folder / 'adapter'}")
    assert other.code == 2
    assert "was trained on the labels animal, rest, speech" in other.err


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(command, model_folders, tmp_path, monkeypatch):
    run = [*arguments(model_folders["llama"], write(tmp_path / "rows.jsonl", single())), *SHORT]
    whole = command(*run)
    end, sent = Objective.on_train_batch_end, []

    def signalling(self, *args):
        end(self, *args)
        if self.trainer.global_step == 3 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Objective, "on_train_batch_end", signalling)
    stopped = command(*run)
    assert stopped.code == 143
    resumed = command(*run, f"resume={stopped.folder}")
    assert resumed.code == 0, resumed.err
    weights = [load_file(f / "adapter" / "adapter_model.safetensors") for f in (whole.folder, stopped.folder)]
    assert any("score" in name for name in weights[0])
    assert all((weights[0][k] == weights[1][k]).all() for k in weights[0])
    record = json.loads((stopped.folder / "run.json").read_text())
    assert record["classes"] == whole.record["classes"]


def test_an_effective_batch_is_one_mean_however_it_is_cut(command, model_folders, tmp_path):
    """Accumulation: 2 rows x 4 passes give the losses of 8 x 1, though the texts differ in length."""
    run = [
        *arguments(model_folders["llama"], write(tmp_path / "rows.jsonl", single())),
        *SHORT,
        "task_recipe.dropout=0",
    ]
    cut, whole = command(*run), command(*run, "batch.per_device=8")
    assert cut.losses == pytest.approx(whole.losses, rel=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        ([*single(), {"text": "x", "label": " "}], [], "'label' is empty"),
        ([*single(), {"text": "x", "label": 1.5}], [], "'label' is a number, not text"),
        ([*single(), {"text": "x"}], [], "has neither a 'label' nor 'labels'"),
        ([*single(), {"text": "x", "labels": "rest"}], [], "'labels' is text, not a list"),
        ([*single(), {"text": "x", "labels": ["rest"]}], [], "rows with one label and rows with a list"),
        ([{"text": f"x{i}", "label": "only"} for i in range(20)], [], "the rows have 1 label (only)"),
        (single(), ["data.labels=[animal,speech]"], "leaves out 1 label that rows have:\n  'rest'"),
        (single(), ["data.labels=[animal,speech,rest,rest]"], "names 'rest' twice"),
        (single(), ["data.overlong=drop", "data.max_length=2"], "no text fits"),
        (single(), ["data.packing=true"], "a label is of one whole text"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(refused, model_folders, tmp_path, case):
    rows, extra, says = case
    path = write(tmp_path / "rows.jsonl", rows)
    assert says in refused(*arguments(model_folders["llama"], path), *SHORT, f"output_root={tmp_path}", *extra)


def test_a_label_that_no_train_row_has_is_refused(refused, model_folders, tmp_path):
    rows = write(tmp_path / "rows.jsonl", single())
    held = write(tmp_path / "held.jsonl", [*single(6), {"text": "x", "label": "new"}])
    said = refused(*arguments(model_folders["llama"], rows), f"data.split.eval_path={held}", f"output_root={tmp_path}")
    assert "1 label of the eval rows is in no train row, so never learnt:\n  'new' (first in held.jsonl:7)" in said


def test_a_model_that_is_not_made_for_the_objective_is_refused(refused, model_folders, tmp_path):
    rows = write(tmp_path / "rows.jsonl", single())
    said = refused("model=hf", f"model.path={model_folders['bert']}", f"output_root={tmp_path}")
    assert "(bert) is an encoder" in said
    assert "task_recipe=classification" in said
    folder = tmp_path / "mamba"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')
    (folder / "model.safetensors").touch()
    assert "(mamba) has no classification head" in refused(*arguments(folder, rows), f"output_root={tmp_path}")
    (folder / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    assert "(t5) is an encoder with a decoder" in refused(*arguments(folder, rows), f"output_root={tmp_path}")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_plan_knows_the_head(command, model_folders, tmp_path, architecture):
    run = arguments(model_folders[architecture], "rows.jsonl")
    ran = command("plan", "--json", *run)
    assert ran.code == 0, ran.err
    estimate = json.loads(ran.out)["estimate"]
    config = AutoConfig.from_pretrained(model_folders[architecture])
    with torch.device("meta"):
        real = AutoModelForSequenceClassification.from_config(config)
    assert estimate["parameters"] == sum(p.numel() for p in real.parameters())


@pytest.mark.parametrize(
    "method", [pytest.param("lora", marks=pytest.mark.soak), pytest.param("full", marks=pytest.mark.soak_full)]
)
def test_two_processes_train_as_one(command, model_folders, tmp_path, method):
    run = [*arguments(model_folders["llama"], write(tmp_path / "rows.jsonl", single())), *SHORT, f"method={method}"]
    run += ["task_recipe.dropout=0", "optim.lr=2e-4", "trainer.max_steps=3"]
    one = command(*run, "batch.per_device=4")
    two = command(*run, "batch.per_device=2", "strategy=ddp", "trainer.devices=2")
    assert two.code == 0, two.err + two.out
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    # 5 eval rows on 2 devices: one has a row less.
    assert two.record["classes"]["after"]["total"] == one.record["classes"]["after"]["total"]
    assert two.record["metrics"]["after"] == pytest.approx(one.record["metrics"]["after"], rel=1e-4)
