"""Configs of other tools: nothing is lost, nothing is claimed that does not compose, and the meaning is theirs."""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tuneforge.commands.import_config import run
from tuneforge.commands.request import Request
from tuneforge.compose import compose
from tuneforge.data.file import file as read_rows
from tuneforge.data.formats import convert
from tuneforge.errors import TuneforgeError
from tuneforge.front import front, groups
from tuneforge.importers import common, shared, trl_trainers
from tuneforge.importers.common import dialects, translate
from tuneforge.importers.translation import command_line, experiment, overrides
from tuneforge.schema.signature import read_signature

FOREIGN = Path(__file__).parent / "foreign_configs"
CONFIGS = sorted(FOREIGN.glob("*.yaml"))


@pytest.fixture(scope="module")
def translated():
    """Each config is translated once: all tests of it look at the same answer."""
    done = {}

    def of(path):
        name = str(path)
        if name not in done:
            done[name] = translate(FOREIGN / path)
        return done[name]

    return of


@pytest.fixture(scope="module")
def options():
    with front() as loader:
        return groups(loader)


@pytest.fixture
def write(tmp_path):
    """A config file of the given text."""

    def make(text, name="foreign.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return make


@pytest.fixture
def answer(capsys):
    """Run the verb; returns what it printed."""

    def call(*words, out=None, as_json=False):
        assert run(Request("import", tuple(map(str, words)), (), argparse.Namespace(out=out, json=as_json))) == 0
        return capsys.readouterr().out

    return call


def why(translation, key):
    (reason,) = [entry.why for entry in translation.left if entry.key == key]
    return reason


# What holds for every config


def test_there_are_configs_of_every_tool_and_kind():
    kinds = ("lora_sft", "qlora", "full", "pretrain", "dpo")
    assert {p.stem for p in CONFIGS} == {f"{tool}_{kind}" for tool in dialects() for kind in kinds}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_no_key_is_lost(translated, path):
    translation = translated(path)
    assert path.stem.startswith(translation.dialect)
    given = yaml.safe_load(path.read_text())
    listed = {entry.key.split("[")[0].split(".")[0] for entry in translation.left}
    assert set(given) - set(translation.carried) - listed == set()
    assert listed <= set(given)
    assert all(entry.why for entry in translation.left)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_command_and_experiment_compose_to_the_same_tree(translated, path, tmp_path):
    translation = translated(path)
    words = shlex.split(command_line(translation))
    assert words[:3] == ["python", "-m", "tuneforge"]
    typed = compose(words[3:])
    (tmp_path / "experiment").mkdir()
    out = tmp_path / "experiment" / "theirs.yaml"
    out.write_text(experiment(translation, out))
    lines = out.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1] == f"# python -m tuneforge --config-dir {tmp_path} +experiment=theirs"
    assert compose(["+experiment=theirs"], [tmp_path]).tree == typed.tree
    for group, option in translation.choices.items():
        assert typed.choices[group] == option


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_values_arrive_as_they_were_meant(translated, path):
    tree = compose(overrides(translated(path))).tree
    for dotted, value in translated(path).values.items():
        node = tree
        for part in dotted.split("."):
            node = node[part]
        assert node == value, dotted


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_run_never_falls_back_on_our_model_or_rows(translated, path):
    translation = translated(path)
    assert translation.choices["model"] == "hf"
    assert translation.choices["data"] in ("file", "hub")
    assert translation.values["data.path"]
    assert "optim.lr" in translation.values


@pytest.mark.parametrize("name", [p.stem for p in CONFIGS if p.stem.endswith("dpo")])
def test_preference_training_is_carried_or_said_not_to_be(translated, options, name):
    translation = translated(f"{name}.yaml")
    if "dpo" in options["task_recipe"]:
        assert translation.choices["task_recipe"] == "dpo"
    else:
        assert any(note.startswith("NOT the same training") for note in translation.notes)


