"""TRL: the YAML of `trl sft --config FILE`, and what its keys are here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneforge.importers import shared, trl_trainers
from tuneforge.importers.common import Dialect, Draft, Handled, Not, Rule, To, every, number, switch, whole
from tuneforge.importers.trainer_args import TRAINER_RULES

_ADAPTER_KEYS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
_RECIPES = {"DPO": "dpo", "KTO": "kto", "reward": "reward", "GRPO": "grpo"}
"""Trainer -> the recipe that would do the same."""


def _model(draft: Draft) -> None:
    draft.choose("model", "hf", "model_name_or_path")
    if draft.has("model_name_or_path"):
        draft.set("model.path", str(draft.given["model_name_or_path"]), "model_name_or_path")
    if draft.get("model_revision") not in (None, "main"):
        draft.set("model.revision", str(draft.given["model_revision"]), "model_revision")
    draft.same("model_revision")
    shared.remote_code(draft)
    named = draft.get("attn_implementation")
    if named in ("sdpa", "eager", "flash_attention_2", "flex_attention"):
        draft.set("model.attn_implementation", named, "attn_implementation")
    elif named:
        draft.leave(
            "attn_implementation", "not among ours: sdpa, eager, flash_attention_2, flex_attention; auto stands"
        )
    path = str(draft.get("chat_template_path") or "")
    if path.endswith((".jinja", ".j2", ".jinja2")):
        draft.set("model.chat_template", path, "chat_template_path")
    elif path:
        draft.leave("chat_template_path", "a template is named by a Jinja file here, not by a tokenizer")


def _task(draft: Draft) -> None:
    trainer, telling = _trainer(draft)
    if not trainer:
        draft.choose("task_recipe", "instruct")
        draft.note("TRL's command names the trainer, and this file does not: it is read as the config of `trl sft`")
        return
    if not draft.has("learning_rate"):
        draft.set("optim.lr", 1e-4 if trainer == "reward" else 1e-6, "learning_rate")
    if draft.choose("task_recipe", _RECIPES.get(trainer, trainer)):
        draft.set("data.format", "preference" if trainer != "GRPO" else "auto")
    else:
        draft.choose("task_recipe", "instruct")
        draft.replace(f"{trainer} training has no recipe here, and the file sets {telling}")


def _trainer(draft: Draft) -> tuple[str, str]:
    """Which of TRL's trainers the file is for, and by what; "" for SFT. The command names the trainer, not the file."""
    for trainer, keys in trl_trainers.KEYS.items():
        telling = [key for key in keys.split() if draft.has(key)]
        if telling:
            return trainer, ", ".join(telling)
    losses = shared.listed(draft.get("loss_type"))
    others = [loss for loss in losses if loss not in trl_trainers.OF_SFT]
    if not others:
        return "", ""
    of = (trainer for trainer, names in trl_trainers.LOSSES.items() if others[0] in names.split())
    return next(of, "DPO"), f"loss_type={','.join(losses)}"


def _method(draft: Draft) -> None:
    adapter = draft.on("use_peft")
    variants = {"use_dora": "dora", "use_rslora": "rslora"}
    shared.method(draft, "lora" if adapter else "full", ["use_peft"], shared.BITS, variants if adapter else {})
    if not adapter:
        for key in (*_ADAPTER_KEYS, *variants, "load_in_4bit", "load_in_8bit"):
            if draft.given.get(key) not in (None, False):
                draft.leave(key, "use_peft is not true: no adapter is trained there either")
            draft.same(key)
        _dtype(draft, trained=True)
        return
    draft.set("method.r", int(draft.number("lora_r") or 16), "lora_r")
    draft.set("method.lora_alpha", int(draft.number("lora_alpha") or 32), "lora_alpha")
    draft.set("method.lora_dropout", float(draft.number("lora_dropout") or 0.0), "lora_dropout")
    named = draft.get("lora_target_modules")
    if named:
        one = named[0] if isinstance(named, list) and len(named) == 1 else named
        draft.set("method.target_modules", one if one == "all-linear" else named, "lora_target_modules")
    else:
        draft.set("method.target_modules", "all-linear")
        draft.note(
            "the file names no lora_target_modules: PEFT's table for the architecture there (q_proj and v_proj for "
            "Llama), all linear layers here; for the same say method.target_modules=[q_proj,v_proj]"
        )
    if draft.on("load_in_4bit"):
        draft.set("method.double_quant", draft.on("use_bnb_nested_quant"), "use_bnb_nested_quant")
    draft.same("use_bnb_nested_quant")
    _dtype(draft, trained=False)


