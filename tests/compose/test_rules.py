"""What cannot go together is refused with both parties and the way out; what does nothing is said."""

import functools
import re

import pytest

from advice import ways
from tuneforge import rules
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError

BY_ITSELF = ("callbacks.early_stopping.monitor=eval/loss", "callbacks.early_stopping.mode=min")

BROKEN = [
    ("remote-code-unpinned", ["model=hf", "model.path=x", "model.trust_remote_code=true", "model.revision=main"]),
    ("adapter-on-random-base", ["model.init=scratch"]),
    ("adapter-without-method", ["method=full", "model.adapter=x"]),
    ("rewritten-quantised-base", ["method=qlora", "method.init_lora_weights=olora"]),
    ("compile-dropout", ["model.torch_compile=true", "method.lora_dropout=0.1"]),
    ("no-base-to-compare", ["regularise.kl=0.1", "method=full"]),
    ("no-base-to-compare", ["regularise.kl=0.1", "method=pissa"]),
    ("no-base-to-compare", ["regularise.kl=0.1", "method.bias=all"]),
    ("no-next-tokens", ["task_recipe=classification", "method=eva"]),
    ("method-cannot-split", ["strategy=fsdp", "method=adalora"]),
    ("method-cannot-split", ["strategy=fsdp", "method=vblora"]),
    ("optimizer-cannot-split", ["strategy=fsdp", "method=qlora"]),
    ("no-tensor-parallel", ["strategy=fsdp_tp", "method=ia3"]),
    ("no-tensor-parallel", ["strategy=fsdp_tp", "method=dora"]),
    ("no-tensor-parallel", ["strategy=fsdp_tp", "method.modules_to_save=[embed_tokens]"]),
    ("no-tensor-parallel", ["strategy=fsdp_tp", "optim=muon"]),
    ("no-tensor-parallel", ["strategy=fsdp_tp", "regularise.ewc=1"]),
    ("no-tensor-parallel", ["strategy=fsdp_tp", "model.torch_compile=true", "method.lora_dropout=0"]),
    ("uneven-groups", ["strategy=fsdp_tp", "trainer.devices=3", "data.packing=true"]),
    ("uneven-groups", ["strategy=fsdp_tp", "trainer.devices=2", "strategy.tensor_parallel_size=4"]),
    ("prompt-packing", ["method=prompt_tuning", "data.packing=true"]),
    ("prefix-checkpointing", ["method=prefix_tuning", "trainer.gradient_checkpointing=true"]),
    ("unknown-format", ["data.format=alpcaa"]),
    ("unknown-format", ["data.format=os.path.join"]),
    ("unknown-format", ["data.format=tuneforge.data.formats.nothing"]),
    ("path-without-reader", ["data.path=rows.jsonl"]),
    ("path-without-reader", ["data.split.eval_path=rows.jsonl"]),
    ("labels-without-objective", ["data.format=classification"]),
    ("labels-without-objective", ["task_recipe=classification", "data.format=text"]),
    ("labelled-row", ["task_recipe=classification", "data.packing=true"]),
    ("labelled-row", ["task_recipe=classification", "data.overlong=chunk", "data.train_on=all"]),
    ("no-next-tokens", ["task_recipe=classification", "data.replay.fraction=0.1"]),
    ("no-next-tokens", ["task_recipe=classification", "regularise.kl=0.1"]),
    ("no-eval-split", ["data.split.eval_fraction=0"]),
    ("chunked-answers", ["data.overlong=chunk"]),
    ("unknown-measure", ["callbacks.checkpoints.monitor=eval/acuracy"]),
    ("unknown-measure", ["task_recipe=classification", "callbacks.checkpoints.monitor=eval/perplexity"]),
    ("measure-upside-down", ["callbacks.checkpoints.mode=max"]),
    ("two-bests", ["callbacks.early_stopping.patience=2", "callbacks.early_stopping.monitor=eval/perplexity"]),
    ("nothing-to-restore", ["~callbacks.checkpoints", "callbacks.nan_guard.action=stop", *BY_ITSELF]),
    ("nothing-to-restore", ["~callbacks.checkpoints", "callbacks.early_stopping.patience=2", *BY_ITSELF]),
    ("outside-the-run", ["+logger.more={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: /tmp}"]),
    ("password-in-config", ["logger=mlflow", "logger.mlflow.tracking_uri='http://me:secret@host/'"]),
    ("no-forgetting-tasks", ["model=hf", "model.path=x", "callbacks.forgetting_check.action=stop"]),
    ("nothing-to-generate", ["samples.num=2", "callbacks.generation_watch.action=stop"]),
    ("no-next-tokens", ["task_recipe=classification", "callbacks.forgetting_check.action=repair"]),
    ("single-is-one-device", ["strategy=single", "trainer.devices=2"]),
    ("metal-is-one-device", ["hardware=mps", "trainer.devices=2"]),
    ("required-hardware-unused", ["hardware=h100", "hardware.require=true", "trainer.accelerator=cpu"]),
    ("precision-not-there", ["hardware=cpu", "trainer.precision=16-mixed"]),
    ("precision-not-there", ["hardware=t4", "trainer.precision=bf16-mixed"]),
    ("attention-not-there", ["hardware=t4", "model.attn_implementation=flash_attention_2"]),
    ("attention-not-there", ["trainer.accelerator=cpu", "model.attn_implementation=flash_attention_2"]),
    ("attention-not-there", ["hardware=cpu", "model.attn_implementation=flex_attention"]),
    ("optimizer-on-flat-parts", ["strategy=deepspeed_zero1", "optim=adafactor"]),
    ("ewc-cannot-split", ["strategy=fsdp", "regularise.ewc=1"]),
    ("gradients-split", ["strategy=deepspeed_zero2", "method=adalora"]),
    ("gradients-split", ["strategy=deepspeed_zero2", "regularise.ewc=1"]),
    ("sanity-on-split-weights", ["strategy=deepspeed_zero3", "sanity.overfit_one_batch=true"]),
    ("zero-precision", ["strategy=deepspeed_zero3", "trainer.precision=16-mixed"]),
]


