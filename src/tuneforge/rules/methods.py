"""What methods need of weights, layers and the rest of the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneforge.errors import Problem
from tuneforge.rules.registry import rule
from tuneforge.safe_files import code_digest, foreign_code
from tuneforge.schema import Config
from tuneforge.schema.facts import method_facts


@rule
def remote_code_is_pinned(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Code that comes with weights runs only at a full commit hash; that of a folder at a hash of its Python files."""
    if not config.model.trust_remote_code:
        return None
    revision, folder = config.model.revision or "", Path(config.model.path).expanduser()
    if folder.is_dir():
        return _folder_code(folder, revision)
    pinned = len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)
    if pinned:
        return None
    return Problem(
        "remote-code-unpinned",
        f"model.trust_remote_code=true needs a pinned model.revision, got {config.model.revision!r}",
        "model.revision",
        fix="read the code at one commit, then set model.revision=<its 40-digit hash>: a branch can change under you",
    )


def _folder_code(folder: Path, revision: str) -> Problem | None:
    """A folder's code is that of the folder alone, and the code that was read."""
    elsewhere = foreign_code(folder)
    if elsewhere:
        message = f"{folder} names code of another repository ({elsewhere}), which nothing pins"
        fix = "copy that code into the folder and name it there without the repository, or use another model"
        return Problem("remote-code-elsewhere", message, "model.path", fix=fix)
    digest = code_digest(folder)
    if revision == digest:
        return None
    return Problem(
        "remote-code-unpinned",
        f"model.trust_remote_code=true needs a pinned model.revision: of a folder, a hash of its *.py files; "
        f"got {revision or None!r}",
        "model.revision",
        fix=f"read the *.py files of {folder}, then set model.revision={digest}",
    )


@rule
def adapters_need_pretrained_weights(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """An adapter on a frozen random base learns nothing worth keeping."""
    if config.model.init == "pretrained" or method_facts(tree["method"])["footprint"] == "full":
        return None
    return Problem(
        "adapter-on-random-base",
        f"method={config.method.name} trains an adapter, and model.init=scratch leaves a random base frozen under it",
        "method",
        fix="use method=full, or model.init=pretrained",
    )


@rule
def a_continued_adapter_has_its_method(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Adapters are continued, or kept beside a trained one; a method that trains none cannot use them."""
    key = "model.adapter" if config.model.adapter else "model.frozen_adapters"
    named = config.model.adapter or config.model.frozen_adapters
    if not named or not method_facts(tree["method"])["trains_base"]:
        return None
    return Problem(
        "adapter-without-method",
        f"names an adapter, and method={config.method.name} trains none",
        key,
        fix="use the method that made the adapter (adapter_config.json names it), or drop the key",
    )


@rule
def a_rewritten_base_is_unquantised(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """PiSSA and OLoRA move part of the base into the adapter, which a quantised base cannot give."""
    facts, init = method_facts(tree["method"]), tree["method"].get("init_lora_weights")
    if not facts["quantises"] or init not in facts["rewriting"]:
        return None
    return Problem(
        "rewritten-quantised-base",
        f"is {init}, which rewrites the base, and method={config.method.name} quantises it",
        "method.init_lora_weights",
        fix="use method=lora with it, or drop the key",
    )


@rule
def a_divergence_has_its_base(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`regularise.kl` compares with the model without its adapter, which must be the base that was loaded."""
    if not config.regularise.kl:
        return None
    facts, init = method_facts(tree["method"]), tree["method"].get("init_lora_weights")
    if facts["trains_base"]:
        why = f"method={config.method.name} changes the base itself"
    elif init in facts["rewriting"]:
        why = f"method={config.method.name} rewrites the base (init_lora_weights={init})"
    elif tree["method"].get("bias", "none") != "none":
        why = f"method.bias={tree['method']['bias']} trains the base's biases"
    else:
        return None
    return Problem(
        "no-base-to-compare",
        f"compares with the base, and {why}",
        "regularise.kl",
        fix="use method=lora, or regularise.ewc instead",
    )


@rule
def prompts_are_not_packed(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Prompt methods ignore positions: documents of a packed row would see each other."""
    if method_facts(tree["method"])["packs"] or not config.data.packing:
        return None
    return Problem(
        "prompt-packing",
        f"packs documents, and method={config.method.name} puts virtual tokens before the first and ignores positions",
        "data.packing",
        fix="set data.packing=false, or use another method",
    )


@rule
def prefixes_are_not_recomputed(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Prefix tuning travels in the cache, which recomputing a layer would fill twice."""
    asked = config.trainer.gradient_checkpointing in (True, "selective")
    if method_facts(tree["method"])["checkpoints"] or not asked:
        return None
    return Problem(
        "prefix-checkpointing",
        f"recomputes layers, and method={config.method.name} puts a prefix into their cache",
        "trainer.gradient_checkpointing",
        fix="set it to auto, or use method=prompt_tuning",
    )


@rule
def compiled_layers_have_no_adapter_dropout(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """torch.compile with recomputed layers and adapter dropout crashes inductor (peft issue 3020)."""
    dropout = tree["method"].get("lora_dropout", 0)
    checkpoints = config.trainer.gradient_checkpointing is not False and config.hardware.kind != "cpu"
    if not config.model.torch_compile or not dropout or not checkpoints:
        return None
    return Problem(
        "compile-dropout",
        f"compiles layers that may be recomputed, and method.lora_dropout={dropout} in them crashes torch's compiler",
        "model.torch_compile",
        fix="set method.lora_dropout=0, or trainer.gradient_checkpointing=false",
    )
