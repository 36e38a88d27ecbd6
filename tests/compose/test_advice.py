"""What errors advise can be typed: found in the source, so that a new advice is tried as well.

Rules are followed whole in test_rules.py. Whether following an advice reaches a run is tested beside what it is about:
`FOLLOWED` says where.
"""

import copy
import functools

from omegaconf import OmegaConf

import advice
from compose.test_rules import BROKEN
from tuneforge.compose import compose
from tuneforge.plugins.discovery import core_options
from tuneforge.schema.check import check
from tuneforge.schema.signature import read_signature

FOLLOWED = {
    "attention-unavailable": "methods/test_architectures.py::test_the_attention_that_runs_is_chosen_or_advised",
    "batch-missed": "unit/test_batches.py::test_a_step_that_misses_what_was_asked_for_is_told_and_the_advice_meets_it",
    "garbled-text": "unit/test_encoding.py::test_a_wrong_choice_is_refused_and_its_advice_works",
    "mixed-splits": "unit/test_folder_splits.py"
    "::test_files_of_no_split_beside_a_train_file_are_refused_and_the_advice_works",
    "no-default-template": "unit/test_templates.py::test_several_templates_need_a_default_or_a_choice",
    "no-template-token": "unit/test_templates.py"
    "::test_an_answer_without_the_reasoning_that_its_prompt_opens_is_refused_or_skipped",
    "no-train-files": "unit/test_folder_splits.py::test_a_folder_without_train_files_is_refused_and_the_advice_works",
    "not-utf8": "unit/test_encoding.py::test_the_advice_reads_the_file_right",
    "out-of-memory": "train/test_rerun.py::test_what_is_advised_for_going_on_composes_and_leaves_the_run_its_identity",
    "packing-leaks": "methods/test_architectures.py::test_without_positions_packing_is_refused_and_the_advice_trains",
    "slow-tokenizer": "unit/test_tokenizer_files.py"
    "::test_a_tokenizer_without_offsets_is_refused_where_answers_are_masked",
    "storage-elsewhere": "security/test_foreign_sweeps.py::test_the_advice_of_the_error_opens_the_database",
    "template-always-prompts": "unit/test_templates.py"
    "::test_a_template_that_always_asks_for_an_answer_is_refused_and_the_advice_works",
    "too-long-for-model": "methods/test_names.py::test_a_row_and_virtual_tokens_share_the_models_positions",
    "vocabulary-mismatch": "train/test_adapters.py::test_an_adapter_with_other_tokens_is_refused_and_the_fix_works",
    "wrong-encoding": "unit/test_encoding.py::test_a_wrong_choice_is_refused_and_its_advice_works",
    "wrong-value": "methods/test_names.py::test_options_that_would_fail_in_training_are_refused",
}
"""Code -> the test in which an advice of it is followed and leads to a run, a file or a model."""

TYPED = {
    *("bad-rows", "no-format", "unknown-flag"),
    *("adapter-does-not-fit", "adapter-in-model", "already-quantised", "broken-template", "cannot-combine"),
    *("cannot-escape", "cannot-split", "disk-full", "diverged", "does-not-divide", "does-not-fit"),
    *("empty-split", "flat-loss", "forgetting", "frozen-on-rewritten-base", "glob-matches-nothing"),
    *("grid-needs-values", "grid-too-large", "idle-devices", "ignored-train-flag", "label-not-in-train"),
    *("memory-unused", "method-not-for-model", "needs-remote-code", "never-ends", "no-data-path"),
    *("no-deepspeed", "no-gradients", "no-learning-rate", "no-memory-estimate", "no-room-for-copy"),
    *("no-stdlib-source", "no-such-layer", "no-such-training", "no-tensor-plan", "no-tracker", "no-weights"),
    *("not-finite", "not-logged-in", "not-on-experts", "not-quantised", "nothing-moves"),
    *("nothing-supervised", "nothing-swept", "nothing-to-resume", "nothing-to-shuffle", "other-labels"),
    *("overfitting", "pickled-weights", "process-killed", "pruner-needs-one-objective", "quantised-strategy"),
    *("repeats-itself", "rounded-updates", "several-formats", "slower", "special-tokens-in-text", "spike"),
    *("split-by-group", "split-by-source", "stopped-by-guard", "sweep-under-launcher"),
    *("template-over-bounds", "template-refuses-row", "template-splits-wrongly", "test-split-left-out"),
    *("too-few-gpus", "too-little-to-observe", "tracker-refuses", "untrained-tokens", "unused-weights"),
    *("weights-not-finite", "worker-died", "wrong-architecture", "wrong-hardware"),
}
"""Codes whose advice can be typed, which is tested here, and is followed by no test: causes that a guard suggests in
their order, and errors of machines that are not in the suite. A new code belongs into `FOLLOWED`, with its test."""


@functools.cache
def tree(*overrides):
    return compose(list(overrides)).tree


def methods_with(option):
    """Nodes of the methods that have an option."""
    nodes = (tree(f"method={name}")["method"] for name in METHODS)
    return [node for node in nodes if option in read_signature(node["_target_"]).fields]


METHODS = ("lora", "freeze", "eva", "adalora", "vblora", "prompt_tuning", "bottleneck_adapter")


def why_not(key, value):
    """Why an override cannot be typed; "" where it can. Of a value that is worked out or left open the key is tried."""
    is_open = any(mark in value for mark in "{<$") or value.isupper() or "..." in value or "." in value[-6:]
    if key in core_options() or key.startswith("hydra/"):
        file = advice.ROOT.parents[1] / "conf" / key / f"{value}.yaml"
        known = core_options().get(key, [value] if file.is_file() else [])
        return "" if is_open or value in known or value == "null" else f"{key} has no option {value}"
    group, _, name = key.partition(".")
    if group == "hydra" or "{" in key or key == "sweep":
        return ""
    whole = copy.deepcopy(tree("logger=wandb"))
    if group not in whole:
        return f"there is no {key}"
    if group == "method":
        found = methods_with(name.partition(".")[0])
        if not found:
            return f"no method has {key}"
        whole["method"] = copy.deepcopy(found[0])
    node = whole
    *above, last = key.split(".")
    for part in above:
        if not isinstance(node.get(part), dict):
            return f"there is no {key}"
        node = node[part]
    node[last] = node.get(last) if is_open else OmegaConf.to_container(OmegaConf.create(f"x: {value}"))["x"]
    wrong = [p for p in check(whole).problems if p.path == key]
    if is_open:
        wrong = [p for p in wrong if p.code == "unknown-key"]
    return "; ".join(str(p) for p in wrong)


def test_every_override_that_an_error_advises_can_be_typed():
    wrong = []
    for code, texts in advice.advices().items():
        for text in texts:
            wrong += [(code, text, why) for key, value in advice.settings(text) if (why := why_not(key, value))]
    assert wrong == []
    assert why_not("sampler", "tpe")
    assert why_not("method", "lorra")
    assert why_not("method.lora_droput", "0")
    assert why_not("trainer.precision", "bf16")


def test_every_code_that_advises_an_override_is_followed_or_listed():
    rules = {code for code, _ in BROKEN}
    assert set(advice.advices()) - rules == {*FOLLOWED, *TYPED} - rules
    assert not set(FOLLOWED) & TYPED
    for where in FOLLOWED.values():
        file, _, name = where.partition("::")
        assert f"def {name}(" in (advice.ROOT.parents[1] / "tests" / file).read_text(), where