@functools.cache
def refused(overrides):
    """The problems of a composition, and the rules that it breaks."""
    breaks, seen = rules.broken, set()

    def noting(config, tree):
        seen.update(check.__name__ for check in rules.RULES if check(config, tree) is not None)
        return breaks(config, tree)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "broken", noting)
        try:
            compose(overrides)
        except TuneforgeError as error:
            return error.problems, seen
    return [], seen


@pytest.mark.parametrize(("code", "overrides"), BROKEN)
def test_a_broken_rule_names_both_parties_and_the_way_out(code, overrides):
    (problem,), _ = refused(tuple(overrides))
    assert problem.code == code
    assert problem.origin
    assert problem.fix


NO_OVERRIDE = {
    "adapter-without-method": "the method that the adapter names",
    "outside-the-run": "a relative path",
    "password-in-config": "variables of the environment",
    "two-bests": "two keys together",
    "unknown-format": "a name of a list",
    "unknown-measure": "a name of a list",
}
"""Codes of rules whose advice is no override that could be tried."""


def test_each_way_out_of_a_broken_rule_leads_to_a_config_that_composes():
    tried = set()
    for code, overrides in BROKEN:
        (problem,), _ = refused(tuple(overrides))
        named = ways(problem.fix, problem.path)
        assert named or code in NO_OVERRIDE, problem
        for way in named:
            if (problem.fix, way) not in tried:
                tried.add((problem.fix, way))
                typed = [re.sub("<.*>", "0" * 40, o) for o in way.taken(overrides)]
                problems, _ = refused(tuple(typed))
                assert not problems, (problem.fix, typed, problems)
    assert len(tried) > 50


