"""The keys of transformers' TrainingArguments, which LLaMA-Factory and TRL read as they are."""

from tuneforge.importers.common import Handled, Not, Rule, To, every, number, switch, whole

SAVING = (
    "checkpoints are written at each evaluation here (trainer.val_check_interval); the best and the newest are kept"
)
LOGGING = "only about what is shown: metrics.jsonl has a line every trainer.log_every_n_steps, TensorBoard beside it"
HUB = "nothing is uploaded here; a run's adapter/ or model/ folder can be pushed as it is"
LOADER = "only about the speed of loading: rows are tokenised up front here"
METRICS = "eval loss and perplexity are what is measured here"
DEVICE = "the launch and its devices are worked out here: trainer.devices, trainer.accelerator"
MEMORY = "a memory or speed measure without an equal here; batch.per_device=auto fits the batch to the memory instead"

TRAINER_RULES: dict[str, Rule] = {
    **every(
        "per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps warmup_steps warmup_ratio "
        "lr_scheduler_type lr_scheduler_kwargs optim adam_beta1 adam_beta2 eval_strategy evaluation_strategy "
        "eval_steps bf16 fp16 deepspeed fsdp fsdp_config report_to",
        Handled(),
    ),
    "learning_rate": To("optim.lr", number),
    "weight_decay": To("optim.weight_decay", number),
    "adam_epsilon": To("optim.eps", number),
    "max_grad_norm": To("trainer.gradient_clip_val", number),
    "seed": To("seed", whole),
    "output_dir": To("output_root", str),
    "logging_steps": To("trainer.log_every_n_steps", whole),
    "save_total_limit": To("callbacks.checkpoints.keep_last", whole),
    "dataloader_num_workers": To("data.num_workers", whole),
    "full_determinism": To("trainer.deterministic", switch),
    "gradient_checkpointing": To("trainer.gradient_checkpointing", switch),
    "per_device_eval_batch_size": Not("evaluation takes as many rows at once as training does here"),
    "load_best_model_at_end": Not("the best checkpoint is always what a run saves here", (True,)),
    "metric_for_best_model": Not("the best is the one with the lowest eval loss here", ("loss", "eval_loss")),
    "greater_is_better": Not("the best is the one with the lowest eval loss here", (False,)),
    "average_tokens_across_devices": Not("the loss is always averaged over the tokens of all devices here", (True,)),
    "do_train": Not("import makes training runs", (True,)),
    "do_eval": Not("a run here always evaluates", (True,)),
    "data_seed": Not("one seed settles everything here: seed"),
    "resume_from_checkpoint": Not(
        "checkpoints of another tool cannot be resumed; resume=auto continues runs made here"
    ),
    "neftune_noise_alpha": Not("noise on embeddings (NEFTune) is not supported: the run trains without it"),
    "label_smoothing_factor": Not("label smoothing is not supported: the run trains without it", (0, 0.0, None)),
    "group_by_length": Not("rows are drawn at random here; packing removes the padding that grouping saves"),
    "train_sampling_strategy": Not("rows are drawn at random here", ("random",)),
    "optim_args": Not("extra optimizer options are not carried: set optim.<option> by hand where it exists"),
    "optim_target_modules": Not("the optimizer takes all trainable weights here"),
    "tf32": Not("there is no switch for TF32; PyTorch's default stands"),
    "use_liger_kernel": Not("Liger kernels are not used here: the same numbers, another speed and memory"),
    "use_cpu": Not("say trainer.accelerator=cpu"),
    "env": Not("environment variables are not set by a config here: export them in the shell"),
    **every(
        "save_strategy save_steps save_on_each_node save_safetensors overwrite_output_dir save_only_model", Not(SAVING)
    ),
    **every(
        "logging_dir logging_strategy logging_first_step logging_nan_inf_filter log_level log_level_replica run_name "
        "log_on_each_node disable_tqdm project trackio_space_id trackio_bucket_id trackio_static_space_id debug "
        "include_num_input_tokens_seen include_tokens_per_second skip_memory_metrics",
        Not(LOGGING),
    ),
    **every(
        "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision "
        "push_to_hub_model_id push_to_hub_organization push_to_hub_token",
        Not(HUB),
    ),
    **every(
        "dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names length_column_name",
        Not(LOADER),
    ),
    **every(
        "eval_delay eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps do_predict "
        "include_for_metrics include_inputs_for_metrics batch_eval_metrics prediction_loss_only bf16_full_eval "
        "fp16_full_eval past_index",
        Not(METRICS),
    ),
    **every(
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
        "local_rank accelerator_config parallelism_config no_cuda use_mps_device tpu_num_cores tpu_metrics_debug "
        "dispatch_batches split_batches ray_scope half_precision_backend fp16_opt_level fp16_backend use_ipex "
        "jit_mode_eval fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap mp_parameters",
        Not(DEVICE),
    ),
    **every(
        "gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs torch_compile "
        "torch_compile_backend torch_compile_mode torch_empty_cache_steps auto_find_batch_size liger_kernel_config "
        "use_cache enable_jit_checkpoint ignore_data_skip restore_callback_states_from_checkpoint torchdynamo",
        Not(MEMORY),
    ),
}
"""transformers' TrainingArguments, those of earlier versions included; LLaMA-Factory and TRL read them too."""