FUTURE = [
    ("axolotl_qlora", "deepspeed", "strategy", "deepspeed_zero2"),
    ("axolotl_full", "fsdp_version", "strategy", "fsdp"),
    ("axolotl_pretrain", "optimizer", "optim", "adafactor"),
    ("axolotl_dpo", "peft_use_rslora", "method", "rslora"),
    ("llama_factory_qlora", "lr_scheduler_type", "scheduler", "cosine_with_restarts"),
    ("llama_factory_qlora", "deepspeed", "strategy", "deepspeed_zero3_offload"),
    ("llama_factory_pretrain", "use_dora", "method", "dora"),
    ("trl_pretrain", "lr_scheduler_type", "scheduler", "wsd"),
    ("trl_pretrain", "fsdp", "strategy", "fsdp_offload"),
]


@pytest.mark.parametrize("case", FUTURE, ids=lambda case: f"{case[0]}-{case[3]}")
def test_an_option_is_picked_where_it_is_there_and_the_key_left_where_not(translated, options, case):
    name, key, group, option = case
    translation = translated(f"{name}.yaml")
    if option in options[group]:
        picked = translation.choices.get(group) == option
        assert picked or key in {entry.key for entry in translation.left}  # a rule may still refuse the pair
    else:
        assert f"there is no {group}={option} here" in why(translation, key)


# Meaning


MEANT = [
    ("axolotl_lora_sft", "batch.effective_tokens", 4 * 2 * 4096),
    ("axolotl_lora_sft", "batch.per_device", 2),
    ("axolotl_lora_sft", "data.packing", True),
    ("axolotl_lora_sft", "data.format", "chat"),
    ("axolotl_lora_sft", "data.train_on", "assistant"),
    ("axolotl_lora_sft", "data.overlong", "drop"),
    ("axolotl_lora_sft", "data.split.eval_fraction", 0.05),
    ("axolotl_lora_sft", "trainer.val_check_interval", 1 / 16),
    ("axolotl_lora_sft", "trainer.gradient_clip_val", 1.0),
    ("axolotl_lora_sft", "optim.lr", 2e-4),
    ("axolotl_lora_sft", "optim.weight_decay", 0.0),
    ("axolotl_lora_sft", "scheduler.min_lr_ratio", 0.1),
    ("axolotl_lora_sft", "method.target_modules", "all-linear"),
    ("axolotl_lora_sft", "seed", 42),
    ("axolotl_qlora", "batch.effective", 8),
    ("axolotl_qlora", "data.packing", False),
    ("axolotl_qlora", "scheduler.warmup_ratio", 0.1),
    ("axolotl_qlora", "optim.betas", [0.9, 0.95]),
    ("axolotl_qlora", "method.double_quant", False),
    ("axolotl_qlora", "method.lora_alpha", 32),
    ("axolotl_qlora", "model.trust_remote_code", True),
    ("axolotl_full", "data.train_on", "all"),
    ("axolotl_full", "data.overlong", "truncate"),
    ("axolotl_full", "data.split.eval_path", "./held_out.jsonl"),
    ("axolotl_full", "scheduler.warmup_ratio", 0.03),
    ("axolotl_full", "trainer.gradient_checkpointing", True),
    ("axolotl_pretrain", "model.init", "pretrained"),
    ("axolotl_pretrain", "data.overlong", "chunk"),
    ("axolotl_pretrain", "data.train_on", "all"),
    ("axolotl_dpo", "model.chat_template", "chatml"),
    ("llama_factory_lora_sft", "method.lora_alpha", 16),
    ("llama_factory_lora_sft", "data.format", "alpaca"),
    ("llama_factory_lora_sft", "data.packing", False),
    ("llama_factory_lora_sft", "trainer.gradient_checkpointing", True),
    ("llama_factory_lora_sft", "trainer.val_check_interval", 500),
    ("llama_factory_lora_sft", "data.max_rows", 1000),
    ("llama_factory_qlora", "batch.effective_tokens", 8 * 1024),
    ("llama_factory_qlora", "method.target_modules", ["q_proj", "v_proj"]),
    ("llama_factory_qlora", "trainer.precision", "16-mixed"),
    ("llama_factory_qlora", "model.attn_implementation", "flash_attention_2"),
    ("llama_factory_full", "trainer.precision", "bf16-true"),
    ("llama_factory_full", "trainer.gradient_checkpointing", False),
    ("llama_factory_full", "trainer.val_check_interval", 0.5),
    ("llama_factory_full", "data.train_on", "all"),
    ("llama_factory_pretrain", "data.packing", True),
    ("llama_factory_pretrain", "data.format", "text"),
    ("llama_factory_pretrain", "scheduler.warmup_ratio", 0.0),
    ("trl_lora_sft", "model.dtype", "float32"),
    ("trl_lora_sft", "method.lora_dropout", 0.05),
    ("trl_lora_sft", "data.train_on", "all"),
    ("trl_lora_sft", "data.max_length", 1024),
    ("trl_lora_sft", "batch.effective_tokens", 16 * 1024),
    ("trl_lora_sft", "trainer.precision", "bf16-mixed"),
    ("trl_qlora", "data.train_on", "assistant"),
    ("trl_qlora", "data.path", "rows/chats.jsonl"),
    ("trl_qlora", "scheduler.min_lr_ratio", 0.1),
    ("trl_qlora", "scheduler.warmup_ratio", 0.1),
    ("trl_qlora", "method.double_quant", True),
    ("trl_full", "optim.lr", 2e-5),
    ("trl_full", "trainer.max_epochs", 2),
    ("trl_full", "trainer.precision", "32-true"),
    ("trl_pretrain", "data.overlong", "chunk"),
    ("trl_pretrain", "trainer.max_steps", 1000),
    ("trl_dpo", "optim.lr", 5e-6),
]


