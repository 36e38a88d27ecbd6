"""Every key of Axolotl's configuration reference, those of earlier versions and its own plugins included."""

from tuneforge.importers.common import Handled, Not, Rule, To, every, number, switch, whole
from tuneforge.importers.shared import listed
from tuneforge.importers.trainer_args import DEVICE, HUB, LOADER, LOGGING, MEMORY, METRICS, SAVING

_KERNEL = "a faster kernel there; the numbers are the same without it"
_RL = "belongs to preference or reward training, which is not among the recipes here"
_TOKENS = "changing the tokenizer or its vocabulary is not supported: prepare the model's folder with it beforehand"
_TRACKER = "no such tracker here; metrics.jsonl and TensorBoard are written"
_OTHER = "not supported here: the run trains without it"
RULES: dict[str, Rule] = {
    **every(
        "base_model model_revision revision_of_model trust_remote_code reinit_weights attn_implementation "
        "chat_template chat_template_jinja rl reward_model process_reward_model datasets pretraining_dataset adapter "
        "test_datasets val_set_size load_in_4bit load_in_8bit lora_model_dir bnb_config_kwargs peft_use_dora "
        "peft_use_rslora sample_packing micro_batch_size gradient_accumulation_steps batch_size num_epochs max_steps "
        "warmup_steps warmup_ratio lr_scheduler lr_scheduler_kwargs optimizer adam_beta1 adam_beta2 deepspeed fsdp "
        "fsdp_config fsdp_version evals_per_epoch eval_steps eval_strategy evaluation_strategy bf16 fp16 "
        "gradient_checkpointing train_on_inputs excess_length_strategy lora_r lora_alpha lora_dropout "
        "lora_target_linear lora_target_modules flash_attention sdp_attention eager_attention flex_attention",
        Handled(),
    ),
    "sequence_len": To("data.max_length", whole),
    "learning_rate": To("optim.lr", number),
    "weight_decay": To("optim.weight_decay", number),
    "adam_epsilon": To("optim.eps", number),
    "max_grad_norm": To("trainer.gradient_clip_val", number),
    "cosine_min_lr_ratio": To("scheduler.min_lr_ratio", number),
    "seed": To("seed", whole),
    "output_dir": To("output_root", str),
    "logging_steps": To("trainer.log_every_n_steps", whole),
    "save_total_limit": To("callbacks.checkpoints.keep_last", whole),
    "dataloader_num_workers": To("data.num_workers", whole),
    "full_determinism": To("trainer.deterministic", switch),
    "num_generation_samples": To("samples.num", whole),
    "generation_max_new_tokens": To("samples.max_new_tokens", whole),
    "tokens": To("model.add_tokens", listed),
    "activation_offloading": To("trainer.activation_offload", switch),
    "rl_beta": To("task_recipe.beta", number),
    "model_type": Not("the class is read from the model's own config", ("AutoModelForCausalLM",)),
    "type_of_model": Not("the class is read from the model's own config", ("AutoModelForCausalLM",)),
    "tokenizer_type": Not("the class is read from the tokenizer's own config", ("AutoTokenizer",)),
    "tokenizer_use_fast": Not("fast tokenizers are what is used", (True,)),
    "load_best_model_at_end": Not("the best checkpoint is always what a run saves here", (True,)),
    "eval_sample_packing": Not("evaluation packs as training does here"),
    "pad_to_sequence_len": Not("rows are padded to the longest of their batch here: the same loss, less memory"),
    "group_by_length": Not("rows are drawn at random here; packing removes the padding that grouping saves"),
    "strict": Not("about Axolotl's own command line"),
    "early_stopping_patience": To("callbacks.early_stopping.patience", whole),
    "lora_modules_to_save": To("method.modules_to_save", listed),
    "router_aux_loss_coef": To("regularise.router_aux_loss_coef", number),
    "resume_from_checkpoint": Not(
        "checkpoints of another tool cannot be resumed; resume=auto continues runs made here"
    ),
    "auto_resume_from_checkpoints": Not("say resume=auto"),
    "tf32": Not("there is no switch for TF32; PyTorch's default stands"),
    "bfloat16": Not("weights in bf16 without autocast are trainer.precision=bf16-true: choose that by hand"),
    "float16": Not("training with fp16 weights is not supported"),
    "neftune_noise_alpha": Not("noise on embeddings (NEFTune) is not supported: the run trains without it"),
    "shuffle_merged_datasets": Not("rows are always shuffled here, by the seed", (True,)),
    "use_tensorboard": Not("TensorBoard is always written here (logger=none switches it off)", (True,)),
    "save_safetensors": Not("safetensors is the only format here", (True,)),
    "plugins": Not("Axolotl's plugins do not run here"),
    **every(
        "eval_batch_size eval_sequence_len do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset "
        "bench_split metric_for_best_model greater_is_better eval_table_size eval_max_new_tokens do_eval "
        "generate_samples generation_temperature generation_top_p generation_top_k generation_prompt_ratio "
        "generation_do_sample",
        Not(METRICS),
    ),
    **every("save_steps saves_per_epoch save_strategy save_only_model save_first_step dynamic_checkpoint", Not(SAVING)),
    **every(
        "profiler_steps profiler_steps_start include_tokens_per_second include_tkps debug axolotl_config_path "
        "is_preprocess preprocess_iterable total_num_tokens total_supervised_tokens sample_packing_eff_est "
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model "
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature "
        "merge_lora merge_method export loss_watchdog_threshold loss_watchdog_patience",
        Not(LOGGING),
    ),
    **every("hub_model_id hub_strategy hub_revision push_dataset_to_hub hf_use_auth_token", Not(HUB)),
    **every(
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory dataloader_pin_memory "
        "dataloader_prefetch_factor dataloader_drop_last remove_unused_columns sample_packing_group_size "
        "sample_packing_bin_size sample_packing_sequentially sample_packing_mp_start_method multipack_real_batches "
        "num_dataset_shards_to_save streaming streaming_multipack_buffer_size pretrain_multipack_buffer_size "
        "pad_to_multiple_of tokenizer_save_jinja_files batch_flattening",
        Not(LOADER),
    ),
    **every(
        "device device_map world_size local_rank ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_find_unused_parameters accelerator_config max_memory gpu_memory_limit use_ray ray_run_name "
        "ray_num_workers resources_per_worker dp_shard_size dp_replicate_size fsdp_final_state_dict_type",
        Not(DEVICE),
    ),
    **every(
        "gradient_checkpointing_kwargs selective_checkpointing layer_offloading torch_compile "
        "torch_compile_backend torch_compile_mode torch_compile_options auto_find_batch_size low_cpu_mem_usage "
        "gc_steps gc_collect_steps torch_empty_cache_steps lora_on_cpu qlora_sharded_model_loading tiled_mlp "
        "tiled_mlp_num_shards tiled_mlp_use_original_mlp deepcompile embeddings_skip_upcast ple_cpu_offload "
        "chunked_cross_entropy chunked_cross_entropy_num_chunks experimental_skip_move_to_device",
        Not(MEMORY),
    ),
    **every(
        "xformers_attention sage_attention flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv "
        "flash_attn_fuse_mlp flash_optimum flex_attn_compile_kwargs lora_mlp_kernel lora_qkv_kernel lora_o_kernel "
        "lora_embedding_kernel unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o "
        "unsloth_rms_norm unsloth_rope liger_rope liger_rms_norm liger_layer_norm liger_swiglu liger_glu_activation "
        "liger_cross_entropy liger_fused_linear_cross_entropy cut_cross_entropy use_kernels fused_attn_kernel "
        "sdpa_varlen gemma4_hybrid_attn_impl large_head_attention flash_attn_d512 experts_implementation",
        Not(_KERNEL),
    ),
    **every(
        "trl vllm ebft dpo_beta dpo_use_weighting dpo_use_logits_to_keep dpo_label_smoothing dpo_norm_loss "
        "dpo_padding_free dpo_generate_during_eval dpo_use_liger_kernel dpo_loss_type dpo_loss_weights orpo_alpha "
        "rpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight max_prompt_len num_labels "
        "center_rewards_coefficient precompute_ref_log_probs",
        Not(_RL),
    ),
    **every(
        "kd_trainer kd_ce_alpha kd_alpha kd_beta kd_temperature kd_normalize_topk kd_zscore_base_temp "
        "kd_top_k_before_softmax",
        Not("belongs to distillation, which is not among the recipes here"),
    ),
    **every(
        "special_tokens added_tokens_overrides eot_tokens tokenizer_config tokenizer_legacy "
        "tokenizer_use_mistral_common resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings "
        "fix_untrained_tokens default_system_message chat_template_kwargs base_model_config cls_model_config "
        "model_config model_kwargs overrides_of_model_config overrides_of_model_kwargs processor_type rope_scaling",
        Not(_TOKENS),
    ),
    **every(
        "use_wandb wandb_name wandb_run_id wandb_mode wandb_project wandb_entity wandb_watch wandb_log_model "
        "use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_comet "
        "comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online "
        "comet_experiment_config use_trackio trackio_project_name trackio_run_name trackio_space_id use_otel_metrics "
        "otel_metrics_host otel_metrics_port",
        Not(_TRACKER),
    ),
    **every(
        "lora_fan_in_fan_out lora_target_parameters lora_exclude_modules lora_rank_pattern "
        "lora_alpha_pattern peft peft_layers_to_transform peft_layers_pattern peft_layer_replication "
        "peft_init_lora_weights peft_trainable_token_indices peft_ensure_weight_tying peft_autocast_adapter_dtype gptq "
        "loraplus_lr_ratio loraplus_lr_embedding relora relora_steps relora_warmup_steps relora_anneal_steps "
        "relora_prune_ratio relora_prune_method relora_cpu_offload jagged_restart_steps jagged_restart_warmup_steps "
        "jagged_restart_anneal_steps lisa_n_layers lisa_step_interval lisa_layers_attribute unfrozen_parameters "
        "freeze_mm_modules embedding_lr embedding_lr_scale lr_groups lr_quadratic_warmup lr_div_factor optim_args "
        "cosine_constant_lr_ratio optim_target_modules torchdistx_path adam_epsilon2 adam_beta3 dion_lr dion_momentum "
        "dion_rank_fraction dion_rank_multiple_of muonclip fp8 fp8_config fp8_enable_fsdp_float8_all_gather float32 "
        "fp32_norms fp32_norm_classes qat quantization quantize_moe_experts model_quantization_config "
        "model_quantization_config_kwargs llama4_linearized_experts s2_attention sequence_parallel_degree "
        "context_parallel_size tensor_parallel_size heads_k_stride ring_attn_func use_pose pose_split_on_token_ids "
        "pose_max_context_len pose_num_chunks pretrain_multipack_attn pretraining_sample_concatenation "
        "curriculum_sampling min_sample_len shuffle_before_merging_datasets dataset_exact_deduplication "
        "dataset_shard_num dataset_shard_idx skip_prepare_dataset image_size image_resize_algorithm trainer_cls "
        "diffusion_lm scaling_softmax scaling_softmax_factor scaling_softmax_bias use_eaft eaft_alpha eaft_k use_dft "
        "noisy_embedding_alpha max_packed_sequence_len liger_use_token_scaling spectrum_top_fraction",
        Not(_OTHER),
    ),
}
