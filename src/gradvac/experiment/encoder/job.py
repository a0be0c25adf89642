"""Masked-language-model training as a job of the trainer: every language is a task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradvac.data.batches import Batch, in_order
from gradvac.experiment.encoder.recipe import EncoderRecipe
from gradvac.experiment.training.job import Job, Prepared
from gradvac.experiment.training.metrics import averages
from gradvac.tagging.encoder import fingerprint
from gradvac.tagging.encoding import TokenBatch, masked, token_batch
from gradvac.tagging.pretraining import build_encoder, masked_losses

VALIDATION_TOKENS = 8192  # padded cells per validation batch; affects only speed


class EncoderJob(Job[TokenBatch]):
    """A BERT that predicts masked subwords of the text of a prepared run folder."""

    def __init__(self, prepared: Prepared[EncoderRecipe, Any]) -> None:
        shape, self.tokenizer = prepared.recipe.model, prepared.vocabulary
        super().__init__(prepared, {"tokenizer": fingerprint(self.tokenizer)})
        self.masked = shape.masked
        model = build_encoder(len(self.tokenizer), shape.of_bert(), self.recipe.seed)
        self.model = model.to(self.device)

    def batch(self, number: int) -> TokenBatch:
        """Sentences of several languages, with different masked subwords each time."""
        return self._hidden(self.balance.plan(number), 0, number)

    def losses(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, plain negative log-likelihood and sentence of each masked subword."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return masked_losses(self.model, batch)

    def mean_loss(self, drawn: Batch) -> Tensor:
        """The scalar training loss of a batch on any device, always with the same masking."""
        return self.losses(self._hidden(drawn, 2, 0).to(self.device))[0].mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL and perplexity of masked subwords, always the same ones."""
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

    def _hidden(self, drawn: Batch, *what: int) -> TokenBatch:
        tokenizer = self.tokenizer
        return masked(
            token_batch(drawn, 0, tokenizer.pad_token_id),
            probability=self.masked,
            mask_id=tokenizer.mask_token_id,
            special=tokenizer.all_special_ids,
            vocabulary_size=len(tokenizer),
            rng=np.random.default_rng([self.recipe.seed, 8, *what]),
        )