@pytest.mark.parametrize(("name", "path", "value"), MEANT)
def test_a_key_means_what_it_meant(translated, name, path, value):
    assert translated(f"{name}.yaml").values[path] == value


@pytest.mark.parametrize(
    ("name", "method"),
    [("axolotl_lora_sft", "lora"), ("axolotl_qlora", "qlora"), ("axolotl_full", "full"), ("trl_full", "full"),
     ("llama_factory_lora_sft", "lora"), ("llama_factory_qlora", "qlora"), ("llama_factory_full", "full"),
     ("trl_lora_sft", "lora"), ("trl_qlora", "qlora")],
)  # fmt: skip
def test_the_method_is_theirs(translated, name, method):
    assert translated(f"{name}.yaml").choices["method"] == method


LEFT = [
    ("axolotl_qlora", "lora_alhpa", "Did you mean 'lora_alpha'?"),
    ("axolotl_qlora", "lora_alhpa", "drops the key without a word"),
    ("axolotl_qlora", "val_set_size", "count of rows"),
    ("axolotl_qlora", "datasets[0].type", "wording not"),
    ("axolotl_qlora", "datasets[0].split", "not carried"),
    ("axolotl_full", "val_set_size", None),
    ("axolotl_full", "chat_template", "tokenizer's own"),
    ("axolotl_pretrain", "warmup_steps", "share of the run"),
    ("axolotl_pretrain", "lora_r", "no adapter is trained"),
    ("llama_factory_full", "lerning_rate", "Did you mean 'learning_rate'?"),
    ("llama_factory_full", "lerning_rate", "refuses the file"),
    ("llama_factory_full", "dataset", "names 2 sets"),
    ("llama_factory_lora_sft", "trust_remote_code", "at a commit you name"),
    ("llama_factory_lora_sft", "template", "tokenizer's own"),
    ("trl_full", "max_seq_lenght", "Did you mean 'max_seq_length'?"),
    ("trl_full", "max_length", "no limit there"),
    ("trl_qlora", "eval_strategy", "always evaluates"),
    ("trl_pretrain", "dataset_text_field", "called text here"),
]


@pytest.mark.parametrize(("name", "key", "says"), LEFT)
def test_what_is_left_says_why(translated, name, key, says):
    translation = translated(f"{name}.yaml")
    if says is None:
        assert key not in {entry.key for entry in translation.left}
    else:
        assert says in why(translation, key)


def test_the_files_silence_is_the_tools_default_and_said(translated):
    (note,) = [n for n in translated("trl_lora_sft.yaml").notes if "defaults, written out" in n]
    assert "optim.weight_decay=0.0" in note
    assert "seed=42" in note
    assert "optim.lr" not in note


