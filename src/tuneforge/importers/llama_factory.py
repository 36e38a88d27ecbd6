"""LLaMA-Factory: the YAML of `llamafactory-cli train`, and what its keys are here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneforge.importers import shared
from tuneforge.importers.common import Dialect, Draft, Handled, Not, Rule, To, every, number, read_json_beside, whole
from tuneforge.importers.trainer_args import TRAINER_RULES

_LOSSES = {"orpo": "orpo", "simpo": "simpo"}
_BITS = {"_four": "qlora", "_eight": "qlora_8bit"}
_STAGES = {"sft": "instruct", "pt": "pretrain", "rm": "reward"}


def _model(draft: Draft) -> None:
    draft.choose("model", "hf", "model_name_or_path")
    if draft.has("model_name_or_path"):
        draft.set("model.path", str(draft.given["model_name_or_path"]), "model_name_or_path")
    if draft.get("model_revision") not in (None, "main"):
        draft.set("model.revision", str(draft.given["model_revision"]), "model_revision")
    draft.same("model_revision")
    shared.remote_code(draft)
    named = {"auto": "sdpa", "sdpa": "sdpa", "disabled": "eager", "fa2": "flash_attention_2"}.get(
        str(draft.get("flash_attn"))
    )
    if named:
        draft.set("model.attn_implementation", named, "flash_attn")
    else:
        draft.leave("flash_attn", "not among ours: sdpa, eager, flash_attention_2, flex_attention; auto stands")
    if draft.on("train_from_scratch"):
        draft.set("model.init", "scratch", "train_from_scratch")
    template = draft.get("template")
    if template == "chatml":
        draft.set("model.chat_template", "chatml", "template")
    elif template:
        draft.leave(
            "template",
            "LLaMA-Factory's own text templates are not here; the tokenizer's own chat template stands, which an "
            "instruct model of that family brings: compare one rendered row, or set model.chat_template=FILE",
        )


def _task(draft: Draft) -> None:
    stage = str(draft.get("stage"))
    for key in ("do_predict", "do_eval", "export_dir"):
        if draft.get(key) and not draft.has("dataset") and draft.given.get("do_train") is not True:
            draft.replace(f"{key}: the file evaluates or exports a model, and trains none")
            break
    wanted = _STAGES.get(stage, stage)
    if stage == "dpo":
        wanted = _LOSSES.get(str(draft.get("pref_loss")), "dpo")
        draft.same("pref_loss") if wanted != "dpo" else None
    if draft.choose("task_recipe", wanted, "stage"):
        if stage == "pt":
            draft.set("model.init", draft.result.values.get("model.init", "pretrained"))
        return
    draft.choose("task_recipe", "instruct")
    draft.replace(f"stage: {stage} has no recipe here")


def _method(draft: Draft) -> None:
    kind = str(draft.get("finetuning_type"))
    if kind == "freeze":
        _freeze(draft)
        return
    bits = draft.get("quantization_bit")
    draft.given = {**draft.given, "_four": bits == 4, "_eight": bits == 8}
    if kind not in ("lora", "full"):
        draft.replace(f"finetuning_type: {kind} has no method here")
    variants = {"use_dora": "dora", "use_rslora": "rslora", "pissa_init": "pissa"}
    trains = shared.method(draft, "full" if kind == "full" else "lora", ["finetuning_type"], _BITS, variants)
    draft.given = {k: v for k, v in draft.given.items() if k not in _BITS}
    if bits in (4, 8) and trains:
        draft.same("quantization_bit")
    elif bits is not None:
        draft.leave(
            "quantization_bit", "a base in 4 or 8 bits under an adapter is what there is; it stays in 16 bits here"
        )
    if trains:
        _adapter(draft, quantised=bits == 4)
        return
    _no_adapter(draft)


def _freeze(draft: Draft) -> None:
    """Their last layers, whole; their other choices of what is trained have no equal."""
    layers = draft.number("freeze_trainable_layers") or 0
    odd = [key for key in ("freeze_trainable_modules", "freeze_extra_modules") if draft.get(key) not in (None, "all")]
    if layers < 1:
        odd.append("freeze_trainable_layers")
    if odd:
        draft.replace(f"finetuning_type: freeze trains the last layers whole here, and the file sets {', '.join(odd)}")
    draft.choose("method", "freeze", "finetuning_type")
    draft.set("method.last_layers", max(1, int(layers)), "freeze_trainable_layers")
    draft.same("freeze_trainable_modules")
    _no_adapter(draft)


def _no_adapter(draft: Draft) -> None:
    for key in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "adapter_name_or_path"):
        draft.leave(key, "no adapter is trained: it has no effect there either")


def _adapter(draft: Draft, quantised: bool) -> None:
    rank = int(draft.number("lora_rank") or 8)
    draft.set("method.r", rank, "lora_rank")
    draft.set("method.lora_alpha", int(draft.number("lora_alpha") or 2 * rank), "lora_alpha")
    draft.set("method.lora_dropout", float(draft.number("lora_dropout") or 0.0), "lora_dropout")
    names = shared.listed(draft.get("lora_target"))
    draft.set("method.target_modules", "all-linear" if names in (["all"], ["all-linear"]) else names, "lora_target")
    if quantised:
        draft.set("method.double_quant", bool(draft.get("double_quantization")), "double_quantization")
    adapter = draft.get("adapter_name_or_path")
    if isinstance(adapter, str) and "," not in adapter and not draft.on("create_new_adapter"):
        draft.set("model.adapter", adapter, "adapter_name_or_path")
    elif adapter:
        draft.leave("adapter_name_or_path", "one adapter can be continued; merge the others into the base first")


# Rows: names in dataset_info.json


_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
_CHAT = {"messages": "conversations", "system": "system"}
_TAGS = {
    "role_tag": ("from", "role"), "content_tag": ("value", "content"), "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"), "system_tag": ("system",),
}  # fmt: skip


def _data(draft: Draft) -> None:
    names = shared.listed(draft.get("dataset"))
    if len(names) != 1:
        shared.no_rows(
            draft, "dataset", f"names {len(names)} sets; a run reads one: join them into one file, or see data=mix"
        )
    else:
        _one(draft, names[0])
    draft.same("dataset", "dataset_dir")
    held = shared.listed(draft.get("eval_dataset"))
    entry, folder = _find(draft, held[0]) if len(held) == 1 else (None, None)
    if entry and folder is not None and "file_name" in entry:
        draft.set("data.split.eval_path", str(folder / str(entry["file_name"])), "eval_dataset")
    elif held:
        draft.leave(
            "eval_dataset", "one set of a local file could be data.split.eval_path; this cannot be resolved to one"
        )
    shared.eval_share(draft, "val_size")
    if draft.has("max_samples"):
        draft.set("data.max_rows", draft.number("max_samples"), "max_samples")
        draft.note("max_samples takes the first rows there; data.max_rows draws them by the seed, of each split")
    draft.set("data.overlong", "chunk" if draft.get("stage") == "pt" else "truncate", "cutoff_len")
    draft.done.discard("cutoff_len")
    if draft.get("stage") != "pt":
        draft.note(
            "rows beyond cutoff_len lose their end here; LLaMA-Factory shortens question and answer in proportion"
        )
    everything = draft.on("train_on_prompt") or draft.get("stage") == "pt"
    draft.set("data.train_on", "all" if everything else "assistant", "train_on_prompt")


def _find(draft: Draft, name: str) -> tuple[Mapping[str, Any] | None, Path | None]:
    """The entry of a set, and the folder its file name counts from."""
    given = draft.get("dataset_dir")
    folders = [Path(given), draft.file.parent / given] if isinstance(given, str) else []
    for folder in [*folders, draft.file.parent, draft.file.parent / "data"]:
        info = folder / "dataset_info.json"
        if info.is_file():
            sets = read_json_beside(info)
            entry = sets.get(name) if isinstance(sets, Mapping) else None
            return (entry, folder) if isinstance(entry, Mapping) else (None, None)
    return None, None


def _one(draft: Draft, name: str) -> None:
    entry, folder = _find(draft, name)
    if entry is None or folder is None:
        shared.no_rows(
            draft, "dataset", f"{name} is a name in dataset_info.json, which is not beside the file or in dataset_dir, "
            "or has no such name: give data.path",
        )  # fmt: skip
        return
    hub = entry.get("hf_hub_url") or entry.get("ms_hub_url") or entry.get("script_url")
    if hub:
        shared.hub_rows(draft, str(hub), "dataset")
    elif not shared.rows_file(draft, str(folder / str(entry.get("file_name", ""))), "dataset"):
        shared.no_rows(draft, "dataset", f"{entry.get('file_name')} is no file that data=file reads")
    _layout(draft, entry, name)


def _layout(draft: Draft, entry: Mapping[str, Any], name: str) -> None:
    columns, tags = (_mapping(entry.get(part)) for part in ("columns", "tags"))
    if entry.get("ranking") or draft.get("stage") in ("dpo", "kto", "rm"):
        draft.set("data.format", "preference", "dataset")
        return
    if draft.get("stage") == "pt" and columns.get("prompt") == "text":
        draft.set("data.format", "text", "dataset")
    else:
        chat = entry.get("formatting") == "sharegpt"
        draft.set("data.format", "chat" if chat else "alpaca", "dataset")
        odd = [t for t, v in tags.items() if v not in _TAGS.get(t, ())] if chat else []
        odd += _columns(draft, columns, _CHAT if chat else _ALPACA)
        if odd:
            draft.leave(
                "dataset", f"{name}: {', '.join(odd)} in dataset_info.json are not the names read here; rename them"
            )
        unnamed = [c for c in ("system", "history") if c not in columns and (c == "system" or not chat)]
        if unnamed:
            named = " and ".join(unnamed)
            draft.note(f"a column {named} of the rows is read here; there only if dataset_info.json names it")
    for key in ("subset", "split", "folder", "num_samples"):
        if entry.get(key) not in (None, "train"):
            draft.leave("dataset", f"{name}: {key} in dataset_info.json is not carried")


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _columns(draft: Draft, columns: Mapping[str, Any], known: Mapping[str, str]) -> list[str]:
    """Carry the names of columns; returns those that nothing here reads."""
    odd = []
    for theirs, own in columns.items():
        ours = known.get(theirs)
        if ours is None or not isinstance(own, str):
            odd.append(theirs)
        elif own != ours and not (ours == "conversations" and own == "messages"):
            draft.set(f"data.columns.{ours}", own, "dataset")
    return odd


# The run


def _run(draft: Draft) -> None:
    pretraining = draft.get("stage") == "pt"
    packed = draft.on("packing") or draft.on("neat_packing") or (pretraining and not draft.has("packing"))
    draft.set("data.packing", packed, "neat_packing" if draft.on("neat_packing") else "packing")
    draft.same("packing", "neat_packing")
    if packed and not draft.on("neat_packing"):
        draft.note("packed documents see each other there (without neat_packing); here they never do")
    length = draft.number("cutoff_len") if packed else None
    shared.batch(draft, "per_device_train_batch_size", "gradient_accumulation_steps", length)
    shared.length_of_run(draft, "num_train_epochs")
    shared.scheduler(draft, "lr_scheduler_type")
    if "scheduler.warmup_ratio" not in draft.result.values:
        shared.warmup(draft)
    shared.optimizer(draft, "optim")
    shared.strategy(draft)
    shared.evaluation(draft, "num_train_epochs")
    shared.report(draft)
    for key, name in (("pure_bf16", "bf16-true"), ("bf16", "bf16-mixed"), ("fp16", "16-mixed")):
        if draft.on(key):
            draft.set("trainer.precision", name, key)
            break
    else:
        draft.set("trainer.precision", "32-true", "bf16", "fp16")
        draft.note("without bf16 or fp16 it computes in the type the weights were saved in; fp32 is written here")
    draft.same("pure_bf16", "bf16", "fp16")
    off = draft.on("disable_gradient_checkpointing") or draft.given.get("gradient_checkpointing") is False
    draft.set("trainer.gradient_checkpointing", not off, "disable_gradient_checkpointing")
    draft.same("gradient_checkpointing")


_RL = "belongs to preference or reward training, which is not among the recipes here"
_OTHER = "not supported here: the run trains without it"
_INFER = "about inference, export or serving, which training does not read"
RULES: dict[str, Rule] = {
    **TRAINER_RULES,
    "add_tokens": To("model.add_tokens", shared.listed),
    **every(
        "model_name_or_path model_revision trust_remote_code flash_attn train_from_scratch template stage "
        "finetuning_type quantization_bit use_dora use_rslora pissa_init lora_rank lora_alpha lora_dropout "
        "lora_target double_quantization adapter_name_or_path dataset dataset_dir eval_dataset val_size max_samples "
        "train_on_prompt packing neat_packing pure_bf16 disable_gradient_checkpointing gradient_checkpointing",
        Handled(),
    ),
    "cutoff_len": To("data.max_length", whole),
    "pref_beta": To("task_recipe.beta"),
    "dataloader_num_workers": To("data.num_workers", whole),
    "mask_history": Not("the loss is on every answer of a conversation here, not on the last alone"),
    "default_system": Not("a default system message is not supported: write it into the rows"),
    "quantization_type": Not("NF4 is what there is", ("nf4",)),
    "quantization_method": Not("bitsandbytes is what there is", ("bnb", "bitsandbytes", "BNB")),
    "ignore_pad_token_for_loss": Not("padding never counts in the loss here", (True,)),
    "low_cpu_mem_usage": Not("weights are always loaded so", (True,)),
    "use_fast_tokenizer": Not("fast tokenizers are what is used", (True,)),
    "plot_loss": Not("report.html has the curves", (True, False)),
    "freeze_vision_tower": Not("text models only", (True,)),
    "freeze_multi_modal_projector": Not("text models only", (True,)),
    "freeze_language_model": Not("text models only"),
    "disable_shuffling": Not("rows are always shuffled here, by the seed"),
    "early_stopping_steps": To("callbacks.early_stopping.patience", whole),
    "additional_target": To("method.modules_to_save", shared.listed),
    "moe_aux_loss_coef": To("regularise.router_aux_loss_coef", number),
    "mix_strategy": Not("a run reads one set", ("concat",)),
    **every(
        "preprocessing_num_workers preprocessing_batch_size overwrite_cache tokenized_path streaming buffer_size "
        "data_shared_file_system cache_dir media_dir print_param_status eval_on_each_dataset compute_accuracy "
        "include_effective_tokens_per_second use_reentrant_gc predict_with_generate generation_max_length "
        "generation_num_beams generation_config sortish_sampler eval_num_beams swanlab_project swanlab_workspace "
        "swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret",
        Not("only about speed, caching or what is shown there: it changes nothing of what is learnt"),
    ),
    **every(
        "pref_loss pref_ftx pref_bco_weight dpo_label_smoothing kto_chosen_weight kto_rejected_weight simpo_gamma "
        "ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model ref_model_adapters "
        "ref_model_quantization_bit reward_model reward_model_adapters reward_model_quantization_bit "
        "reward_model_type ld_alpha",
        Not(_RL),
    ),
    **every(
        "infer_backend infer_dtype offload_folder use_kv_cache vllm_maxlen vllm_gpu_util vllm_enforce_eager "
        "vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config "
        "sglang_lora_backend export_dir export_size export_device export_quantization_bit "
        "export_quantization_dataset export_quantization_nsamples export_quantization_maxlen export_legacy_format "
        "export_hub_model_id do_sample temperature top_p top_k num_beams max_length max_new_tokens "
        "repetition_penalty length_penalty skip_special_tokens hf_hub_token ms_hub_token om_hub_token ray_run_name "
        "ray_storage_path ray_storage_filesystem ray_num_workers resources_per_worker placement_strategy "
        "ray_init_kwargs",
        Not(_INFER),
    ),
    **every(
        "loraplus_lr_ratio loraplus_lr_embedding pissa_iter pissa_convert create_new_adapter "
        "module_dropout oft_rank oft_block_size oft_target freeze_trainable_layers freeze_trainable_modules "
        "freeze_extra_modules use_galore galore_target galore_rank galore_update_interval galore_scale "
        "galore_proj_type galore_layerwise use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale "
        "apollo_proj apollo_proj_type apollo_layerwise apollo_scale_front use_badam badam_mode badam_start_block "
        "badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose use_swanlab "
        "use_llama_pro use_adam_mini use_mca use_muon use_dft_loss use_eaft_loss adapter_folder resize_vocab "
        "split_special_tokens add_special_tokens new_special_tokens_config init_special_tokens rope_scaling "
        "shift_attn mixture_of_depths use_unsloth use_unsloth_gc enable_liger_kernel "
        "upcast_layernorm upcast_lmhead_output use_v1_kernels quantization_device_map fp8 fp8_backend "
        "fp8_enable_fsdp_float8_all_gather image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches "
        "video_max_pixels video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate use_kt "
        "kt_optimize_rule cpu_infer chunk_size mode kt_maxlen kt_use_cuda_graph kt_mode kt_force_think tool_format "
        "enable_thinking interleave_probs",
        Not(_OTHER),
    ),
}

DIALECT = Dialect(
    "llama_factory",
    "LLaMA-Factory",
    RULES,
    {
        "learning_rate": 5e-5, "num_train_epochs": 3.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 42,
        "lr_scheduler_type": "linear", "optim": "adamw_torch", "per_device_train_batch_size": 8, "cutoff_len": 2048,
        "gradient_accumulation_steps": 1, "stage": "sft", "finetuning_type": "lora", "lora_rank": 8,
        "lora_dropout": 0.0, "lora_target": "all", "double_quantization": True, "val_size": 0.0, "flash_attn": "auto",
        "train_on_prompt": False, "packing": False, "disable_gradient_checkpointing": False, "bf16": False,
        "fp16": False, "warmup_steps": 0, "dataset_dir": "data", "freeze_trainable_layers": 2,
    },
    (_model, _task, _method, _data, _run),
    "it refuses the file, or with ALLOW_EXTRA_ARGS=1 drops the key without a word",
)  # fmt: skip
