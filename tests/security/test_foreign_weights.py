"""Folders of weights from elsewhere: their tensors are read, and nothing in them runs, asks, or leads elsewhere."""

import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from tuneforge import adapters, models
from tuneforge.artifacts import checkpoint_io, whole
from tuneforge.errors import TuneforgeError
from tuneforge.generation import generation_config
from tuneforge.safe_files import code_digest
from tuneforge.schema.model import Model


class Touch:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(model_folders, tmp_path):
    """A local model that may be changed."""
    return Path(shutil.copytree(model_folders["llama"], tmp_path / "model"))


@pytest.fixture
def no_answer(monkeypatch):
    """Nobody is asked anything; who asks gets "y"."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    yield
    assert asked == []


def model(folder, **options):
    return Model(name="hf", path=str(folder), **options)


def load(described):
    """All of a model, as a run loads it."""
    import torch

    models.check_weights(described)
    config = models.load_config(described)
    models.load_tokenizer(described)
    return models.load_model(described, config, torch.float32)


def change(file: Path, **values):
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**held, **values}))


def refusal(call, *arguments):
    with pytest.raises(TuneforgeError) as refused:
        call(*arguments)
    return refused.value.problems[0]


# ---- pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl", "consolidated.00.ckpt"])
def test_no_pickled_weights_are_read(canary, folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"weight": Touch(canary.mark)}))
    problem = refusal(load, model(folder))
    assert (problem.code, problem.path) == ("pickled-weights", "model.path")
    assert name in problem.message
    assert "safetensors" in problem.fix


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"]
)
def test_pickles_beside_safetensors_are_not_read(canary, folder, name):
    (folder / name).write_bytes(pickle.dumps(Touch(canary.mark)))
    assert load(model(folder)).num_parameters() > 0


def test_no_pickled_adapter_is_read(canary, adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "kept")
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({"weight": Touch(canary.mark)}))
    problem = refusal(adapters.read_config, str(adapter), "model.adapter")
    assert (problem.code, problem.path) == ("pickled-weights", "model.adapter")


def test_a_checkpoint_of_another_program_is_not_unpickled(canary, tmp_path):
    """With a manifest that fits: a hash tells what was damaged, and not who wrote it."""
    import torch

    checkpoint = tmp_path / "run" / "checkpoints" / "step-0000001"

    def fill(folder):
        torch.save({"state_dict": Touch(canary.mark)}, folder / "state.pt")
        return [folder / "state.pt"]

    whole.write(checkpoint, fill, whole.ALONE)
    problem = refusal(checkpoint_io.load, checkpoint)
    assert (problem.code, problem.path) == ("pickled-weights", "resume")


# ---- code of models

CODE = (
    "from pathlib import Path\nPath({0!r}).touch()\n"
    # Classes of their own: transformers marks a class that it has loaded so, for all that use it afterwards.
    "from transformers import LlamaConfig, LlamaForCausalLM\n"
    "class Config(LlamaConfig):\n    pass\n"
    "class Net(LlamaForCausalLM):\n    config_class = Config\n"
)
MAPS = {
    "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", None]},
    "config.json": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Net"},
    "processor_config.json": {"AutoProcessor": "evil.Processor"},
    "preprocessor_config.json": {"AutoFeatureExtractor": "evil.Extractor"},
}


@pytest.mark.parametrize("file", MAPS)
@pytest.mark.parametrize("unknown", [False, True])
def test_no_code_of_a_folder_runs_or_is_asked_about(canary, folder, no_answer, file, unknown):
    (folder / "evil.py").write_text(CODE.format(str(canary.mark)))
    change(folder / file, auto_map=MAPS[file])
    if unknown:
        change(folder / "config.json", model_type="evil")
        change(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    with suppress(TuneforgeError):  # with classes that transformers knows, the code is not needed
        load(model(folder))
        assert not unknown


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_no_code_of_an_adapter_runs_or_is_asked_about(canary, adapter, no_answer, file):
    (adapter / "evil.py").write_text(CODE.format(str(canary.mark)))
    shutil.copy(Path(adapter.parent / "model" / file), adapter / file)
    change(adapter / file, auto_map=MAPS[file])
    described = Model(name="hf", path=str(adapter.parent / "model"), adapter=str(adapter))
    tokenizer = models.load_tokenizer(described)
    shutil.copy(adapter.parent / "model" / "tokenizer.json", adapter / "tokenizer.json")
    with suppress(TuneforgeError):
        adapters._check_vocabulary(str(adapter), "base", tokenizer)


def test_code_of_a_folder_needs_its_hash_and_runs_with_it(refused, folder, tmp_path):
    """Following the message leads to a config that is accepted; a changed file, to a refusal."""
    from tuneforge.compose import compose

    (folder / "evil.py").write_text(CODE.format(str(tmp_path / "ran")))
    change(folder / "config.json", auto_map=MAPS["config.json"])
    typed = ["model=hf", f"model.path={folder}", "model.trust_remote_code=true"]
    for revision in ([], [f"model.revision={'a' * 40}"], ["model.revision=main"]):
        said = refused(*typed, *revision)
        assert f"model.revision={code_digest(folder)}" in said
    composed = compose([*typed, f"model.revision={code_digest(folder)}"])
    (folder / "evil.py").write_text("changed = True\n")
    assert "model.revision" in refused(*typed, f"model.revision={composed.config.model.revision}")
    assert not (tmp_path / "ran").exists()


def test_code_behind_a_link_is_part_of_the_hash(canary, folder, tmp_path):
    """`auto_map` may name a file in a folder that is a link."""
    before = code_digest(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "evil.py").write_text("one")
    (folder / "inner").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(folder)
    linked = code_digest(folder)
    (tmp_path / "elsewhere" / "evil.py").write_text("two")
    assert len({before, linked, code_digest(folder)}) == 3


def test_a_recorded_run_cannot_allow_code(canary, refused, recorded, folder):
    """Who types it again has chosen it; the message shows what to read, and the advice is taken."""
    (folder / "evil.py").write_text(CODE.format(str(canary.mark)))
    trusted = {"path": str(folder), "trust_remote_code": True, "revision": code_digest(folder)}
    run = recorded(tree={f"model.{key}": value for key, value in trusted.items()})
    for arguments in (["plan", str(run)], ["--from", str(run)], ["lr_find", "--from", str(run)]):
        said = refused(*arguments)
        assert f"read that code at {trusted['revision']}, then add model.trust_remote_code=true" in said
    from tuneforge.cli import run as command

    assert command(["--from", str(run), "--cfg", "job", "model.trust_remote_code=false"]) == 0


def test_code_of_the_hub_is_that_of_the_pinned_commit_and_nobody_is_asked(canary, folder, no_answer, monkeypatch):
    """Also where a model is built without weights, of a config that transformers has given the repository's name."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM
    from transformers.models.auto import auto_factory

    asked = []

    def load_class(reference, repository, **options):
        asked.append((reference, repository, options["code_revision"]))
        return type("Net", (LlamaForCausalLM,), {})

    monkeypatch.setattr(AutoModelForCausalLM, "register", lambda *_, **__: None)
    monkeypatch.setattr(auto_factory, "get_class_from_dynamic_module", load_class)
    config = models.load_config(model(folder))
    config.auto_map = {"AutoModelForCausalLM": "some/repo--evil.Net"}
    for trusted in (False, True):
        described = model(folder, trust_remote_code=trusted, revision="a" * 40)
        assert models.from_config(AutoModelForCausalLM, described, config).num_parameters() > 0
    assert asked == [("evil.Net", "some/repo", "a" * 40)]


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation"])
def test_no_kernel_of_the_hub_is_fetched(canary, folder, monkeypatch, name):
    """Where the package `kernels` is installed, transformers would run it."""
    from transformers.integrations import hub_kernels

    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    monkeypatch.setattr(hub_kernels, "lazy_load_kernel", lambda *_, **__: pytest.fail("a kernel was fetched"))
    change(folder / "config.json", **{name: "evil/kernel"})
    for wanted in ("auto", "sdpa"):
        problem = refusal(load, model(folder, attn_implementation=wanted))
        assert (problem.code, problem.path) == ("remote-code-elsewhere", "model.path")