def test_gpus_and_packed_rows_are_spoken_of(translated):
    notes = " ".join(translated("axolotl_lora_sft.yaml").notes)
    assert "multiply it by their number" in notes
    assert "batch.effective counts documents here" in notes


def test_rows_on_the_hub_stop_the_run_or_are_read_from_there(translated, options):
    translation = translated("trl_lora_sft.yaml")
    if "hub" in options["data"]:
        assert translation.values["data.path"] == "org/conversations"
    else:
        assert translation.values["data.path"] == shared.PLACEHOLDER
        assert "download it" in why(translation, "dataset_name")


@pytest.mark.parametrize(("steps", "total"), [(3, 7), (1, 3), (10, 100), (33, 1000), (1, 12345)])
def test_warmup_steps_become_a_share_that_gives_them_back(write, steps, total):
    path = write(f"base_model: a/b\ndatasets: [{{path: x.jsonl}}]\nwarmup_steps: {steps}\nmax_steps: {total}\n")
    assert math.ceil(translate(path).values["scheduler.warmup_ratio"] * total) == steps


def test_trl_looks_at_rows_that_are_here(write, tmp_path):
    config = write(f"model_name_or_path: a/b\nuse_peft: true\ndataset_name: {tmp_path}/rows.jsonl\n")
    write('{"prompt": "a", "completion": "b"}\n', "rows.jsonl")
    assert translate(config).values["data.train_on"] == "assistant"
    write('{"messages": []}\n', "rows.jsonl")
    assert translate(config).values["data.train_on"] == "all"


@pytest.mark.parametrize(
    ("config", "stage", "offload"),
    [("deepspeed_configs/zero3_bf16_cpuoffload_all.json", 3, True), ("examples/ds_z2_config.json", 2, False),
     ("mine.json", None, False), ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, 3, True)],
)  # fmt: skip
def test_a_deepspeed_stage_is_told_from_name_or_content(config, stage, offload):
    assert shared._stage(FOREIGN / "x.yaml", config) == (stage, offload)


def test_a_deepspeed_file_that_is_there_is_read(write, tmp_path):
    write(json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}), "zero3.json")
    assert shared._stage(tmp_path / "x.yaml", "zero3.json") == (2, False)


@pytest.mark.parametrize("text", ["a b", "it's", 'a"b', "1e5", "true", "a,b", "[x]", "~/rows.jsonl", "C:\\rows\\", "ä"])
def test_any_text_survives_command_and_experiment(write, tmp_path, text):
    translation = translate(write("base_model: a/b\ndatasets: [{path: x.jsonl}]\nlearning_rate: 1e-4\n"))
    translation.values["model.path"] = text
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "e.yaml").write_text(experiment(translation))
    wanted = os.path.expanduser(text)
    assert compose(shlex.split(command_line(translation))[3:]).tree["model"]["path"] == wanted
    assert compose(["+experiment=e"], [tmp_path]).tree["model"]["path"] == wanted


ODD = (
    5,
    -1,
    1.5,
    "text",
    [1],
    ["a"],
    {"a": 1},
    True,
    [None],
    [{"path": None}],
    [{"path": ["x"], "data_files": {"a": 1}}],
)


@pytest.mark.parametrize("name", ["axolotl_lora_sft", "llama_factory_qlora", "trl_qlora"])
def test_odd_values_are_listed_and_never_a_crash(monkeypatch, name):
    given = yaml.safe_load((FOREIGN / f"{name}.yaml").read_text())
    dialect = name.rpartition("_")[0] if name.startswith("llama") else name.partition("_")[0]
    monkeypatch.setattr(common, "_judge", lambda draft: None)  # only whether each key comes out somewhere
    with front() as loader:
        found = groups(loader)
    monkeypatch.setattr(common, "groups", lambda loader: found)
    for key in [*given, "fsdp_config", "deepspeed", "lr_scheduler_kwargs", "report_to", "test_datasets"]:
        for value in ODD:
            odd = {**given, key: value}
            monkeypatch.setattr(common, "_read", lambda path, odd=odd: odd)
            translation = translate(FOREIGN / f"{name}.yaml", dialect)
            listed = {common._root(entry.key, odd) for entry in translation.left}
            assert set(odd) == set(translation.carried) | listed, (key, value)
            yaml.safe_load(experiment(translation))


