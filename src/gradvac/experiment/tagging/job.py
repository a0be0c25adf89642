"""Sequence labelling as a job of the trainer: every language is a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradvac.data.batches import Batch, in_order
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.tagging.prepare import SHAPE
from gradvac.experiment.tagging.recipe import TaggingRecipe
from gradvac.experiment.training.job import Job, Prepared
from gradvac.experiment.training.metrics import averages
from gradvac.tagging.encoder import (
    cells_at_once,
    empty_tagger,
    fingerprint,
    label_losses,
    labels_of,
    pretrained_tagger,
)
from gradvac.tagging.encoding import IGNORED, TokenBatch, token_batch
from gradvac.tagging.scores import entity_counts, entity_f1


class TaggingJob(Job[TokenBatch]):
    """A pretrained encoder with a linear layer, on the tagged text of a prepared run folder."""

    def __init__(self, prepared: Prepared[TaggingRecipe, Any]) -> None:
        recipe, shape = prepared.recipe, prepared.folder / SHAPE
        self.labels, self.padding_id = labels_of(shape), prepared.vocabulary.pad_token_id or 0
        mark = fingerprint(prepared.vocabulary)
        super().__init__(prepared, {"tokenizer": mark, "labels": self.labels})
        self.by_word = recipe.data.task == "pos"  # otherwise by entity
        if list_checkpoints(self.folder / "checkpoints"):
            model = empty_tagger(shape)  # filled by the trainer: the encoder may be missing
        else:
            model = pretrained_tagger(recipe.model.encoder, shape, recipe.seed)
        self.model = model.to(self.device)

    def batch(self, number: int) -> TokenBatch:
        """Sentences of several languages."""
        return self._meant(self.balance.plan(number))

    def losses(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, plain negative log-likelihood and sentence of each word with a label."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return label_losses(self.model, batch, self.recipe.training.label_smoothing)

    def mean_loss(self, drawn: Batch) -> Tensor:
        """The scalar training loss of drawn sentences on any device."""
        return self.losses(self._meant(drawn).to(self.device))[0].mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL and perplexity by level and language, and ``error`` in percent.

        It is 100 minus the mean over languages of the entity F1, or of the accuracy of parts of
        speech; ``error/de`` is that of one language.
        """
        if not self.prepared.valid:
            return {}
        self.model.eval()
        nll, errors = {}, {}
        for index, task in enumerate(self.prepared.valid):
            nll[task], errors[task] = self._validate_task(index)
        return self._line(nll, errors)

    def _line(self, nll: dict[str, float], errors: dict[str, float]) -> dict[str, float]:
        line = averages(nll, self.levels)
        line["error"] = sum(errors.values()) / len(errors)
        return line | {f"error/{task}": value for task, value in errors.items()}

    def _validate_task(self, index: int) -> tuple[float, float]:
        """NLL per word and error of one language."""
        total, words, right = 0.0, 0, 0
        names, gold, found = self.labels, [], []
        for batch in self._in_order(index):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.model(input_ids=batch.ids, attention_mask=batch.mask).logits
            known = batch.labels != IGNORED
            scores = logits[known].float().log_softmax(-1)
            labels, guesses = batch.labels[known], scores.argmax(-1)
            total -= float(scores.gather(1, labels[:, None]).sum(dtype=torch.float64))
            words, right = words + len(labels), right + int((labels == guesses).sum())
            counts = known.sum(1).tolist()
            gold += [[names[i] for i in part.tolist()] for part in labels.split(counts)]
            found += [[names[i] for i in part.tolist()] for part in guesses.split(counts)]
        if self.by_word:
            return total / words, 100 - 100 * right / words
        return total / words, 100 - float(entity_f1(entity_counts(gold, found).sum(0)))

    def _in_order(self, index: int) -> Iterator[TokenBatch]:
        valid = self.prepared.valid
        for drawn in in_order(valid, tuple(valid), index, cells_at_once(self.device)):
            yield self._meant(drawn).to(self.device)

    def _meant(self, drawn: Batch) -> TokenBatch:
        return token_batch(drawn, len(self.labels), self.padding_id)

    def metrics(self) -> list[str]:
        """The names of the metrics of `validate`."""
        each = dict.fromkeys(self.prepared.valid, 0.0)
        return list(self._line(each, each)) if each else []

    def describe(self) -> list[str]:
        """Add the labels."""
        return [*super().describe(), f"labels: {', '.join(self.labels)}"]
