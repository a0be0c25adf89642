"""Masked-language-model training as a job of the trainer: every language is a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gradvac.data.batches import Batch, in_order
from gradvac.experiment.encoder.prepare import PreparedEncoder
from gradvac.experiment.training.balance import Balance
from gradvac.experiment.training.build import device_of, uses_bf16
from gradvac.experiment.training.job import Job
from gradvac.experiment.training.metrics import averages
from gradvac.experiment.translation.prepare import Prepared
from gradvac.tagging.encoding import TokenBatch, masked, token_batch
from gradvac.tagging.pretraining import build_encoder, masked_losses

VALIDATION_TOKENS = 8192  # padded cells of a validation batch: a matter of speed alone


class EncoderJob(Job[TokenBatch]):
    """A BERT that guesses hidden subwords of the text of a prepared run folder."""

    def __init__(self, prepared: PreparedEncoder) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.masked = prepared.recipe.model.masked
        self.device = device_of(self.recipe.device)
        self.bf16 = uses_bf16(self.recipe.training.precision, self.device)
        self.tasks, self.levels = tuple(prepared.tasks), prepared.levels
        self.identity = {"tokenizer": prepared.fingerprint, "tasks": list(prepared.tasks)}
        shape, size = prepared.recipe.model.of_bert(), len(prepared.tokenizer)
        self.model = build_encoder(size, shape, self.recipe.seed).to(self.device)
        self.balance = Balance(cast(Prepared, prepared))

    def batch(self, number: int) -> TokenBatch:
        """Sentences of several languages, of which other subwords are hidden every time."""
        return self._hidden(self.balance.plan(number), 0, number)

    def begin(self, step: int) -> dict[str, Any] | None:
        """Learn new shares where that is due."""
        return self.balance.begin(step, self.model, self.mean_loss)

    def losses(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, plain negative log-likelihood and sentence of each hidden subword."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return masked_losses(self.model, batch)

    def mean_loss(self, drawn: Batch) -> Tensor:
        """The scalar training loss of a batch, wherever it lies; what is hidden is always alike."""
        return self.losses(self._hidden(drawn, 2, 0).to(self.device))[0].mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL and perplexity of hidden subwords, the same ones every time."""
        self.model.eval()
        valid, nll = self.prepared.valid, {}
        for index, task in enumerate(valid):
            total, count = 0.0, 0
            for number, drawn in enumerate(in_order(valid, tuple(valid), index, VALIDATION_TOKENS)):
                values = self.losses(self._hidden(drawn, 1, number).to(self.device))[1]
                total += float(values.sum(dtype=torch.float64))
                count += values.numel()
            nll[task] = total / count
        return averages(nll, self.levels) if nll else {}

    def metrics(self) -> list[str]:
        """The names of what `validate` measures."""
        valid = self.prepared.valid
        return list(averages(dict.fromkeys(valid, 0.0), self.levels)) if valid else []

    def _hidden(self, drawn: Batch, *what: int) -> TokenBatch:
        tokenizer = self.prepared.tokenizer
        return masked(
            token_batch(drawn, 0, tokenizer.pad_token_id),
            probability=self.masked,
            mask_id=tokenizer.mask_token_id,
            special=tokenizer.all_special_ids,
            vocabulary_size=len(tokenizer),
            rng=np.random.default_rng([self.recipe.seed, 8, *what]),
        )

    def describe(self) -> list[str]:
        """How languages are drawn, and how large the model is."""
        total = sum(p.numel() for p in self.model.parameters())
        return [self.balance.table(), f"{total:,} parameters"]

    def state_dict(self) -> dict[str, Any]:
        """Shares that were learned."""
        return self.balance.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with learned shares."""
        self.balance.load_state_dict(state)