# Refusals, and what is printed


REFUSED = [
    ("- a\n- b\n", "not-a-config"),
    ("just words", "not-a-config"),
    ("", "not-a-config"),
    ("a: [1\n", "not-a-config"),
    ("services: {web: {image: x}}\nversion: 3\n", "unknown-dialect"),
    ("learning_rate: 1e-4\nnum_train_epochs: 1\nseed: 1\n", "unknown-dialect"),
]


@pytest.mark.parametrize(("text", "code"), REFUSED)
def test_what_is_no_config_of_theirs_is_refused(write, text, code):
    with pytest.raises(TuneforgeError) as raised:
        translate(write(text))
    assert raised.value.problems[0].code == code
    assert raised.value.problems[0].fix
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("words", [(), ("a.yaml", "b.yaml"), ("nowhere.yaml",), (str(FOREIGN),)])
def test_import_wants_one_file_that_is_there(answer, words):
    with pytest.raises(TuneforgeError) as raised:
        answer(*words)
    assert raised.value.problems[0].code == "no-import-file"


def test_a_file_is_never_overwritten(answer, write):
    out = write("mine: 1\n", "kept.yaml")
    with pytest.raises(TuneforgeError) as raised:
        answer(CONFIGS[0], out=out)
    assert raised.value.problems[0].code == "file-exists"
    assert out.read_text() == "mine: 1\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lf.yaml", "model_name_or_path: m\nstage: telepathy\ndataset: alpaca_en\nfinetuning_type: lora\n"),
        ("lf.yaml", "model_name_or_path: m\nstage: sft\ndataset: alpaca_en\nfinetuning_type: telepathy\n"),
        ("ax.yml", "base_model: m\nrl: telepathy\ndatasets: [{path: d, type: chatml.intel}]\n"),
    ],
)
def test_a_training_that_does_not_exist_here_gives_no_command(answer, capsys, write, name, text):
    """An objective that no recipe will ever have: a command would train something else without saying so."""
    file = write(text, name)
    out = file.parent / "experiment" / "theirs.yaml"
    for as_json in (False, True):
        with pytest.raises(TuneforgeError) as raised:
            answer(file, out=out, as_json=as_json)
        assert raised.value.problems[0].code == "no-such-training"
        assert "telepathy" in raised.value.problems[0].message
        assert not out.parent.exists()
        printed = capsys.readouterr().out
        assert "python -m tuneforge" not in printed
    assert json.loads(printed)["command"] is None


