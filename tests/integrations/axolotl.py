"""A stand-in of Axolotl's trainer, arguments and collator, with the same names and hooks.

Written after axolotl 0.21; the mixin knows its classes by the name of their module.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

AXOLOTL = "axolotl.core.trainers.base"
MULTIPLE = 8  # rows are padded to it


@dataclass
class Arguments(TrainingArguments):
    sample_packing: bool = False
    multipack_real_batches: bool = False
    eval_sample_packing: bool = False
    pretraining: bool = False
    activation_offloading: bool = False
    layer_offloading: bool = False
    balance_labels: bool = False
    orpo_alpha: float | None = None


class Collator:
    """Pads sequences, or puts those of a row one after another; an unknown field is an error."""

    def __init__(self, side: str = "right") -> None:
        self.tokenizer = SimpleNamespace(padding_side=side)

    def __call__(self, features: list[Any]) -> dict[str, torch.Tensor]:
        if isinstance(features[0], list):  # packed
            features = [
                {key: torch.cat([f[key] for f in row]) for key in row[0]} for row in features
            ]
        longest = max(len(f["input_ids"]) for f in features)
        longest = -(-longest // MULTIPLE) * MULTIPLE
        return {key: torch.stack([self.pad(key, f[key], longest) for f in features]) for key in
                features[0]}  # fmt: skip

    def pad(self, key: str, values: torch.Tensor, length: int) -> torch.Tensor:
        missing = length - len(values)
        rest = torch.arange(missing) if key == "position_ids" else None
        rest = torch.full((missing,), -100 if key == "labels" else 0) if rest is None else rest
        return torch.cat([values, rest])


class AxolotlTrainer(Trainer):
    """As Axolotl's: a second collator, packing while loading, own preparation of a batch."""

    args: Any

    def __init__(
        self,
        *args: Any,
        bench_data_collator: Any = None,
        eval_data_collator: Any = None,
        dataset_tags: Any = None,
        **kwargs: Any,
    ) -> None:
        self.bench_data_collator = bench_data_collator
        self.eval_data_collator = eval_data_collator
        self.trained_tokens = 0
        super().__init__(*args, **kwargs)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None,
        is_training: bool = False, dataloader_key: Any = None,
    ) -> DataLoader[Any]:  # fmt: skip
        collator = self.data_collator if is_training else self.eval_data_collator
        if self.args.sample_packing if is_training else self.args.eval_sample_packing:
            dataset = [list(dataset[n : n + 3]) for n in range(0, len(dataset), 3)]
            batch_size = 2 if self.args.multipack_real_batches else 1
        loader = DataLoader(dataset, batch_size, collate_fn=collator)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            self.trained_tokens += int((inputs["labels"] != -100).sum())
        if self.args.sample_packing:  # or attention is not kept apart
            inputs.pop("attention_mask", None)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().training_step(*args, **kwargs)


AxolotlTrainer.__module__ = AXOLOTL
