"""Whole runs on the bundled model, a few steps each: what a user gets, looked at from outside."""

import json

import pytest
import torch
import yaml

from helpers import SHORT
from tuneforge.artifacts.folder import MARK
from tuneforge.artifacts.owned import RESULTS
from tuneforge.compat import enable_checkpointing, is_4bit
from tuneforge.data.batches import Collate, Rows
from tuneforge.data.encode import IGNORE, encode
from tuneforge.data.source import read

# Where nobody looks at samples.
QUICK = (*SHORT, "samples.num=0")


def eval_loss(ran, model, tokenizer) -> float:
    """The run's eval loss, worked out again from its folder with transformers alone, one document at a time."""
    from tuneforge.compose import structure
    from tuneforge.schema import Config

    tree = yaml.safe_load((ran.folder / "config.yaml").read_text())
    config = structure(Config, tree)
    examples = read(config.data, tree["data"], config.seed).eval
    settled = ran.record["settled"]
    documents = encode(
        examples, tokenizer, train_on=config.data.train_on, max_length=settled["max_length"], overlong="truncate"
    ).documents
    total, count = 0.0, 0
    for document in documents:
        batch = Collate(0)([Rows([document], settled["max_length"], packing=False)[0]])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=torch.ones_like(batch["input_ids"])).logits
        keep = batch["labels"] != IGNORE
        total += float(torch.nn.functional.cross_entropy(logits[keep], batch["labels"][keep], reduction="sum"))
        count += int(keep.sum())
    return total / count