TRL = "model_name_or_path: m/x\ndataset_name: org/rows\nlearning_rate: 5.0e-7\nuse_peft: true\n"
FACTORY = "model_name_or_path: m/x\ndataset: rows\ntemplate: llama3\n"
AXOLOTL = "base_model: m/x\nsequence_len: 512\ndatasets: [{path: org/rows, type: chat_template}]\n"
OTHERS = {
    f"{TRL}loss_type: sigmoid\n": "DPO training has no recipe here, and the file sets loss_type=sigmoid",
    f"{TRL}loss_type: [sigmoid, sft]\n": "DPO",
    f"{TRL}loss_type: apo_zero_unpaired\n": "KTO",
    f"{TRL}loss_type: dr_grpo\n": "GRPO",
    f"{TRL}beta: 0.1\n": "DPO",
    f"{TRL}num_iterations: 2\ntemperature: 0.9\n": "GRPO",
    f"{TRL}use_vllm: true\n": "online",
    f"{TRL}num_ppo_epochs: 1\n": "PPO",
    f"{TRL}rloo_k: 4\n": "RLOO",
    f"{TRL}cpo_alpha: 0.5\nbeta: 0.1\n": "CPO",
    f"{TRL}teacher_model_name_or_path: m/y\n": "distillation",
    f"{TRL}step_separator: x\n": "PRM",
    f"{TRL}center_rewards_coefficient: 0.01\n": "reward",
    TRL.replace("org/rows", "preferences.jsonl"): "the rows have chosen and rejected",
    **{f"{FACTORY}stage: {stage}\nfinetuning_type: lora\n": f"stage: {stage}" for stage in ("rm", "ppo", "kto", "dpo")},
    f"{FACTORY}stage: dpo\npref_loss: orpo\nfinetuning_type: lora\n": "stage: dpo",
    f"{FACTORY}stage: sft\nfinetuning_type: oft\n": "finetuning_type: oft",
    f"{FACTORY}finetuning_type: freeze\nfreeze_trainable_layers: -2\n": "freeze_trainable_layers",
    FACTORY.replace("dataset:", "do_predict: true\neval_dataset:") + "finetuning_type: lora\n": "trains none",
    **{f"{AXOLOTL}rl: {kind}\n": f"rl: {kind}" for kind in ("dpo", "ipo", "kto", "orpo", "simpo", "grpo", "gdpo")},
    f"{AXOLOTL}rl: null\nreward_model: true\n": "reward_model: reward",
    f"{AXOLOTL}process_reward_model: true\n": "process_reward",
    f"{AXOLOTL}plugins: [axolotl.integrations.kd.KDPlugin]\nkd_trainer: true\n": "distillation",
    f"{AXOLOTL}diffusion_lm: true\n": "diffusion",
    f"{AXOLOTL}type_of_model: AutoModelForSequenceClassification\n": "reward",
    f"{AXOLOTL}adapter: llama-adapter\n": "adapter: llama-adapter",
    AXOLOTL.replace("chat_template}", "bradley_terry.chat_template}"): "datasets: reward",
}
"""A config of another training than next tokens -> what is said of it."""


