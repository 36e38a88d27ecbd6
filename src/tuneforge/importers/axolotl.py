"""Axolotl: the keys of its YAML that need thought; the table of all of them is in `axolotl_keys`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneforge.importers import shared
from tuneforge.importers.axolotl_keys import RULES
from tuneforge.importers.common import Dialect, Draft

_ADAPTER_KEYS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_linear", "lora_target_modules")
_RECIPES = {"dpo": "dpo", "ipo": "ipo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "grpo": "grpo"}


def _model(draft: Draft) -> None:
    draft.choose("model", "hf", "base_model")
    if draft.has("base_model"):
        draft.set("model.path", str(draft.given["base_model"]), "base_model")
    key = "revision_of_model" if draft.has("revision_of_model") else "model_revision"
    if draft.has(key):
        draft.set("model.revision", str(draft.given[key]), key)
    shared.remote_code(draft)
    if draft.on("reinit_weights"):
        draft.set("model.init", "scratch", "reinit_weights")
    _attention(draft)
    _template(draft)


_ATTENTION = {
    "flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager",
    "flex_attention": "flex_attention",
}  # fmt: skip


def _attention(draft: Draft) -> None:
    named = draft.get("attn_implementation")
    if named in _ATTENTION.values():
        draft.set("model.attn_implementation", named, "attn_implementation")
    elif named:
        draft.leave(
            "attn_implementation", "not among ours: sdpa, eager, flash_attention_2, flex_attention; auto stands"
        )
    for key, name in _ATTENTION.items():
        if draft.on(key):
            draft.set("model.attn_implementation", name, key)
        draft.same(key)


def _template(draft: Draft) -> None:
    name, jinja = str(draft.get("chat_template") or ""), draft.get("chat_template_jinja")
    if jinja and "{" not in str(jinja):
        draft.set("model.chat_template", str(jinja), "chat_template_jinja", "chat_template")
        return
    if jinja:
        draft.leave("chat_template_jinja", "a template is a file here: save this text and set model.chat_template=PATH")
    if name == "chatml":
        draft.set("model.chat_template", "chatml", "chat_template")
    elif name in ("", "tokenizer_default"):
        draft.same("chat_template")
    elif name.startswith("tokenizer_default_fallback_"):
        draft.leave("chat_template", "the tokenizer's own template is used, as there; its fallback here is `plain`")
    elif name != "jinja":
        draft.leave(
            "chat_template",
            f"Axolotl's own template {name!r} is not here; the tokenizer's own stands, which an instruct model of that "
            "family brings: compare one rendered row, or set model.chat_template to a Jinja file",
        )
    draft.same("chat_template")


def _task(draft: Draft) -> None:
    key, wanted = _objective(draft)
    if wanted and draft.choose("task_recipe", _RECIPES.get(wanted, wanted), key):
        draft.set("data.format", "preference", "datasets")
    elif wanted:
        draft.choose("task_recipe", "instruct")
        draft.replace(f"{key}: {wanted} has no recipe here")
    elif draft.has("pretraining_dataset") or _types(draft) == {"completion"}:
        draft.choose("task_recipe", "pretrain")
        draft.set("model.init", draft.result.values.get("model.init", "pretrained"))
    else:
        draft.choose("task_recipe", "instruct")
    draft.same("rl", "reward_model", "process_reward_model")


_OTHER_TRAINERS = {
    "process_reward_model": "process_reward", "reward_model": "reward", "kd_trainer": "distillation",
    "diffusion_lm": "diffusion", "trainer_cls": "a trainer of your own",
}  # fmt: skip
"""Key -> what it trains instead of next tokens."""
_REWARD_ROWS = {"bradley_terry": "reward", "stepwise_supervised": "process_reward"}
"""Layout of rows -> what is trained on them."""


def _objective(draft: Draft) -> tuple[str, str]:
    """The key that names another training than next tokens, and which; empty where there is none."""
    if draft.given.get("rl"):
        return "rl", str(draft.given["rl"])
    for key, trains in _OTHER_TRAINERS.items():
        if draft.given.get(key):
            return key, trains
    for kind in sorted(_types(draft)):
        if kind.split(".")[0] in _REWARD_ROWS:
            return "datasets", _REWARD_ROWS[kind.split(".")[0]]
    named = str(draft.get("type_of_model") or draft.get("model_type") or "")
    return ("type_of_model", "reward") if "Classification" in named else ("", "")


def _types(draft: Draft) -> set[str]:
    entries = draft.get("datasets")
    return {str(e.get("type")) for e in entries if isinstance(e, Mapping)} if isinstance(entries, list) else set()


def _method(draft: Draft) -> None:
    adapter = draft.get("adapter")
    variants = {"peft_use_dora": "dora", "peft_use_rslora": "rslora"}
    if adapter in (None, "", False):
        shared.method(draft, "full", ["adapter"], {}, {})
        for key in [*_ADAPTER_KEYS, *variants, "lora_model_dir", "load_in_4bit", "load_in_8bit"]:
            if draft.get(key) not in (None, False, "", 0, 0.0) and draft.has(key):
                draft.leave(key, "no adapter is trained: it has no effect there either")
            draft.same(key)
        return
    if adapter not in ("lora", "qlora"):
        draft.replace(f"adapter: {adapter} has no method here")
    shared.method(draft, "lora", ["adapter"], shared.BITS, variants)
    draft.same("adapter")
    _adapter(draft)


def _adapter(draft: Draft) -> None:
    rank = draft.number("lora_r") or 8
    draft.set("method.r", int(rank), "lora_r")
    draft.set("method.lora_alpha", int(draft.number("lora_alpha") or 8), "lora_alpha")
    draft.set("method.lora_dropout", float(draft.number("lora_dropout") or 0.0), "lora_dropout")
    named = draft.get("lora_target_modules")
    if draft.on("lora_target_linear"):
        draft.set("method.target_modules", "all-linear", "lora_target_linear")
        extra = [m for m in named or [] if m in ("embed_tokens", "lm_head")] if isinstance(named, list) else []
        if extra:
            draft.leave("lora_target_modules", f"all linear layers are adapted, without {', '.join(extra)}")
        draft.same("lora_target_modules")
    elif named:
        draft.set("method.target_modules", named, "lora_target_modules")
    else:
        draft.set("method.target_modules", "all-linear")
        draft.note("the file names no target modules: PEFT's table for the architecture there, all linear layers here")
    draft.same("lora_target_linear", "lora_target_modules")
    if draft.has("lora_model_dir"):
        draft.set("model.adapter", str(draft.given["lora_model_dir"]), "lora_model_dir")
    options = draft.get("bnb_config_kwargs")
    for option, value in (options if isinstance(options, Mapping) else {}).items():
        if option == "bnb_4bit_use_double_quant":
            draft.set("method.double_quant", value, "bnb_config_kwargs")
        else:
            draft.leave(f"bnb_config_kwargs.{option}", "NF4, computed in the training's type, is what is here", value)
    draft.same("bnb_config_kwargs")


# Rows


_FORMATS = {"alpaca": "alpaca", "chat_template": "chat", "sharegpt": "chat", "completion": "text", "pretrain": "text"}
_ENTRY_SAME: dict[str, tuple[Any, ...]] = {
    "split": ("train",), "ds_type": ("json", "jsonl", "csv", "parquet"), "field": ("text",), "text_column": ("text",),
    "field_messages": ("messages", "conversations"), "roles_to_train": (["assistant"], ["gpt"], ["assistant", "gpt"]),
    "train_on_eos": ("turn",), "chat_template": ("tokenizer_default",), "trust_remote_code": (False,),
    "message_property_mappings": ({"role": "role", "content": "content"}, {"role": "from", "content": "value"}),
    "message_field_role": ("role", "from"), "message_field_content": ("content", "value"),
    "message_field_training": ("train", "training", "weight"),
}  # fmt: skip
"""Keys of one entry of `datasets`, and the values that are what happens here anyway."""


def _data(draft: Draft) -> None:
    key = "datasets" if draft.has("datasets") else "pretraining_dataset"
    entries = draft.get(key)
    entries = [entries] if isinstance(entries, Mapping | str) else entries
    entries = [{"path": e} if isinstance(e, str) else e for e in entries] if isinstance(entries, list) else []
    if len(entries) != 1 or not isinstance(entries[0], Mapping):
        shared.no_rows(
            draft, key, f"lists {len(entries)} sets; a run reads one: join them into one file, or see data=mix"
        )
    else:
        _entry(draft, entries[0], f"{key}[0]")
    draft.same("datasets", "pretraining_dataset")
    held = draft.get("test_datasets")
    if held:
        one = isinstance(held, list) and len(held) == 1 and isinstance(held[0], Mapping)
        path = held[0].get("path") if one else None
        if isinstance(path, str) and shared.is_local(path, draft.file):
            draft.set("data.split.eval_path", path, "test_datasets")
        else:
            draft.leave("test_datasets", "one local file could be data.split.eval_path; this is something else")
    shared.eval_share(draft, "val_set_size")


def _entry(draft: Draft, entry: Mapping[str, Any], where: str) -> None:
    root = where.split("[", maxsplit=1)[0]
    path, files = entry.get("path"), entry.get("data_files")
    files = shared.listed(files)
    if files and path not in ("json", "csv", "parquet", *files):
        files = [str(Path(str(path)) / f) for f in files] if shared.is_local(str(path), draft.file) else files
    if len(files) > 1:
        why = "lists several files: data.path takes one, a folder or a glob"
        shared.no_rows(draft, f"{where}.data_files", why, files)
    elif not shared.rows_file(draft, files[0] if files else path, root):
        shared.hub_rows(draft, str(path), f"{where}.path", path)
    _format(draft, entry.get("type"), f"{where}.type")
    known = {"path", "data_files", "type"}
    if _FORMATS.get(str(entry.get("type")).split(".")[0]) == "chat" and isinstance(entry.get("field_messages"), str):
        known.add("field_messages")
        if entry["field_messages"] not in ("messages", "conversations"):
            draft.set("data.columns.messages", entry["field_messages"], root)
    for key, value in entry.items():
        if key in known or value is None or value in _ENTRY_SAME.get(key, ()):
            continue
        draft.leave(
            f"{where}.{key}", "this way of reading rows is not carried; see data.format for what is read", value
        )


def _format(draft: Draft, kind: Any, where: str) -> None:
    form = _FORMATS.get(str(kind).split(".")[0]) if isinstance(kind, str) and "load" not in kind else None
    if draft.result.choices.get("task_recipe") not in ("instruct", "pretrain") or draft.has("rl"):
        draft.leave(where, "how preference rows are laid out is not carried; see data.format", kind)
    elif form:
        draft.set("data.format", form, where.split("[", maxsplit=1)[0])
    elif isinstance(kind, Mapping):
        form = "alpaca"
        _own_layout(draft, kind, where)
    elif kind is not None:
        draft.leave(where, "no such row layout here: use alpaca, chat, prompt_completion or text columns", kind)
    if form == "alpaca":
        draft.leave(
            where, "columns carried, wording not: rows go through the model's chat template, not Alpaca's text", kind
        )
    overlong = str(draft.get("excess_length_strategy"))
    if form == "text":
        draft.set("data.overlong", "chunk", where.split("[", maxsplit=1)[0])
        draft.same("excess_length_strategy")
    elif overlong in ("drop", "truncate"):
        draft.set("data.overlong", overlong, "excess_length_strategy")
    else:
        draft.leave("excess_length_strategy", "is not here: drop, truncate or chunk")
    everything = draft.on("train_on_inputs") or form == "text"
    draft.set("data.train_on", "all" if everything else "assistant", "train_on_inputs")


def _own_layout(draft: Draft, kind: Mapping[str, Any], where: str) -> None:
    """Columns that the file names itself: `type: {field_instruction: question, field_output: answer}`."""
    root = where.split("[", maxsplit=1)[0]
    draft.set("data.format", "alpaca", root)
    for key, value in kind.items():
        ours = key.removeprefix("field_")
        if key.startswith("field_") and ours in ("instruction", "input", "output", "system") and isinstance(value, str):
            if value != ours:
                draft.set(f"data.columns.{ours}", value, root)
        elif value and key not in ("format", "no_input_format"):
            draft.leave(f"{where}.{key}", "is not carried: write it into the rows", value)


# The run


def _run(draft: Draft) -> None:
    packed = draft.on("sample_packing")
    draft.set("data.packing", packed, "sample_packing")
    if not draft.has("gradient_accumulation_steps") and draft.has("batch_size"):
        rows, total = draft.number("micro_batch_size") or 1, draft.number("batch_size") or 1
        draft.given = {**draft.given, "gradient_accumulation_steps": max(1, int(total // rows))}
        draft.same("batch_size", "gradient_accumulation_steps")
    shared.batch(
        draft, "micro_batch_size", "gradient_accumulation_steps", draft.number("sequence_len") if packed else None
    )
    shared.length_of_run(draft, "num_epochs")
    shared.scheduler(draft, "lr_scheduler")
    if "scheduler.warmup_ratio" not in draft.result.values:
        shared.warmup(draft, otherwise=0.03)
    shared.optimizer(draft, "optimizer")
    shared.strategy(draft)
    shared.wandb(draft, {"wandb_project": "project", "wandb_entity": "entity", "wandb_name": "name"})
    _evaluations(draft)
    _precision(draft)


def _evaluations(draft: Draft) -> None:
    each, epochs = draft.number("evals_per_epoch"), draft.number("num_epochs") or 1
    if each:
        # Axolotl's own arithmetic: a share of the whole run.
        draft.set("trainer.val_check_interval", min(1.0, round(1 / (each * epochs), 6)), "evals_per_epoch")
    elif each == 0:
        draft.leave("evals_per_epoch", "a run here always evaluates, to pick the best checkpoint")
    shared.evaluation(draft, "num_epochs")
    draft.same("evals_per_epoch")


def _precision(draft: Draft) -> None:
    brain, half = draft.get("bf16"), draft.get("fp16")
    draft.same("bf16", "fp16")
    if brain == "full":
        draft.leave("bf16", "weights in bf16 without autocast are trainer.precision=bf16-true; auto stands")
    elif brain is True:
        draft.set("trainer.precision", "bf16-mixed", "bf16")
    elif half is True:
        draft.set("trainer.precision", "16-mixed", "fp16")
    elif brain == "auto":
        draft.set("trainer.precision", "auto", "bf16")
    else:
        draft.set("trainer.precision", "32-true", "bf16", "fp16")
    checkpointing = draft.get("gradient_checkpointing")
    if checkpointing == "offload":
        draft.set("trainer.activation_offload", True)
    elif isinstance(checkpointing, str):
        draft.leave("gradient_checkpointing", "recomputing is carried; moving activations to disk is not")
    draft.set("trainer.gradient_checkpointing", bool(checkpointing), "gradient_checkpointing")


DIALECT = Dialect(
    "axolotl",
    "Axolotl",
    RULES,
    # Of the schema, and of transformers where the schema leaves it open.
    {
        "learning_rate": None, "sequence_len": 512, "weight_decay": 0.0, "max_grad_norm": 1.0, "num_epochs": 1,
        "optimizer": "adamw_torch_fused", "lr_scheduler": "cosine", "seed": 42, "micro_batch_size": 1,
        "gradient_accumulation_steps": 1, "lora_dropout": 0.0, "val_set_size": 0.0, "bf16": "auto",
        "gradient_checkpointing": False, "sample_packing": False, "train_on_inputs": False,
        "excess_length_strategy": "drop",
    },
    (_model, _task, _method, _data, _run),
    "it drops the key without a word",
)  # fmt: skip
