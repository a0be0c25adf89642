"""What every argument of the Trainer means with task gradients; each name is in one group."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

import transformers

UNCHANGED = frozenset(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate
    lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio optim_args weight_decay
    adam_beta1 adam_beta2 adam_epsilon optim_target_modules max_grad_norm bf16_full_eval
    fp16_full_eval tf32 use_liger_kernel liger_kernel_config use_cache auto_find_batch_size
    logging_dir logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter include_num_input_tokens_seen include_tokens_per_second log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size
    prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps include_for_metrics batch_eval_metrics save_strategy save_steps
    save_on_each_node save_total_limit save_safetensors enable_jit_checkpoint push_to_hub hub_token
    hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
    metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint
    full_determinism seed data_seed use_cpu dataloader_drop_last dataloader_num_workers
    dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy group_by_length
    length_column_name ddp_backend ddp_timeout debug skip_memory_metrics do_train do_eval do_predict
    local_rank
    sortish_sampler predict_with_generate generation_max_length generation_num_beams
    generation_config
    model_init_kwargs trust_remote_code chat_template_path dataset_text_field dataset_kwargs
    dataset_num_proc eos_token max_length truncation_mode shuffle_dataset pad_to_multiple_of
    eval_packing pad_token
    """.split()
)
"""Done by the code of transformers and TRL."""

SPLIT = frozenset(
    """
    gradient_accumulation_steps average_tokens_across_devices label_smoothing_factor bf16 fp16
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs neftune_noise_alpha torch_empty_cache_steps remove_unused_columns
    label_names save_only_model resume_from_checkpoint
    packing padding_free completion_only_loss assistant_only_loss loss_type activation_offloading
    """.split()
)
"""Done here, with the same meaning."""

REFUSED = frozenset(
    """
    torch_compile torch_compile_backend torch_compile_mode fsdp fsdp_config deepspeed
    parallelism_config ddp_broadcast_buffers
    """.split()
)
"""Rejected by name."""

SOME_VALUES = frozenset("optim accelerator_config packing_strategy router_aux_loss_coef".split())
"""Some values are rejected by name; with the others as in the Trainer."""

WITHOUT_EFFECT = frozenset("ddp_find_unused_parameters ddp_bucket_cap_mb ddp_static_graph".split())
"""Of a wrapper that is left out; the log says so."""

KNOWN = UNCHANGED | SPLIT | REFUSED | SOME_VALUES | WITHOUT_EFFECT

logger = logging.getLogger(__name__)


def declared(kind: type) -> Iterator[Field[Any]]:
    """Yield the fields of arguments that transformers and TRL declare, not those of a subclass."""
    own = ("transformers.", "trl.")
    names = {
        name
        for base in kind.__mro__
        if base.__module__.startswith(own)
        for name in vars(base).get("__annotations__", {})
    }
    for field in fields(kind):
        if field.name in names:
            yield field


def say_without_effect(args: Any) -> None:
    """Log which arguments have no effect with task gradients, or none that is known."""
    idle = sorted(name for name in WITHOUT_EFFECT if getattr(args, name, None) is not None)
    if idle:
        logger.warning(
            "%s: no effect, since task gradients need no DistributedDataParallel", ", ".join(idle)
        )
    new = [
        field.name
        for field in declared(type(args))
        if field.name not in KNOWN and getattr(args, field.name) != _default(field)
    ]
    if new:
        logger.warning(
            "%s: newer than the versions that are tested; with task gradients transformers %s may "
            "ignore it",
            ", ".join(new),
            transformers.__version__,
        )


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