def test_another_training_is_never_made_into_fine_tuning(write, monkeypatch):
    monkeypatch.setattr(common, "_judge", lambda draft: None)  # composing what gets no command takes its time
    write('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "preferences.jsonl")
    for text, said in OTHERS.items():
        assert said in "; ".join(translate(write(text)).replaced), text


@pytest.mark.parametrize(
    ("text", "method"),
    [
        (f"{AXOLOTL}adapter: lora\nload_in_8bit: true\n", "qlora_8bit"),
        (f"{AXOLOTL}adapter: qlora\nload_in_4bit: true\npeft_use_dora: true\n", "qdora"),
        (f"{TRL}load_in_8bit: true\n", "qlora_8bit"),
        (f"{FACTORY}finetuning_type: lora\nquantization_bit: 8\n", "qlora_8bit"),
        (f"{FACTORY}finetuning_type: lora\nquantization_bit: 4\nuse_dora: true\n", "qdora"),
    ],
)
def test_a_quantised_base_is_carried_with_its_bits_and_its_variant(write, method, text):
    translation = translate(write(text))
    assert translation.choices["method"] == method
    assert not {entry.key for entry in translation.left} & {
        "load_in_8bit",
        "quantization_bit",
        "peft_use_dora",
        "use_dora",
    }


def test_what_exists_here_under_another_name_is_carried(write):
    carried = translate(write(f"{FACTORY}finetuning_type: lora\nearly_stopping_steps: 2\nadditional_target: lm_head\n"))
    assert carried.values["callbacks.early_stopping.patience"] == 2
    assert carried.values["method.modules_to_save"] == ["lm_head"]
    carried = translate(write(f"{AXOLOTL}adapter: lora\nearly_stopping_patience: 3\nlora_modules_to_save: [lm_head]\n"))
    assert carried.values["callbacks.early_stopping.patience"] == 3
    assert carried.values["method.modules_to_save"] == ["lm_head"]


def test_frozen_layers_are_carried(write):
    carried = translate(write(f"{FACTORY}finetuning_type: freeze\nfreeze_trainable_layers: 3\n"))
    assert (carried.choices["method"], carried.values["method.last_layers"], carried.replaced) == ("freeze", 3, [])


def test_every_key_that_only_another_trainer_of_trl_reads_tells_it():
    ours = {key for keys in trl_trainers.KEYS.values() for key in keys.split()}
    of_sft = {name for target, _, _ in INSTALLED[:5] for name in read_signature(target).fields}
    assert not ours & of_sft
    for name in ("grpo.GRPO", "rloo.RLOO", "dpo.DPO", "kto.KTO", "reward.Reward", "distillation.Distillation"):
        module, trainer = name.split(".")
        fields = read_signature(f"trl.trainer.{module}_config.{trainer}Config").fields
        assert {field for field in fields if not field.startswith("_")} - of_sft - ours == set()


def test_json_has_the_whole_answer(answer):
    read = json.loads(answer(FOREIGN / "axolotl_qlora.yaml", as_json=True))
    assert list(read) == ["dialect", "command", "experiment", "left", "notes"]
    assert read["dialect"] == "axolotl"
    assert {"key", "value", "why"} == set(read["left"][0])
    assert yaml.safe_load(read["experiment"])["method"]["r"] == 16


def test_the_console_answer_can_be_pasted(answer, tmp_path):
    out = tmp_path / "experiment" / "theirs.yaml"
    printed = answer(FOREIGN / "axolotl_qlora.yaml", out=out)
    assert f"experiment written to {out}" in printed
    command = printed[printed.index("python -m") :].partition("\n\n")[0].replace("\\\n", "")  # as a shell joins lines
    assert shlex.split(command) == shlex.split(command_line(translate(FOREIGN / "axolotl_qlora.yaml")))
    assert "not carried " in printed
    assert max(map(len, printed.splitlines())) <= 130
    assert compose(["+experiment=theirs"], [tmp_path]).tree["method"]["name"] == "qlora"


def test_secrets_are_not_repeated(answer):
    assert "hf_secret_value" not in answer(FOREIGN / "llama_factory_qlora.yaml")
    assert "not-to-be-shown" not in answer(FOREIGN / "trl_qlora.yaml", as_json=True)


INSTALLED = [
    ("transformers.training_args.TrainingArguments", ("trl", "llama_factory"), 100),
    ("trl.trainer.sft_config.SFTConfig", ("trl",), 20),
    ("trl.trainer.model_config.ModelConfig", ("trl",), 15),
    ("trl.scripts.utils.ScriptArguments", ("trl",), 5),
    ("trl.scripts.utils.DatasetMixtureConfig", ("trl",), 3),
    ("trl.trainer.dpo_config.DPOConfig", ("trl",), 20),
    ("trl.trainer.kto_config.KTOConfig", ("trl",), 10),
    ("trl.trainer.reward_config.RewardConfig", ("trl",), 8),
]


@pytest.mark.parametrize(("target", "tools", "at_least"), INSTALLED)
def test_the_tables_know_every_key_of_the_installed_libraries(target, tools, at_least):
    fields = [name for name in read_signature(target).fields if not name.startswith("_")]
    assert len(fields) >= at_least
    for tool in tools:
        assert set(fields) - set(dialects()[tool].rules) == set()


def test_the_defaults_written_out_are_those_of_the_installed_trl():
    there = {
        name: option.default for target, _, _ in INSTALLED[:4] for name, option in read_signature(target).fields.items()
    }  # SFTConfig after TrainingArguments: it wins
    ours = dialects()["trl"].defaults
    compared = {name for name in ours if there[name] is not ...} - {"bf16"}  # None there: true unless fp16 is set
    assert len(compared) >= 18
    assert {name: ours[name] for name in compared} == {name: there[name] for name in compared}


def test_import_needs_no_heavy_library():
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tuneforge.importers.common import translate\n"
        f"translate(Path({str(CONFIGS[0])!r}))\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'lightning', 'peft', 'datasets')))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LLAMA_FACTORY = "model_name_or_path: m\nstage: sft\nfinetuning_type: lora\ndataset: mine\ndataset_dir: .\n"


@pytest.mark.parametrize(
    ("entry", "carried"),
    [
        (
            {"columns": {"prompt": "q", "query": "ctx", "response": "a", "history": "before", "system": "sys"}},
            {"instruction": "q", "input": "ctx", "output": "a", "history": "before", "system": "sys"},
        ),
        ({"columns": {"prompt": "instruction", "response": "answer"}}, {"output": "answer"}),
        (
            {"formatting": "sharegpt", "columns": {"messages": "talk", "system": "sys"}},
            {"conversations": "talk", "system": "sys"},
        ),
        ({"formatting": "sharegpt", "columns": {"messages": "messages", "system": "system"}}, {}),
    ],
)
def test_names_of_columns_are_carried_and_read(entry, carried, write):
    file = write(LLAMA_FACTORY)
    rows = [{"q": "hi", "ctx": "", "a": "ho", "answer": "ho", "instruction": "hi", "before": [], "sys": "S"}]
    rows[0] |= {"talk": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    rows[0] |= {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    write(json.dumps({"mine": {"file_name": "rows.json", **entry}}), "dataset_info.json")
    write(json.dumps(rows), "rows.json")
    values = translate(file).values
    assert {k.removeprefix("data.columns."): v for k, v in values.items() if "columns" in k} == carried
    form, columns = values["data.format"], carried
    (example,), _ = convert(read_rows(path=values["data.path"]), form, columns=columns)
    assert [m["content"] for m in example.messages] == (["S"] if "system" in carried else []) + ["hi", "ho"]


def test_axolotls_own_layout_is_carried(write):
    kind = (
        "{field_instruction: question, field_output: answer, field_input: input, format: 'x', system_prompt: be brief}"
    )
    file = write(f"base_model: m\nadapter: lora\ndatasets:\n  - {{path: rows.jsonl, type: {kind}}}\n")
    write('{"question": "a", "answer": "b"}\n', "rows.jsonl")
    translation = translate(file)
    columns = {k: v for k, v in translation.values.items() if "columns" in k}
    assert columns == {"data.columns.instruction": "question", "data.columns.output": "answer"}
    assert translation.values["data.format"] == "alpaca"
    assert "write it into the rows" in why(translation, "datasets[0].type.system_prompt")
    file = write(
        "base_model: m\nadapter: lora\ndatasets:\n  - {path: r.jsonl, type: chat_template, field_messages: talk}\n"
    )
    assert translate(file).values["data.columns.messages"] == "talk"


BESIDE = [
    ("dataset_info.json", '["tickets"]'),
    ("dataset_info.json", '{"tickets": {"file_name": 3.5, "columns": "text", "tags": [1]}}'),
    ("dataset_info.json", "[" * 100_000),
    ("ds.json", '{"zero_optimization": [3]}'),
    ("ds.json", "3"),
    ("ds.json", "{"),
]


@pytest.mark.parametrize(("name", "text"), BESIDE)
def test_a_damaged_file_beside_a_config_is_not_carried(write, name, text):
    write(text, name)
    file = write((FOREIGN / "llama_factory_lora_sft.yaml").read_text() + "\ndeepspeed: ds.json\n")
    left = {entry.key for entry in translate(file).left}
    assert ("dataset" if name == "dataset_info.json" else "deepspeed") in left


@pytest.mark.parametrize(
    "line",
    ["lora_rank: .inf", "per_device_train_batch_size: .nan", "max_steps: 1e999", "lora_dropout: nan"],
)
def test_a_number_without_end_is_not_carried(write, line):
    key = line.partition(":")[0]
    kept = [x for x in (FOREIGN / "llama_factory_lora_sft.yaml").read_text().splitlines() if not x.startswith(key)]
    file = write("\n".join([*kept, line]))
    assert why(translate(file), key) == "is not a finite number"


@pytest.mark.parametrize("kwargs", ["{min_lr: x}", "{min_lr_rate: [1]}", "{min_lr_rate: .nan}"])
def test_a_minimum_that_is_no_number_is_not_carried(write, kwargs):
    kept = [x for x in (FOREIGN / "trl_lora_sft.yaml").read_text().splitlines() if not x.startswith("lr_")]
    file = write("\n".join([*kept, "lr_scheduler_type: cosine_with_min_lr", f"lr_scheduler_kwargs: {kwargs}"]))
    assert "no numbers" in why(translate(file), "lr_scheduler_kwargs")
