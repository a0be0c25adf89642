"""Tiny configurations of transformers: small values for whatever a configuration can be given."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

LARGEST = 400_000  # numbers in a model; larger ones are not tiny, whatever their configuration says

SIZES: dict[str, Any] = {
    "vocab_size": 23, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "max_position_embeddings": 32, "type_vocab_size": 2,
    "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "embedding_size": 16,
    "embed_dim": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "num_layers": 2,
    "n_layer": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_key_value_heads": 1,
    "num_kv_heads": 1, "head_dim": 8, "d_kv": 8, "intermediate_size": 12, "ffn_dim": 12,
    "d_ff": 12, "n_inner": 12, "ffn_hidden_size": 12, "hidden_dim": 12, "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12, "n_positions": 32, "n_ctx": 32, "max_sequence_length": 32,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
    "moe_shared_expert_intermediate_size": 8, "shared_intermediate_size": 8, "n_shared_experts": 1,
    "num_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
    "encoder_sparse_step": 2, "decoder_sparse_step": 1, "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0, "layerdrop": 0.0, "kv_lora_rank": 4, "q_lora_rank": 4,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "qk_head_dim": 8,
    "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4, "sliding_window": 4,
    "state_size": 4, "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_expand": 2,
    "time_step_rank": 4, "mamba_dt_rank": 4, "mamba_n_heads": 4, "mamba_d_head": 8,
    "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 4, "n_groups": 1,
    "mamba_n_groups": 1, "chunk_size": 4, "mamba_chunk_size": 4, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3, "lru_width": 16, "conv_L_cache": 3, "attention_window": [4, 4],
    "block_sizes": [1, 1], "relative_attention_num_buckets": 8, "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 23, "num_kv_shared_layers": 0, "rotary_dim": 4,
    "attention_hidden_size": 16, "hidden_size_per_head": 8, "bottleneck_size": 8,
    "intra_bottleneck_size": 8, "true_hidden_size": 8, "num_random_blocks": 1, "block_size": 2,
    "image_size": 32, "patch_size": 4, "num_channels": 3, "num_labels": 5, "depths": [1, 1],
    "hidden_sizes": [8, 16], "decoder_hidden_size": 8, "decoder_hidden_sizes": [8, 16],
    "sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2],
    "window_size": 2, "embed_dims": [8, 16], "conv_dim": 8, "conv_stride": 2,
    "conv_kernel": 3, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16,
    "apply_spec_augment": False, "num_codevectors_per_group": 4, "codevector_dim": 8,
    "proj_codevector_dim": 8, "classifier_proj_size": 8, "tdnn_dim": [8, 8],
    "output_hidden_size": 16, "num_frames": 2, "tubelet_size": [1, 4, 4], "use_cache": False,
    "max_length": 12, "embed_proj_dim": 16, "n_mels": 8,
    "num_codebooks": 1, "ngram": 2, "num_buckets": 4, "axial_pos_shape": [4, 8],
    "axial_pos_embds_dim": [8, 8], "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
    "feat_extract_norm": "layer", "emb_layers": 1, "channel": 8,
}  # fmt: skip
# What one family needs, beside or in place of SIZES.
OWN: dict[str, dict[str, Any]] = {
    "bit": {"num_groups": 4, "hidden_sizes": [8, 16, 16, 16], "embedding_size": 8},
    "codegen": {"n_head": 4, "n_embd": 32, "rotary_dim": 4},
    "ctrl": {"dff": 12},
    "cvt": {"embed_dim": [8, 8, 8], "num_heads": [1, 2, 2], "depth": [1, 1, 1],
            "patch_sizes": [7, 3, 3]},
    "diffllama": {"num_key_value_heads": 2},
    "dots3_note": {"num_key_value_heads": 2},
    "efficientnet": {"width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 16},
    "flaubert": {"emb_dim": 16},
    "xlm": {"emb_dim": 16},
    "esmc": {"num_key_value_heads": 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_expand": 2},
    "fsmt": {"src_vocab_size": 23, "tgt_vocab_size": 23},
    "funnel": {"d_inner": 12, "n_head": 2, "d_head": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "hgnet_v2": {"embedding_size": 8, "stem_channels": [3, 4, 8], "hidden_sizes": [8, 8, 16, 16],
                 "stage_in_channels": [8, 8, 8, 16], "stage_mid_channels": [4, 4, 4, 4],
                 "stage_out_channels": [8, 8, 16, 16], "stage_num_blocks": [1, 1, 1, 1],
                 "stage_numb_of_layers": [1, 1, 1, 1]},
    "hiera": {"image_size": [32, 32], "patch_size": [7, 7], "masked_unit_size": [4, 4],
              "num_query_pool": 2, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "embed_dim": 8},
    "kimi_linear": {"linear_attn_config": None},
    "levit": {"hidden_sizes": [8, 16, 16], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
              "key_dim": [4, 4, 4], "image_size": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "luke": {"entity_vocab_size": 7, "entity_emb_size": 8},
    "mamba2": {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "expand": 2},
    "mobilenet_v1": {"depth_multiplier": 0.1, "min_depth": 4},
    "mobilenet_v2": {"depth_multiplier": 0.1, "min_depth": 4, "depth_divisible_by": 4},
    "mobilevit": {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 4, 8, 8, 12, 16, 16],
                  "patch_size": 2, "num_attention_heads": 2, "image_size": 64},
    "mobilevitv2": {"n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [8, 8, 8],
                    "width_multiplier": 0.1, "patch_size": 2, "image_size": 64},
    "mpnet": {"pad_token_id": 1},
    "reformer": {"is_decoder": True, "axial_pos_shape": [2, 4]},
    "rocbert": {"pronunciation_vocab_size": 7, "shape_vocab_size": 7,
                "pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "roc_bert": {"pronunciation_vocab_size": 7, "shape_vocab_size": 7,
                 "pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "sew": {"squeeze_factor": 2, "conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [5, 4],
            "num_feat_extract_layers": 2},
    "sew-d": {"squeeze_factor": 2, "conv_dim": [8, 8], "conv_stride": [5, 4],
              "conv_kernel": [5, 4], "num_feat_extract_layers": 2},
    "speech_to_text": {"conv_channels": 16, "input_feat_per_channel": 8},
    "swin": {"image_size": 32, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8},
    "swinv2": {"image_size": 32, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8,
               "pretrained_window_sizes": [0, 0]},
    "donut-swin": {"image_size": 32, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8},
    "pvt": {"image_size": 32, "patch_sizes": [4, 2, 2, 2], "strides": [4, 2, 2, 2]},
    "siglip2_vision_model": {"num_patches": 4},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
              "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
              "layer_types": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"]},
}  # fmt: skip


def kwargs_of(config: type, own: dict[str, Any]) -> dict[str, Any]:
    """Return small values for the arguments of a configuration, as long as those it has."""
    allowed = inspect.signature(config.__init__).parameters
    try:
        usual = vars(config())
    except Exception:
        usual = {}
    given = {}
    for key, value in SIZES.items():
        if key in allowed:
            given[key] = _like(usual.get(key), value)
    return {**given, **{key: value for key, value in own.items() if key in allowed}}


def _like(usual: Any, value: Any) -> Any:
    """Make a value a number or a list of numbers, as the usual one is."""
    if isinstance(usual, list | tuple) and usual:
        values = list(value) if isinstance(value, list | tuple) else [value]
        return (values + values[-1:] * len(usual))[: len(usual)]
    if isinstance(usual, int | float) and isinstance(value, list | tuple):
        return value[0]
    return value


def configured(config: Any, own: dict[str, Any] | None = None) -> Any:
    """Return a tiny configuration of a family of models.

    Raises:
        Exception: whatever transformers raises if the values do not fit each other.
    """
    given = kwargs_of(config, {**OWN.get(config.model_type, {}), **(own or {})})
    for key, kind in getattr(config, "sub_configs", {}).items():
        if isinstance(kind, type) and key not in given and getattr(kind, "model_type", ""):
            given[key] = kwargs_of(kind, OWN.get(kind.model_type, {}))
    return config(**given)


def built(kind: type[nn.Module], config: Any) -> nn.Module:
    """Return a model in float64 of which no parameter starts at zero.

    Raises:
        ValueError: if it is too large.
    """
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters with its smallest configuration known here")
    torch.manual_seed(0)
    return perturbed(kind(config))


def perturbed(model: nn.Module) -> nn.Module:
    """Return a model in float64, in training, of which no parameter starts at zero."""
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.train()
