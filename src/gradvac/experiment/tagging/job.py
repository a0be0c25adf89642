"""Sequence labelling as a job of the trainer: every language is a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from gradvac.data.batches import Batch, in_order
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.tagging.prepare import SHAPE, PreparedTagging
from gradvac.experiment.training.balance import Balance
from gradvac.experiment.training.build import device_of, uses_bf16
from gradvac.experiment.training.job import Job
from gradvac.experiment.training.metrics import averages
from gradvac.experiment.translation.prepare import Prepared
from gradvac.tagging.encoder import empty_tagger, label_losses, pretrained_tagger
from gradvac.tagging.encoding import IGNORED, TokenBatch, token_batch
from gradvac.tagging.scores import entity_counts, entity_f1

VALIDATION_TOKENS = 8192  # padded cells of a validation batch: a matter of speed alone


class Drawn:
    """What the sampler of translation is told of a run whose batches are counted in sentences."""

    def __init__(self, prepared: PreparedTagging) -> None:
        batches = prepared.recipe.batches
        self.recipe = _Settings(
            batches.model_copy(update={"tokens": batches.sentences}),
            prepared.recipe.seed,
            prepared.recipe.training,
        )
        self.train, self.valid = prepared.train, prepared.valid


class _Settings:
    def __init__(self, batches: Any, seed: int, training: Any) -> None:
        self.batches, self.seed, self.training = batches, seed, training


class TaggingJob(Job[TokenBatch]):
    """A pretrained encoder with a linear layer, on the tagged text of a prepared run folder."""

    def __init__(self, prepared: PreparedTagging) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        training = prepared.recipe.training
        self.device = device_of(self.recipe.device)
        self.bf16 = uses_bf16(training.precision, self.device)
        self.tasks, self.levels = tuple(prepared.tasks), prepared.levels
        self.identity = {
            "tokenizer": prepared.fingerprint,
            "labels": prepared.labels,
            "tasks": list(prepared.tasks),
        }
        shape = self.folder / SHAPE
        if list_checkpoints(self.folder / "checkpoints"):
            model = empty_tagger(shape)  # filled by the trainer: the encoder may be gone by now
        else:
            model = pretrained_tagger(prepared.recipe.model.encoder, shape, self.recipe.seed)
        self.model = model.to(self.device)
        self.balance = Balance(cast(Prepared, Drawn(prepared)))

    def batch(self, number: int) -> TokenBatch:
        """Sentences of several languages."""
        return self._meant(self.balance.plan(number))

    def begin(self, step: int) -> dict[str, Any] | None:
        """Learn new shares where that is due."""
        return self.balance.begin(step, self.model, self.mean_loss)

    def losses(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, plain negative log-likelihood and sentence of each word with a label."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return label_losses(self.model, batch, self.recipe.training.label_smoothing)

    def mean_loss(self, drawn: Batch) -> Tensor:
        """The scalar training loss of a batch, wherever it lies."""
        return self.losses(self._meant(drawn).to(self.device))[0].mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL and perplexity by level and language, and what is wrong: ``error``, in percent.

        That is 100 minus the mean over languages of the entity F1, or of the accuracy of parts of
        speech; ``error/de`` is one language's.
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
        names, gold, found = self.prepared.labels, [], []
        for batch in self._in_order(index):
            logits = self.model(input_ids=batch.ids, attention_mask=batch.mask).logits
            known = batch.labels != IGNORED
            scores = logits[known].float().log_softmax(-1)
            labels, guesses = batch.labels[known], scores.argmax(-1)
            total -= float(scores.gather(1, labels[:, None]).sum(dtype=torch.float64))
            words, right = words + len(labels), right + int((labels == guesses).sum())
            counts = known.sum(1).tolist()
            gold += [[names[i] for i in part.tolist()] for part in labels.split(counts)]
            found += [[names[i] for i in part.tolist()] for part in guesses.split(counts)]
        if self.prepared.recipe.data.task == "pos":
            return total / words, 100 - 100 * right / words
        return total / words, 100 - float(entity_f1(entity_counts(gold, found).sum(0)))

    def _in_order(self, index: int) -> Iterator[TokenBatch]:
        valid = self.prepared.valid
        for drawn in in_order(valid, tuple(valid), index, VALIDATION_TOKENS):
            yield self._meant(drawn).to(self.device)

    def _meant(self, drawn: Batch) -> TokenBatch:
        return token_batch(drawn, len(self.prepared.labels), self.prepared.padding_id)

    def metrics(self) -> list[str]:
        """The names of what `validate` measures."""
        each = dict.fromkeys(self.prepared.valid, 0.0)
        return list(self._line(each, each)) if each else []

    def describe(self) -> list[str]:
        """How languages are drawn, and how large the model is."""
        total = sum(p.numel() for p in self.model.parameters())
        labels = ", ".join(self.prepared.labels)
        return [self.balance.table(), f"{total:,} parameters", f"labels: {labels}"]

    def state_dict(self) -> dict[str, Any]:
        """Shares that were learned."""
        return self.balance.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with learned shares."""
        self.balance.load_state_dict(state)
