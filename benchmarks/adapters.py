"""The workload of adapters: LoRA of rank 16 on every linear layer of a Llama of 7B parameters.

The parameters are random and the tokens too; costs do not depend on them. Needs transformers and
peft.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measuring import Workload, spread

LENGTH = 512  # tokens of a sample
NARROW = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=2)
SHAPES: dict[str, dict[str, int]] = {
    # Touvron et al. 2023, "Llama 2", 7B; the same layers without width, for the host alone; a test.
    "7B": dict(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
               num_attention_heads=32, num_hidden_layers=32),
    "narrow": NARROW | {"num_hidden_layers": 32},
    "tiny": NARROW | {"num_hidden_layers": 1},
}  # fmt: skip


@dataclass
class Adapted(Workload):
    """The model and a batch of samples, ``tokens`` [B, length]."""

    tokens: Tensor

    def losses(self, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses [N] of next tokens, divided by the tokens of the step, and the sample of each."""
        tokens = self.tokens if own is None else self.tokens[own.to(self.tokens.device)]
        device = tokens.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            logits = self.model(input_ids=tokens).logits[:, :-1]
            loss = F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
        rows = torch.arange(len(tokens), device=tokens.device)
        return loss.flatten() / self.tokens.numel(), rows.repeat_interleave(loss.shape[1])


def model_of(size: str = "7B", device: str = "cpu") -> nn.Module:
    """Build the model: bf16 beside adapters in float32, but all in float32 on a CPU."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[size], use_cache=False, max_position_embeddings=4096)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for an old name
        body: Any = LlamaForCausalLM(config)
        return get_peft_model(body if device == "cpu" else body.bfloat16(), adapter)


def adapted(
    n_tasks: int,
    tokens: int,
    size: str = "7B",
    in_order: bool = False,
    device: str = "cpu",
    length: int = LENGTH,
    model: nn.Module | None = None,
) -> Adapted:
    """Return the model, built here unless given, and a batch of samples spread over the tasks."""
    torch.manual_seed(0)
    task, names = spread(tokens // length, n_tasks)
    task = task.sort().values if in_order else task
    words = torch.randint(4, SHAPES[size]["vocab_size"], (tokens // length, length))
    model = model_of(size, device) if model is None else model
    return Adapted(model, task, names, words.to(device))
