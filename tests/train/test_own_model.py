"""A user's own folder of weights and file of rows, with no further key."""

import json

import pytest
from safetensors.torch import load_file

from helpers import ARCHITECTURES

ROWS = {
    "alpaca": [{"instruction": f"say {i}", "input": "", "output": f"the quick {i}"} for i in range(40)],
    "chat": [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"the dog {i}"}]}
        for i in range(40)
    ],
    "prompt_completion": [{"prompt": f"say {i}: ", "completion": f"the fox {i}"} for i in range(40)],
}


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_local_model_and_file_need_no_further_key(command, model_folders, tmp_path, architecture):
    rows = write(tmp_path / "rows.jsonl", ROWS["alpaca"])
    ran = command("model=hf", f"model.path={model_folders[architecture]}", "data=file", f"data.path={rows}")
    assert ran.code == 0, ran.err + ran.out
    assert ran.record["metrics"]["after"]["eval/loss"] < ran.record["metrics"]["before"]["eval/loss"]
    assert load_file(ran.folder / "adapter" / "adapter_model.safetensors")
    assert (ran.folder / "adapter" / "chat_template.jinja").exists()


@pytest.mark.parametrize("form", ["chat", "prompt_completion"])
def test_other_formats_are_recognised(command, model_folders, tmp_path, form):
    rows = write(tmp_path / "rows.jsonl", ROWS[form])
    ran = command(
        "model=hf", f"model.path={model_folders['llama']}", "data=file", f"data.path={rows}", "trainer.max_steps=2"
    )
    assert ran.code == 0, ran.err
    assert ran.record["data"]["format"] == form


def test_an_eval_file_of_its_own(command, model_folders, tmp_path):
    rows, held = write(tmp_path / "rows.jsonl", ROWS["alpaca"]), write(tmp_path / "eval.jsonl", ROWS["alpaca"][:5])
    ran = command(
        *("model=hf", f"model.path={model_folders['llama']}", "data=file", f"data.path={rows}"),
        *(f"data.split.eval_path={held}", "trainer.max_steps=2"),
    )
    assert ran.record["data"]["eval_documents"] == 5
    assert ran.record["data"]["train_documents"] == 40


def test_what_became_of_each_column_is_on_record(command, model_folders, tmp_path):
    dolly = [
        {"id": i, "instruction": f"say {i}", "context": "", "response": f"the fox {i}", "system_prompt": "be brief"}
        for i in range(20)
    ]
    for row in dolly[:5]:
        row["rationale"] = "because"
    rows = write(tmp_path / "rows.jsonl", [*dolly, {"instruction": "say", "response": ""}])
    ran = command(
        *("model=hf", f"model.path={model_folders['llama']}", "data=file", f"data.path={rows}", "samples.num=0"),
        *("data.columns.instruction=instruction", "data.on_bad=skip", "trainer.max_steps=1", "batch.effective=4"),
    )
    assert ran.code == 0, ran.err + ran.out
    data = ran.record["data"]
    assert (data["format"], data["skipped"]) == ("alpaca", 1)
    assert (data["metadata_columns"], data["unread"]) == (["id"], {"rationale": 5})
    assert "rationale" in ran.out


def test_a_model_from_scratch(command, model_folders, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"text": "the quick brown fox " * 9} for _ in range(30)] + [{"text": "dog"}])
    ran = command(
        *("task_recipe=pretrain", "model=hf", f"model.path={model_folders['llama']}", "data=file", f"data.path={rows}"),
        *("data.split.by=row", "trainer.max_steps=3", "data.max_length=64"),
    )
    assert ran.code == 0, ran.err
    assert (ran.folder / "model" / "model.safetensors").exists()
    assert ran.record["parameters"]["trainable"] == ran.record["parameters"]["total"]


