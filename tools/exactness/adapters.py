"""Adapters of PEFT on tiny models: every kind that trains with an ordinary forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .models import EXPERTS, TASKS, Architecture, T, text
from .reference import Case
from .tiny import built, configured

ATTENTION = ["q_proj", "v_proj"]
LINEAR = [*ATTENTION, "fc1"]
EXPERT_PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

Config = Callable[[Any], Any]
"""Makes a configuration, given the module ``peft``."""


def _causal(kind: str, **options: Any) -> Config:
    tokens = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
    return lambda peft: getattr(peft, kind)(**tokens, **options)


def _on(kind: str, targets: list[str] = LINEAR, **options: Any) -> Config:
    return lambda peft: getattr(peft, kind)(target_modules=targets, **options)


# OPT computes its norms in float64, so that errors are those of float64.
ON_OPT: dict[str, Config] = {
    "LoRA, attention": _on("LoraConfig", ATTENTION, r=3),
    "LoRA, all linear, dropout, rsLoRA": lambda peft: peft.LoraConfig(
        target_modules="all-linear", r=3, lora_dropout=0.1, use_rslora=True
    ),
    "LoRA, embeddings and a trained head": _on(
        "LoraConfig", ["embed_tokens", "q_proj"], r=3, modules_to_save=["lm_head"]
    ),
    "LoRA, biases trained": _on("LoraConfig", r=3, bias="all"),
    "LoRA, trainable tokens": _on("LoraConfig", r=3, trainable_token_indices=[4, 5, 6]),
    "DoRA": _on("LoraConfig", r=3, use_dora=True),
    "trainable tokens": lambda peft: peft.TrainableTokensConfig(token_indices=[4, 5, 6]),
    "IA3": _on("IA3Config", ["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]),
    "prefix tuning": _causal("PrefixTuningConfig"),
    "prompt tuning": _causal("PromptTuningConfig"),
    "P-tuning": _causal("PromptEncoderConfig", encoder_hidden_size=8),
    "VeRA": _on("VeraConfig", ATTENTION, r=3),
    "LoKr": _on("LoKrConfig", r=3),
    "LoHa": _on("LoHaConfig", r=3),
    "OFT": _on("OFTConfig", oft_block_size=4),
    "OFT, exact inverse": _on("OFTConfig", oft_block_size=4, use_cayley_neumann=False),
    "BOFT": _on("BOFTConfig", boft_block_size=4),
    "AdaLoRA": _on("AdaLoraConfig", init_r=4, target_r=2, total_step=10),
    "LN tuning": _on("LNTuningConfig", ["self_attn_layer_norm", "final_layer_norm"]),
    "FourierFT": _on("FourierFTConfig", n_frequency=10),
    "HRA": _on("HRAConfig", r=2),
    "VB-LoRA": _on("VBLoRAConfig", r=2, num_vectors=5, vector_length=4, topk=2),
    "RandLoRA": _on("RandLoraConfig", ATTENTION, r=2),
    "MiSS": _on("MissConfig", r=2),
    "SHiRA": _on("ShiraConfig", r=2),
    "C3A": _on("C3AConfig", ATTENTION, block_size=4),
    "RoAd": _on("RoadConfig", ATTENTION, group_size=4),
}
ELSEWHERE: dict[str, tuple[str, Config]] = {
    "LoRA": ("LlamaForCausalLM", _on("LoraConfig", [*ATTENTION, "up_proj"], r=3)),
    "DoRA": ("LlamaForCausalLM", _on("LoraConfig", [*ATTENTION, "up_proj"], r=3, use_dora=True)),
    "DoRA on Qwen3": ("Qwen3ForCausalLM", _on("LoraConfig", ATTENTION, r=3, use_dora=True)),
    "LoRA on GPT-2": ("GPT2LMHeadModel", _on("LoraConfig", ["c_attn"], r=3, fan_in_fan_out=True)),
    "DoRA on GPT-2": (
        "GPT2LMHeadModel",
        _on("LoraConfig", ["c_attn"], r=3, use_dora=True, fan_in_fan_out=True),
    ),
    "LoRA on T5": ("T5ForConditionalGeneration", _on("LoraConfig", ["q", "v", "wi"], r=3)),
}
ON_EXPERTS = ("MixtralForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM")


def _losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropies ``[B, T]``; virtual tokens stand before those of the batch."""
    logits = model(**batch).logits[:, -T:]
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator)
    return F.cross_entropy(logits.mT, labels, reduction="none")


def adapted(base: str, config: Config, experts: str = "") -> Case:
    """Build a tiny model with an adapter of which no parameter is zero."""
    import peft
    import transformers

    kind: Any = getattr(transformers, base)
    model: Any = built(kind, configured(kind.config_class))
    if experts:
        model.set_experts_implementation(experts)
    wrapped: Any = peft.get_peft_model(model, config(peft))
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    wrapped = wrapped.float() if experts == "grouped_mm" else wrapped.double()
    batch = text(model)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"].flip(1)
    return Case(wrapped.train(), partial(_losses, batch=batch), TASKS)


def adapters() -> Iterator[Architecture]:
    """Yield every adapter of the table, if PEFT is installed."""
    if find_spec("peft") is None or find_spec("transformers") is None:
        return
    case: Callable[[str], Case]
    for name, config in ON_OPT.items():
        yield _row(name, "OPTForCausalLM", config)
    for name, (base, config) in ELSEWHERE.items():
        yield _row(name.partition(" on ")[0], base, config)
    for base in ON_EXPERTS:
        experts = _on("LoraConfig", ["q_proj"], r=3, target_parameters=EXPERT_PARAMETERS)
        case = partial(adapted, base, experts)
        yield Architecture(f"LoRA, experts, {base}", "adapter", case, lambda: EXPERTS)


def _row(name: str, base: str, config: Config) -> Architecture:
    case = lambda experts: adapted(base, config)
    return Architecture(f"{name}, {base}", "adapter", case)
