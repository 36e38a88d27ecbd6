"""The exported result stops where the template ends a turn, and a run continues with the tokens it began with."""

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from helpers import signal_at
from tuneforge.callbacks.samples import answers
from tuneforge.data.encode import IGNORE, Document
from tuneforge.data.template import CHATML
from tuneforge.errors import TuneforgeError
from tuneforge.generation import generation_config, stop_ids
from tuneforge.schema.model import Model

SHORT = ("trainer.max_steps=4", "trainer.val_check_interval=1.0", "samples.num=0", "batch.effective=4")


@pytest.fixture(scope="module")
def base(model_folders, tmp_path_factory):
    """A base that ends at `</s>`, whose published generation config transformers would not write again."""
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(model_folders["llama"], folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "temperature": 0.6}))
    return folder


def test_a_run_keeps_its_tokens_and_exports_the_end_of_a_turn(command, refused, monkeypatch, base, tmp_path):
    rows, template = tmp_path / "rows.jsonl", tmp_path / "turns.jinja"
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "fox"}]
    turns = [[{**t, "content": f"{t['content']} {i}"} for t in turns] for i in range(24)]
    rows.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    dated = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    template.write_text(dated)
    options = ("model=hf", f"model.path={base}", f"model.chat_template={template}", *SHORT)
    options = (*options, "data=file", f"data.path={rows}")
    signal_at(monkeypatch, 2)
    stopped = command(*options)
    assert stopped.code == 143, stopped.err

    resume = (*options, f"output_root={tmp_path / 'outputs'}", f"resume={stopped.folder}")
    template.write_text(dated.replace("user", "User") + " ")
    assert refused(*resume).startswith("error: model.chat_template: the chat template is not that of")
    template.write_text(dated)
    file = base / "tokenizer.json"
    kept = file.read_text()
    file.write_text(kept.replace('"lstrip": false', '"lstrip": true', 1))
    assert refused(*resume).startswith("error: model.path: the tokenizer is not that of")
    file.write_text(kept)
    record = json.loads((stopped.folder / "run.json").read_text())
    for day in ("yesterday", "2025-01-02T03:04:05+00:00"):
        record["data"]["day"] = day
        (stopped.folder / "run.json").write_text(json.dumps(record))
        if day == "yesterday":
            assert "data.day is no date: 'yesterday'" in refused(*resume)
    ran = command(*resume)  # the advice: the files are back
    assert ran.code == 0, ran.err
    assert "writes the day on which the run started into each conversation: 2025-01-02" in ran.out
    assert json.loads((stopped.folder / "run.json").read_text())["data"]["day"] == record["data"]["day"]

    tokenizer = AutoTokenizer.from_pretrained(stopped.folder / "adapter")
    ends = [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    exported = GenerationConfig.from_pretrained(stopped.folder / "adapter")
    assert (exported.eos_token_id, exported.temperature) == (ends, 0.6)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), stopped.folder / "adapter")
    model.generation_config = exported  # as the README has it
    _ends_at(model.eval(), ends[1])

    template.write_text(CHATML + " ")
    full = command("train", "--from", str(stopped.folder), "method=full", "trainer.max_steps=1")
    assert full.code == 0, full.err
    assert "the chat template is not that of" in full.out
    whole = AutoModelForCausalLM.from_pretrained(full.folder / "model")
    assert whole.generation_config.eos_token_id == ends
    _ends_at(whole.eval(), ends[1])


def _ends_at(model, end: int) -> None:
    """Whether the model, made to write `end` alone, stops after it."""
    head = model.get_output_embeddings()
    head.forward = lambda states: (
        torch.nn.functional.one_hot(torch.tensor(end), 512).float().expand(*states.shape[:-1], 512)
    )
    written = model.generate(input_ids=torch.tensor([[1, 9, 10]]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert written[0, 3:].tolist() == [end]


def test_ends_are_added_to_those_of_the_base(tmp_path):
    architecture = LlamaConfig(eos_token_id=2)
    architecture.save_pretrained(tmp_path)
    model = Model(name="m", path=str(tmp_path))
    assert generation_config(model, architecture, [2]).eos_token_id == 2
    assert generation_config(model, architecture, [2, 7]).eos_token_id == [2, 7]
    for own, ends, wanted in ((5, [2, 7], [5, 2, 7]), ([5, 6], [6], [5, 6]), (None, [7], 7)):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": own}))
        found = generation_config(model, architecture, ends)
        assert found.eos_token_id == wanted
        assert stop_ids(found) == (wanted if isinstance(wanted, list) else [wanted])
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(TuneforgeError, match=r"generation_config.json cannot be read"):
        generation_config(model, architecture, [2])


def test_samples_stop_where_the_exported_model_does_and_nowhere_else(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    asked = {}

    def generate(input_ids, eos_token_id, **_):
        asked["ends"] = eos_token_id
        return torch.cat([input_ids, torch.tensor([[40, 41, 5]])], 1)

    document = Document(np.arange(30, 40), np.where(np.arange(10) < 5, IGNORE, np.arange(30, 40)), "t:1")
    context = SimpleNamespace(
        tokenizer=tokenizer,
        config=SimpleNamespace(samples=SimpleNamespace(num=1, max_new_tokens=3)),
        eval_rows=SimpleNamespace(documents=[document]),
        generation=GenerationConfig(eos_token_id=[2, 5]),
    )
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    module = SimpleNamespace(context=context, device="cpu", model=SimpleNamespace(generate=generate), trainer=trainer)
    (answer,) = answers(module)
    assert asked["ends"] == [2, 5]  # and not 39, the data's last token
    assert answer.written.ended
    assert answer.sample.answer == tokenizer.decode([40, 41]).strip()
    assert answer.sample.wanted == tokenizer.decode(range(35, 40)).strip()
