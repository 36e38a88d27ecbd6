"""TRL's trainers other than SFT: a file names its trainer by the keys, losses and rows that no other trainer reads."""

KEYS: dict[str, str] = {
    "GRPO": (
        "reward_funcs scale_rewards num_iterations importance_sampling_level delta top_entropy_quantile entropy_coef "
        "entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target use_adaptive_entropy "
        "use_bias_correction_kl multi_objective_aggregation off_policy_mask_threshold sapo_temperature_neg "
        "sapo_temperature_pos vespo_k_neg vespo_k_pos vespo_lambda_neg vespo_lambda_pos cast_lm_head_to_fp32 "
        "fork_threshold_tokens max_staleness queue_maxsize max_inflight_tasks weight_sync_steps weight_sync_timeout "
        "heartbeat_stale_after_s token_budget request_timeout beta1 beta2 filter_all_incorrect num_value_samples "
        "num_generations num_generations_eval generation_batch_size steps_per_generation epsilon epsilon_high "
        "mask_truncated_completions vllm_importance_sampling_cap vllm_importance_sampling_clip_max "
        "vllm_importance_sampling_clip_min vllm_importance_sampling_correction vllm_importance_sampling_mode"
    ),
    "RLOO": "rloo_k normalize_advantages reward_clip_range token_level_kl",
    "PPO": (
        "num_ppo_epochs sft_model_path reward_model_path total_episodes num_mini_batches kl_coef cliprange "
        "cliprange_value vf_coef gamma lam whiten_rewards missing_eos_penalty response_length stop_token stop_token_id "
        "local_rollout_forward_batch_size num_sample_generations kl_estimator judge"
    ),
    "KTO": "desirable_weight undesirable_weight",
    "reward": "center_rewards_coefficient",
    "PRM": "step_separator train_on_last_step_only",
    "BCO": "prompt_sample_size min_density_ratio max_density_ratio",
    "Nash-MD": "mixture_coef",
    "CPO": "cpo_alpha simpo_gamma alpha",
    "TPO": "tpo_alpha tpo_l_gamma",
    "distillation": (
        "teacher_model_name_or_path teacher_model_init_kwargs teacher_model_revision teacher_model_kind "
        "teacher_model_server_url teacher_server_urls teacher_tokenizer_name_or_path teacher_temperature "
        "teacher_top_k teacher_prompt_template teacher_sync_steps teacher_update_rate use_teacher_server lmbda seq_kd "
        "distillation_add_tail distillation_alpha distillation_is_clip distillation_mode distillation_objective "
        "distillation_topk distillation_weight uld_crossentropy_weight uld_distillation_weight "
        "uld_hybrid_matched_weight uld_hybrid_unmatched_weight uld_skip_student_eos uld_skip_teacher_eos "
        "uld_student_temperature uld_teacher_temperature uld_token_merge_strategy uld_use_hybrid_loss use_uld_loss "
        "use_extended_uld iw_opd_epsilon iw_opd_gamma loss_add_tail loss_top_k add_tail_bucket reverse_kl_top_1_mode "
        "generate_from_teacher num_loss_tokens_to_skip diagnostics_flat_tolerance diagnostics_warning_interval "
        "dont_reprompt_on_self_success environment_feedback_only_without_solution feedback_template "
        "include_environment_feedback max_reprompt_len remove_thinking_from_demonstration reprompt_template "
        "solution_template success_reward_threshold use_successful_as_teacher vllm_sync_frequency "
        "wandb_log_unique_prompts"
    ),
    "DPO": (
        "precompute_ref_log_probs precompute_ref_batch_size max_prompt_length f_divergence_type "
        "f_alpha_divergence_coef use_weighting rpo_alpha discopop_tau ld_alpha loss_weights label_smoothing "
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps reference_free model_adapter_name ref_adapter_name "
        "force_use_ref_model use_logits_to_keep generate_during_eval padding_value is_encoder_decoder beta"
    ),
    "online": (
        "reward_model_name_or_path reward_weights temperature top_p top_k min_p repetition_penalty "
        "max_completion_length max_new_tokens max_tool_calling_iterations generation_kwargs chat_template_kwargs "
        "cache_implementation ds3_gather_for_generation log_completions log_completions_steps "
        "log_completions_hub_repo log_multimodal log_unique_prompts num_completions_to_print disable_dropout "
        "transformers_continuous_batching_config use_transformers_continuous_batching use_transformers_paged use_vllm "
        "vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port vllm_max_model_length vllm_mode "
        "vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout "
        "vllm_structured_outputs_regex vllm_tensor_parallel_size"
    ),
}
"""Trainer -> keys that SFT does not read, those that name it best first. Several share beta, or how they generate."""

LOSSES: dict[str, str] = {
    "KTO": "kto apo_zero_unpaired",
    "GRPO": "grpo dr_grpo dapo bnpo cispo sapo luspo vespo",
    "CPO": "simpo alphapo",
}
"""Trainer -> values of `loss_type`; what is none of these nor SFT's own is taken for a loss of DPO."""

OF_SFT = ("nll", "chunked_nll", "dft")
"""Values of `loss_type` under SFT."""

ROWS: dict[str, frozenset[str]] = {
    "DPO": frozenset({"chosen", "rejected"}),
    "PRM": frozenset({"completions", "labels"}),
}
"""Trainer -> columns of rows that are not for SFT."""