def bad_cases(tmp_path, models):
    good = write(tmp_path / "rows.jsonl", ROWS["alpaca"])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", \n')
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"instruction": "caf\xe9", "output": "b"}\n'.encode("latin-1"))
    columns = write(tmp_path / "columns.jsonl", [{"topic": "a", "blurb": "b"}] * 3)
    long = write(
        tmp_path / "long.jsonl", [{"instruction": "word " * 900, "input": "", "output": f"{i}"} for i in range(9)]
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((models["llama"] / "config.json").read_text())
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    model = f"model.path={models['llama']}"
    return {
        "missing file": ([model, f"data.path={tmp_path / 'rows.jsnl'}"], ["data.path", "rows.jsonl"]),
        "empty file": ([model, f"data.path={empty}"], ["empty"]),
        "broken line": ([model, f"data.path={broken}"], ["broken.jsonl", "2"]),
        "wrong columns": ([model, f"data.path={columns}"], ["topic", "blurb", "instruction"]),
        "not utf-8": ([model, f"data.path={latin}"], ["latin.jsonl", "UTF-8"]),
        "no supervised token": ([model, f"data.path={long}"], ["no row has a supervised token", "long.jsonl:"]),
        "folder without weights": ([f"model.path={bare}", f"data.path={good}"], ["no weights", "config.json"]),
        "folder without a model": ([f"model.path={nothing}", f"data.path={good}"], ["no config.json"]),
        "folder that is not there": ([f"model.path={tmp_path}/x/y", f"data.path={good}"], ["no such folder"]),
        "hub id without network": (["model.path=some-org/some-model", f"data.path={good}"], ["could not be asked"]),
        "rows longer than positions": ([model, f"data.path={good}", "data.max_length=512"], ["positions for 256"]),
        "remote code without a pin": (
            [model, f"data.path={good}", "model.trust_remote_code=true"],
            ["needs a pinned model.revision"],
        ),
        "targets that match nothing": (
            [model, f"data.path={good}", "method.target_modules=[q_porj]"],
            ["q_porj", "q_proj"],
        ),
        "flash attention without a GPU": (
            [model, f"data.path={good}", "model.attn_implementation=flash_attention_2"],
            ["model.attn_implementation"],
        ),
    }


def test_bad_input_is_one_clear_message_and_writes_nothing(refused, model_folders, tmp_path):
    cases = bad_cases(tmp_path, model_folders)
    assert len(cases) == 14
    for name, (arguments, expected) in cases.items():
        run = tmp_path / "runs" / name.replace(" ", "_")
        said = refused("model=hf", "data=file", *arguments, f"hydra.run.dir={run}")
        for text in expected:
            assert text in said, f"{name}: {said}"
        assert len(said.splitlines()) <= 7, f"{name}: {said}"
        assert not run.exists(), name


def hub_error(kind, text):
    import httpx2

    return kind(text, response=httpx2.Response(403, request=httpx2.Request("GET", "https://hub.example")))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "HF_TOKEN"),
        ("RepositoryNotFoundError", "is not on the hub"),
        ("wrapped gated", "accept its terms"),
        ("remote code", "needs Python code of its own"),
    ],
)
def test_what_the_hub_answers_is_told_in_the_configs_words(refused, monkeypatch, tmp_path, error, says):
    from huggingface_hub import errors
    from transformers import AutoConfig

    rows = write(tmp_path / "rows.jsonl", ROWS["alpaca"])

    def answer(*args, **kwargs):
        if error == "remote code":
            raise ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")
        if error == "wrapped gated":
            raise OSError("You are trying to access a gated repo.")
        raise hub_error(getattr(errors, error), "the hub says no")

    monkeypatch.setattr(AutoConfig, "from_pretrained", answer)
    assert says in refused("model=hf", "model.path=org/name", "data=file", f"data.path={rows}")


def test_a_damaged_weights_file_is_told(refused, model_folders, tmp_path):
    import shutil

    folder = shutil.copytree(model_folders["llama"], tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    rows = write(tmp_path / "rows.jsonl", ROWS["alpaca"])
    said = refused(
        "model=hf", f"model.path={folder}", "data=file", f"data.path={rows}", f"hydra.run.dir={tmp_path}/run"
    )
    assert "cannot be loaded" in said
    assert not (tmp_path / "run").exists()