def _dtype(draft: Draft, trained: bool) -> None:
    key = "torch_dtype" if draft.has("torch_dtype") else "dtype"
    name = str(draft.get(key) or "float32")
    draft.same("dtype", "torch_dtype")
    if trained and name != "float32":
        draft.leave(key, "trained weights are kept in fp32 here, with autocast: more memory, and no small update lost")
    elif name in ("float32", "bfloat16", "float16"):
        draft.set("model.dtype", name, key)
    else:
        draft.leave(key, "the type the weights were saved in there; here auto is the type the device computes in")


# Rows


def _data(draft: Draft) -> None:
    entries = draft.get("datasets")
    if isinstance(entries, list) and entries:
        _mixture(draft, entries)
    elif draft.has("dataset_name"):
        name = str(draft.given["dataset_name"])
        if not shared.rows_file(draft, name, "dataset_name"):
            shared.hub_rows(draft, name, "dataset_name")
    else:
        shared.no_rows(draft, "datasets", "names no set; give data.path")
        draft.note("the file names no dataset: give data.path")
    draft.same("datasets", "dataset_name")
    _loss(draft)
    strategy = draft.get("packing_strategy") if draft.on("packing") else None
    cut = strategy in ("bfd_split", "bfd-requeue", "wrapped") and draft.result.values["data.train_on"] == "all"
    draft.set("data.overlong", "chunk" if cut else "truncate", "packing_strategy")
    if strategy not in (None, "bfd") and not cut:
        draft.leave("packing_strategy", "would cut answers off from their questions: documents are truncated here")
    elif strategy == "wrapped":
        draft.note(
            "packing_strategy wrapped fills rows with pieces of documents that see each other; here they never do"
        )
    if not draft.on("packing"):
        draft.same("packing_strategy")
    if draft.has("test_split_size"):
        shared.eval_share(draft, "test_split_size")


def _mixture(draft: Draft, entries: list[Any]) -> None:
    entry = entries[0]
    files = entry.get("data_files") if isinstance(entry, Mapping) else None
    if len(entries) != 1 or not isinstance(entry, Mapping):
        shared.no_rows(draft, "datasets", f"lists {len(entries)} sets; a run reads one: join them, or see data=mix")
        return
    one = files[0] if isinstance(files, list) and len(files) == 1 else files or entry.get("path")
    if not shared.rows_file(draft, one, "datasets"):
        shared.hub_rows(draft, str(entry.get("path")), "datasets")
    for key, value in entry.items():
        if key not in ("path", "data_files") and value is not None and (key, value) != ("split", "train"):
            draft.leave(f"datasets[0].{key}", "only a file of rows is carried", value)


def _loss(draft: Draft) -> None:
    """TRL's loss is on all tokens, but for rows of prompt and completion, unless the file says otherwise."""
    answers, completions = draft.on("assistant_only_loss"), draft.get("completion_only_loss")
    columns = _columns(draft)
    for trainer, names in trl_trainers.ROWS.items():
        if names <= columns and not draft.result.replaced:
            draft.replace(f"{trainer} training has no recipe here, and the rows have {' and '.join(sorted(names))}")
    if answers or completions is True:
        draft.set("data.train_on", "assistant", "assistant_only_loss", "completion_only_loss")
    elif completions is False or columns & {"messages", "text"}:
        draft.set("data.train_on", "all", "completion_only_loss", "assistant_only_loss")
    elif columns >= {"prompt", "completion"}:
        draft.set("data.train_on", "assistant", "completion_only_loss", "assistant_only_loss")
    else:
        draft.set("data.train_on", "all", "completion_only_loss", "assistant_only_loss")
        draft.note(
            "without assistant_only_loss TRL's loss is on every token, questions included, but for rows of prompt and "
            "completion; the rows are not here to look at: for those say data.train_on=assistant"
        )
    if draft.get("dataset_text_field") not in (None, "text"):
        draft.leave("dataset_text_field", "the column is called text here: rename it")
    draft.same("assistant_only_loss", "completion_only_loss", "dataset_text_field")


def _columns(draft: Draft) -> set[str]:
    """The columns of the first row, where it can be seen."""
    path = Path(str(draft.result.values.get("data.path", "")))
    for candidate in (path, draft.file.parent / path):
        if candidate.is_file() and candidate.suffix == ".jsonl":
            try:
                with candidate.open(encoding="utf-8") as lines:
                    row = json.loads(lines.readline())
            except (OSError, ValueError, RecursionError):
                return set()
            return set(row) if isinstance(row, dict) else set()
    return set()


# The run