def test_a_quantised_base_needs_a_strategy_with_proof_whatever_its_name(tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("defaults: [fsdp_tp]\nname: ddp\n")
    (tmp_path / "strategy" / "yours.yaml").write_text("defaults: [ddp]\nname: yours\n")
    with pytest.raises(TuneforgeError, match="no proof of equal losses"):
        compose(["method=qlora", "strategy=mine"], [tmp_path])
    assert compose(["method=lora", "strategy=mine"], [tmp_path])
    assert compose(["method=qlora", "strategy=yours"], [tmp_path])


def test_every_rule_has_a_fault_that_breaks_it():
    """A rule that nothing can break is a rule that does not work."""
    broken = set().union(*(refused(tuple(overrides))[1] for _, overrides in BROKEN))
    assert broken == {name for name, _ in rules.listing()} - {"a_quantised_base_has_a_proven_strategy"}


@pytest.mark.parametrize(
    ("kind", "method", "code"),
    [
        ({"model_type": "mamba2"}, "lora", "packing-leaks"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "qlora", "already-quantised"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "full", "already-quantised"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "lora", None),
        ({"model_type": "llama"}, "qlora", None),
    ],
)
def test_what_the_models_config_tells_is_refused_before_its_weights_load(kind, method, code):
    composed = compose([f"method={method}"])
    found = rules.architecture_problems(composed.config, kind, composed.tree["method"])
    assert [p.code for p in found] == ([code] if code else [])


def test_an_initialisation_is_refused_where_its_method_cannot_use_it():
    """Whatever the option file is called that asks for it."""
    composed = compose(["method=lora", "method.init_lora_weights=olora"])
    found = rules.architecture_problems(composed.config, {"model_type": "gpt2"}, composed.tree["method"])
    assert ["OLoRA decomposes it the wrong way round" in p.message for p in found] == [True]


def test_the_present_device_is_asked_too():
    config = compose(["trainer.precision=bf16-mixed"]).config
    (problem,) = rules.device_problems(config, "Tesla T4", "cuda", False, 7.5)
    assert problem.path == "trainer.precision"
    assert "Tesla T4" in problem.message
    assert list(rules.device_problems(config, "NVIDIA H100", "cuda", True, 9.0)) == []
    assert list(rules.device_problems(config, "CPU", "cpu", False, None)) == []


INERT = [
    (["method=full", "task_recipe.rank=4"], "task_recipe.rank", "the method does not read it"),
    (["method=full", "task_recipe.targets=[q_proj]"], "task_recipe.targets", "the method does not read it"),
    (["method.r=4", "task_recipe.rank=8"], "task_recipe.rank", "the method does not read it"),
    (["trainer.gradient_clip_val=1", "method.clip=0.5"], "method.clip", "trainer.gradient_clip_val does not"),
    (["optim.lr=1e-3", "model.lr_scale=2"], "model.lr_scale", "optim.lr does not read it"),
    (["method.lr.pretrain=1e-3"], "method.lr.pretrain", "optim.lr does not read it"),
    (["trainer.max_steps=5", "trainer.max_epochs=3"], "trainer.max_epochs", "trainer.max_steps is given"),
    (["batch.effective_tokens=4096", "batch.effective=16"], "batch.effective", "batch.effective_tokens is given"),
    (["task_recipe=classification", "data.train_on=all"], "data.train_on", "the loss is on the label"),
    (["task_recipe=classification", "samples.max_new_tokens=9"], "samples.max_new_tokens", "predicted, not written"),
    (["data.labels=[a,b]"], "data.labels", "learns no labels"),
    (["samples.num=0", "samples.max_new_tokens=9"], "samples.max_new_tokens", "samples.num is 0"),
    (["callbacks.spike_guard.rewind_steps=9"], "callbacks.spike_guard.rewind_steps", "it is for action=repair"),
    (["callbacks.data_guard.action=none", "callbacks.data_guard.drift=3"], "callbacks.data_guard.drift", "is none"),
    (["callbacks.forgetting_check.repairs=2"], "callbacks.forgetting_check.repairs", "it is for action=repair"),
    (["samples.num=1", "callbacks.generation_watch.margin=0.3"], "callbacks.generation_watch.margin", "is under 3"),
    (["callbacks.early_stopping.min_delta=1"], "callbacks.early_stopping.min_delta", "patience is null"),
    (["callbacks.early_stopping.patience=9"], "callbacks.early_stopping.patience", "the run has 5 evaluations"),
    (["model.revision=main"], "model.revision", "has no revisions"),
    (["strategy=single", "strategy.process_group_backend=gloo"], "strategy.process_group_backend", "takes no"),
    (["trainer.devices=1", "strategy.process_group_backend=gloo"], "strategy.process_group_backend", "one process"),
    (
        ["data=file", "data.path=x", "data.split.eval_path=y", "data.split.eval_fraction=0.2"],
        "data.split.eval_fraction",
        "data.split.eval_path is given",
    ),
]


@pytest.mark.parametrize(("overrides", "path", "says"), INERT)
def test_a_key_without_effect_is_said(overrides, path, says):
    warnings = {w.path: w for w in compose(overrides).warnings}
    assert says in warnings[path].message
    assert warnings[path].origin.startswith("command line: ")


def test_a_key_without_effect_in_a_file_of_the_users_own_is_said(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntask_recipe:\n  rank: 4\n")
    (warning,) = compose(["+experiment=mine", "method=full"], [tmp_path]).warnings
    assert warning.origin == f"{tmp_path}/experiment/mine.yaml:3"


def test_what_ships_warns_of_nothing():
    for choice in ("method=full", "method=qlora", "task_recipe=pretrain", "strategy=ddp", "scheduler=constant"):
        assert compose([choice]).warnings == ()


def test_a_method_without_a_rate_for_the_objective_says_which_it_has():
    with pytest.raises(TuneforgeError) as raised:
        compose(["task_recipe.objective=stf"])
    (problem,) = raised.value.problems
    assert problem.path == "optim.lr"
    assert "method.lr.stf, which is not there" in problem.message
    assert "did you mean 'sft'?" in problem.fix
