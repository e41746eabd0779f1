//! Keys that Hugging Face's libraries know and that have no use here: a file that carries them loads with a warning.

/// Whether transformers, PEFT, TRL, bitsandbytes or Unsloth know this key.
pub(super) fn is_known(key: &str) -> bool {
    UNUSED.binary_search(&key).is_ok()
}

/// Sorted. From `TrainingArguments` (transformers 5.23 and older), `LoraConfig` (PEFT 0.21), `SFTConfig` and
/// `ORPOConfig` (TRL 1.16), `BitsAndBytesConfig`, and Unsloth's `from_pretrained`.
#[rustfmt::skip]
const UNUSED: &[&str] = &[
    "accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs",
    "adam_beta1", "adam_beta2", "adam_epsilon", "alora_invocation_tokens", "arrow_config", "assistant_only_loss",
    "attn_implementation", "auto_find_batch_size", "average_tokens_across_devices", "batch_eval_metrics", "bf16",
    "bf16_full_eval", "bias", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant", "buffer_size", "chat_template_path", "completion_only_loss", "corda_config",
    "data_seed", "dataloader_drop_last", "dataloader_in_order", "dataloader_multiprocessing_context",
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "dataset_kwargs", "dataset_name", "dataset_num_proc", "dataset_split",
    "dataset_text_field", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters",
    "ddp_static_graph", "ddp_timeout", "debug", "deepspeed", "device_map", "direction", "dirichlet_prior",
    "disable_tqdm", "do_eval", "do_predict", "do_train", "enable_jit_checkpoint", "ensure_weight_tying",
    "eos_token", "eva_config", "eval_accumulation_steps", "eval_delay", "eval_do_concat_batches", "eval_on_start",
    "eval_packing", "eval_use_gather_object", "exclude_modules", "fan_in_fan_out", "fp16", "fp16_full_eval", "fsdp",
    "fsdp_config", "full_determinism", "generate_during_eval", "gradient_checkpointing_kwargs", "greater_is_better",
    "group_by_length", "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy",
    "hub_token", "ignore_data_skip", "include_for_metrics", "include_num_input_tokens_seen", "inference_mode",
    "is_encoder_decoder", "kasa_config", "kl_loss_weight", "label_names", "label_pad_token_id",
    "label_smoothing_factor", "layer_replication", "layers_pattern", "layers_to_transform", "length_column_name",
    "liger_kernel_config", "load_in_8bit", "local_rank", "loftq_config", "log_level", "log_level_replica",
    "log_on_each_node", "logging_dir", "logging_first_step", "logging_nan_inf_filter", "logging_strategy",
    "lora_bias", "lora_ga_config", "loss_type", "lr_scheduler_kwargs", "max_completion_length", "max_length",
    "megatron_config", "megatron_core", "model_init_kwargs", "model_max_length", "modules_to_save",
    "monteclora_config", "neftune_noise_alpha", "num_proc", "num_samples", "optim_args", "optim_target_modules",
    "output_dir", "overwrite_output_dir", "packing_strategy", "pad_to_multiple_of", "pad_token", "padding_free",
    "padding_value", "parallelism_config", "peft_type", "prediction_loss_only", "project", "push_to_hub",
    "qalora_group_size", "remove_unused_columns", "restore_callback_states_from_checkpoint",
    "resume_from_checkpoint", "revision", "router_aux_loss_coef", "run_name", "runtime_config", "sample_scaler",
    "save_on_each_node", "save_only_model", "save_safetensors", "scale", "shuffle_dataset", "skip_memory_metrics",
    "stable_gamma", "target_parameters", "task_type", "test", "tf32", "token", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps", "trackio_bucket_id",
    "trackio_space_id", "trackio_static_space_id", "train_sampling_strategy", "trainable_token_indices",
    "truncation_mode", "truncation_side", "trust_remote_code", "use_bdlora", "use_cache", "use_cpu", "use_entropy",
    "use_fast", "use_gradient_checkpointing", "use_liger_kernel", "use_qalora", "use_reentrant", "velora_config",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::section::KEYS;

    #[test]
    fn the_table_is_sorted_and_holds_no_key_that_has_a_use() {
        assert!(UNUSED.is_sorted());
        assert!(!KEYS.iter().flat_map(|(_, keys)| *keys).any(|key| is_known(key)));
        assert!(is_known("dataloader_num_workers") && is_known("bias") && !is_known("learning_rat"));
    }
}