@pytest.mark.parametrize("file", MAPS)
def test_no_code_of_another_repository_is_pinned_by_a_folder(canary, refused, folder, file):
    change(folder / file, auto_map={"AutoModel": "evil/repo--evil.Net"})
    pinned = f"model.revision={code_digest(folder)}"
    said = refused("model=hf", f"model.path={folder}", "model.trust_remote_code=true", pinned)
    assert "evil/repo--evil.Net" in said


def test_a_model_with_an_adapter_in_its_folder_is_not_redirected(canary, folder):
    change(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="evil/base", r=1)
    problem = refusal(load, model(folder))
    assert (problem.code, problem.path) == ("adapter-in-model", "model.path")


# ---- files of any content

ODD = {
    "config.json": [
        "[" * 100_000, "[]", "", {"model_type": ["a"]}, {"hidden_size": [1]}, {"num_attention_heads": 0},
        {"hidden_act": "__import__('os')"}, {"vocab_size": 10**15}, {"quantization_config": {"quant_method": ["x"]}},
        {"rope_parameters": {"rope_type": "x"}}, {"to_dict": 5}, {"text_config": {"model_type": "evil"}},
    ],
    "tokenizer_config.json": ["[" * 100_000, {"tokenizer_class": "AutoConfig"}, {"tokenizer_class": "Trainer"}],
    "tokenizer.json": ["[" * 100_000],
    "generation_config.json": [
        "[" * 100_000, "[]", {"eos_token_id": "x"}, {"eos_token_id": {"a": 1}}, {"watermarking_config": {"x": 1}},
        {"num_return_sequences": 7}, {"cache_implementation": "x"},
    ],
}  # fmt: skip