def _run(draft: Draft) -> None:
    packed = draft.on("packing")
    draft.set("data.packing", packed, "packing")
    key = "max_seq_length" if draft.has("max_seq_length") else "max_length"
    length = draft.number(key)
    if length is None or ("max_length" in draft.given and draft.given["max_length"] is None and key == "max_length"):
        draft.leave("max_length", "no limit there; here auto is the model's positions, at most 1024")
    else:
        draft.set("data.max_length", int(length), key)
    shared.batch(draft, "per_device_train_batch_size", "gradient_accumulation_steps", length if packed else None)
    shared.length_of_run(draft, "num_train_epochs")
    shared.scheduler(draft, "lr_scheduler_type")
    if "scheduler.warmup_ratio" not in draft.result.values:
        shared.warmup(draft)
    if draft.has("warmup_ratio"):
        draft.note(
            "warmup_ratio is gone from transformers 5: with it TRL drops the key without a word; here it is meant"
        )
    shared.optimizer(draft, "optim")
    shared.strategy(draft)
    shared.evaluation(draft, "num_train_epochs")
    shared.report(draft)
    if draft.on("fp16"):
        draft.set("trainer.precision", "16-mixed", "fp16")
    elif draft.get("bf16") is False:
        draft.set("trainer.precision", "32-true", "bf16")
    else:
        draft.set("trainer.precision", "bf16-mixed", "bf16")
    draft.same("bf16", "fp16")


_RL = "belongs to preference, reward or online training, which is not among the recipes here"
_OTHER = "not supported here: the run trains without it"
RULES: dict[str, Rule] = {
    **TRAINER_RULES,
    "activation_offloading": To("trainer.activation_offload", switch),
    **every(
        "model_name_or_path model_revision trust_remote_code attn_implementation chat_template_path use_peft lora_r "
        "lora_alpha lora_dropout lora_target_modules use_dora use_rslora load_in_4bit load_in_8bit dtype torch_dtype "
        "use_bnb_nested_quant dataset_name datasets test_split_size packing packing_strategy max_length max_seq_length "
        "assistant_only_loss completion_only_loss dataset_text_field",
        Handled(),
    ),
    "seed": To("seed", whole),
    "bnb_4bit_quant_type": Not("NF4 is what there is", ("nf4",)),
    "bnb_4bit_quant_storage": Not(
        "packed weights are kept in the compute type here; no number hangs on it", ("uint8", "bfloat16", "float32")
    ),
    "lora_task_type": Not("follows from task_recipe.objective", ("CAUSAL_LM",)),
    "truncation_mode": Not("the end of a long row is cut here", ("keep_start",)),
    "loss_type": Not("the loss is the mean negative log-likelihood of the tokens here", ("nll", "chunked_nll")),
    "dataset_train_split": Not("all rows of the source are read", ("train",)),
    "dataset_test_split": Not("rows are held out of the source here: data.split"),
    "dataset_config": Not("a part of a hub set is not picked here: export it to a file"),
    "eos_token": Not("an answer ends as the chat template ends it; other texts in the tokenizer's EOS"),
    "pad_token": Not("padding never counts in the loss here, so its token does not matter"),
    "shuffle_dataset": Not("rows are always shuffled here, by the seed", (True,)),
    "eval_packing": Not("evaluation packs as training does here"),
    "padding_free": Not("packing is free of padding here: data.packing"),
    "model_init_kwargs": Not("options of from_pretrained are named one by one here: model.*"),
    "lora_modules_to_save": To("method.modules_to_save", shared.listed),
    "router_aux_loss_coef": To("regularise.router_aux_loss_coef", number),
    **every(
        "dataset_num_proc dataset_batch_size dataset_kwargs dataset_streaming streaming ignore_bias_buffers "
        "pad_to_multiple_of gradient_checkpointing_kwargs logging_completions",
        Not("only about speed or loading there: it changes nothing of what is learnt"),
    ),
    **every("use_liger lora_target_parameters num_of_sequences", Not(_OTHER)),
    **every(" ".join(trl_trainers.KEYS.values()), Not(_RL)),
    "beta": To("task_recipe.beta"),
}

DIALECT = Dialect(
    "trl",
    "TRL",
    RULES,
    # trl 1.16 on transformers 5.23: SFTConfig, ModelConfig, ScriptArguments.
    {
        "learning_rate": 2e-5, "num_train_epochs": 3.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 42,
        "lr_scheduler_type": "linear", "optim": "adamw_torch_fused", "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1, "max_length": 1024, "packing": False, "packing_strategy": "bfd",
        "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "gradient_checkpointing": True, "dtype": "float32",
        "warmup_steps": 0, "use_bnb_nested_quant": False, "eval_strategy": "no", "bf16": True,
        "assistant_only_loss": False,
    },
    (_model, _task, _method, _data, _run),
    "it drops the key without a word",
)  # fmt: skip