def load_result(ran, quantised: bool = False):
    """The result as a stranger would load it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    adapter = ran.folder / "adapter"
    if not adapter.exists():
        folder = ran.folder / "model"
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    extra = {}
    if quantised:
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **extra), adapter)
    model.eval()
    for module in model.modules():
        module.training = is_4bit(module)  # in eval mode bitsandbytes repacks for bf16 on CPUs that have it
    return model, AutoTokenizer.from_pretrained(adapter)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_run_learns_and_its_result_gives_the_same_eval_loss_elsewhere(command, method):
    ran = command(f"method={method}", *QUICK, "optim.lr=2e-3", "trainer.max_steps=8", "trainer.val_check_interval=8")
    assert ran.code == 0, ran.err + ran.out
    before, after = (ran.record["metrics"][k]["eval/loss"] for k in ("before", "after"))
    assert after < 0.95 * before
    assert all(m["train/grad_norm"] > 0 for m in ran.metrics if "train/grad_norm" in m)
    model, tokenizer = load_result(ran, quantised=method == "qlora")
    assert eval_loss(ran, model, tokenizer) == pytest.approx(after, abs=1e-4)
    if method == "qlora":
        assert sum(map(is_4bit, model.modules())) == 4 * 7


def test_the_run_folder_holds_what_the_readme_says(finished):
    ran = finished(*SHORT)
    names = {p.name for p in ran.folder.iterdir()}
    assert names == {
        *("adapter", "checkpoints", "config.yaml", "metrics.jsonl", "provenance.json"),
        *("report.html", "run.json", "tensorboard", MARK, RESULTS),
    }
    assert ran.record["status"] == "done"
    assert ran.record["exit"] == 0
    assert ran.record["versions"]["torch"] == torch.__version__
    assert yaml.safe_load((ran.folder / "config.yaml").read_text())["trainer"]["max_steps"] == 4
    origins = json.loads((ran.folder / "provenance.json").read_text())
    assert origins["trainer.max_steps"]["where"] == "command line: trainer.max_steps=4"
    assert {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"} <= {
        p.name for p in (ran.folder / "adapter").iterdir()
    }
    keys = {"train/loss", "train/grad_norm", "train/lr", "train/tokens_per_s", "train/supervised_fraction", "epoch"}
    assert all(keys <= set(m) for m in ran.metrics if "train/loss" in m)
    assert [m["step"] for m in ran.metrics if "train/loss" in m] == [1, 2, 3, 4]
    assert [m["step"] for m in ran.metrics if "eval/loss" in m] == [0, 1, 2, 3, 4]


def test_the_console_is_quiet_and_ends_with_what_to_do_next(finished):
    ran = finished(*SHORT)
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert len(lines) < 32
    for label in ("eval loss ", "trained on ", "result ", "report ", "next "):
        assert any(line.startswith(label) for line in lines), ran.out
    assert "Lightning" not in ran.out
    assert "http" not in ran.out


def test_a_profile_of_another_machine_warns_in_one_line_and_runs(command):
    ran = command("method=qlora", "hardware=rtx4090", *QUICK, "batch.effective=10")
    assert ran.code == 0
    warnings = [line for line in ran.out.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "hardware=rtx4090 (24 GB, bf16) is not here" in warnings[0]
    assert ran.record["hardware"]["profile"]["vram_gb"] == 24
    assert ran.record["hardware"]["present"]["device"] == "cpu"


def test_a_profile_that_is_required_stops_before_anything_is_written(refused, tmp_path):
    said = refused("hardware=h100", "hardware.require=true", f"hydra.run.dir={tmp_path / 'run'}")
    assert "hardware=h100" in said
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_losses_and_another_does_not(command, finished):
    first, second, other = finished(*SHORT), command(*SHORT), command(*QUICK, "seed=18")
    assert first.losses == second.losses
    assert first.losses != other.losses


@pytest.mark.parametrize("micro", [("batch.per_device=8", 1), ("batch.per_device=1", 8)])
def test_accumulation_keeps_the_loss(command, finished, micro):
    """8 rows at once and 8 times 1 row are the same step, whatever rows hold."""
    setting, accumulate = micro
    options = [*QUICK, "data.packing=false", "task_recipe.dropout=0", setting]
    ran = command(*options)
    assert ran.record["settled"]["accumulate"] == accumulate
    whole = finished(*[o for o in options if "per_device" not in o], "batch.per_device=4")
    assert ran.losses == pytest.approx(whole.losses, rel=1e-5)


def test_checkpointing_is_really_on_and_saves_memory(model_folders):
    """Bytes saved for backward shrink: in eval mode, as transformers hands models out, they would not."""
    from tuneforge.methods.lora import Lora

    sizes = {}
    for checkpointing in (False, True):
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
        model = Lora(r=4).apply(base)
        if checkpointing:
            enable_checkpointing(base)
        model.train()
        saved = []

        def keep(tensor, saved=saved):
            saved.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model(input_ids=torch.randint(5, 300, (2, 64)), use_cache=False)
        sizes[checkpointing] = sum(saved)
    assert sizes[True] < 0.5 * sizes[False]


def test_modules_are_in_train_mode_during_training(command):
    from tuneforge.callbacks.start_checks import StartChecks

    class Asleep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(1, 1).eval()
            self.context = None

    check = StartChecks()
    check.done = check.room_checked = True
    module = Asleep()
    module.context = type("C", (), {"config": None})()
    with pytest.raises(AssertionError, match="eval mode"):
        check.on_train_start(None, module)


def test_only_adapters_are_in_a_checkpoint(finished):
    ran = finished(*SHORT)
    (checkpoint, *_) = sorted((ran.folder / "checkpoints").glob("step-*/state.pt"))
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert names
    assert all("lora_" in n for n in names)


def test_shuffled_answers_are_a_control(command):
    ran = command(*QUICK, "trainer.max_steps=1", "data.shuffle_answers=true")
    assert ran.code == 0


def test_an_adapter_can_be_continued(command):
    first = command(*QUICK, "optim.lr=2e-3")
    second = command(*QUICK, "trainer.max_steps=1", f"model.adapter={first.folder / 'adapter'}")
    assert second.record["metrics"]["before"]["eval/loss"] == pytest.approx(
        first.record["metrics"]["after"]["eval/loss"], abs=1e-5
    )


def test_a_run_folder_is_never_overwritten(finished, refused, tmp_path):
    ran = finished(*SHORT).copied(tmp_path / "run")
    before = (ran.folder / "run.json").read_bytes()
    assert "already holds a run" in refused(*SHORT, f"hydra.run.dir={ran.folder}")
    assert (ran.folder / "run.json").read_bytes() == before