def load_all(described):
    generation_config(described, load(described).config, [1])


@pytest.mark.parametrize("file", ODD)
def test_files_of_any_content_are_told(canary, folder, file):
    kept = (folder / file).read_text() if (folder / file).exists() else "{}"
    for content in ODD[file]:
        (folder / file).write_text(content if isinstance(content, str) else kept)
        if not isinstance(content, str):
            change(folder / file, **content)
        problem = refusal(load_all, model(folder))
        assert problem.path == "model.path", content
        assert len(str(problem)) < 1500


@pytest.mark.parametrize("content", [c for c in ODD["config.json"] if isinstance(c, str) or "hidden_act" not in c])
def test_a_config_of_any_content_is_planned_or_told(canary, folder, capfd, content):
    from tuneforge.cli import run

    kept = (folder / "config.json").read_text()
    (folder / "config.json").write_text(content if isinstance(content, str) else kept)
    if not isinstance(content, str):
        change(folder / "config.json", **content)
    assert run(["plan", "model=hf", f"model.path={folder}"]) in (0, 2, 3)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("place", ["tokenizer.json", "model.safetensors", "more.json", "additional_chat_templates/x"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_pipe_or_device_is_read(canary, folder, place, kind):
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / place)
    else:
        (folder / place).symlink_to("/dev/zero")
    problem = refusal(models.check_weights, model(folder))
    assert (problem.code, problem.path) == ("special-file", "model.path")
    if "/" not in place:
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        assert refusal(adapters.read_config, str(folder), "model.adapter").code == "special-file"
    (folder / place).unlink()


# ---- the options of adapters


@pytest.fixture
def adapter(canary, folder):
    """A LoRA adapter for the model beside it, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    made = folder.parent / "adapter"
    tuned = get_peft_model(load(model(folder)), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tuned.save_pretrained(made)
    return made


FOLLOWED = {
    "megatron": {"megatron_config": {"a": "b"}, "megatron_core": "canary_module"},
    "megatron without texts": {"megatron_config": {}, "megatron_core": "canary_module"},
    "auto mapping": {"auto_mapping": {"base_model_class": "run", "parent_library": "canary_module"}},
    "corda cache": {"corda_config": {"cache_file": "MARK", "corda_method": "ipm"}, "init_lora_weights": "corda"},
    "corda covariance": {"corda_config": {"covariance_file": "MARK"}},
    "lora-ga cache": {"lora_ga_config": {"cache_file": "MARK"}},
    "arrow": {"arrow_config": {"task_adapters": ["evil/adapter"]}},
    "nested list": {"eva_config": {"x": [{"y": "MARK"}]}},
    "prompt's tokenizer": {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "x",
        "num_virtual_tokens": 1,
        "tokenizer_name_or_path": "evil/tokenizer",
        "tokenizer_kwargs": {"trust_remote_code": True},
    },
    "prompt's text": {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "x",
        "num_virtual_tokens": 1,
        "tokenizer_name_or_path": "evil/tokenizer",
    },
    "prompt's state": {
        "peft_type": "MULTITASK_PROMPT_TUNING",
        "prompt_tuning_init": "AVERAGE_SOURCE_TASKS",
        "prompt_tuning_init_state_dict_path": "MARK",
        "num_virtual_tokens": 1,
    },
    "adapters of a mixture": {"peft_type": "XLORA", "adapters": {"a": "evil/adapter"}, "hidden_size": 4},
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_no_option_of_an_adapter_is_followed(canary, adapter, no_answer, kind):
    file = adapter / "adapter_config.json"
    given = json.loads(json.dumps(FOLLOWED[kind]).replace("MARK", str(canary.mark)))
    file.write_text(json.dumps({"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "peft_type": "LORA", **given}))
    described = Model(name="hf", path=str(adapter.parent / "model"), adapter=str(adapter))
    problem = refusal(adapters.check, described, {}, None, models.load_tokenizer(described))
    assert problem.path == "model.adapter"
    assert problem.code in ("adapter-names-code", "no-adapter", "adapter-does-not-fit"), problem
    assert "adapter_config.json" in str(problem) or problem.code != "adapter-names-code"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", "[]", "null", '{"peft_type": 3}', '{"peft_type": []}', "\xff", ""]
)
def test_what_is_no_adapter_config_is_told(canary, adapter, text):
    (adapter / "adapter_config.json").write_text(text, encoding="latin1")
    assert refusal(adapters.read_config, str(adapter), "model.adapter").path == "model.adapter"


def test_an_adapter_as_it_is_saved_is_taken(adapter):
    described = Model(name="hf", path=str(adapter.parent / "model"), adapter=str(adapter))
    assert adapters.read_config(str(adapter), "model.adapter").r == 2
    assert load(described).num_parameters() > 0
