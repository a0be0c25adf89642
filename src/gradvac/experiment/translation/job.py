"""Translation as a job of the trainer: every direction is a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gradvac.data.batches import Batch, in_order
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.run.folder import fill
from gradvac.experiment.training.balance import Balance
from gradvac.experiment.training.build import build_model, device_of, parameter_count, uses_bf16
from gradvac.experiment.training.job import Job
from gradvac.experiment.training.metrics import averages
from gradvac.experiment.translation.model_folder import find_model, load_tensors, save_shape
from gradvac.experiment.translation.prepare import Prepared
from gradvac.text.languages import Direction
from gradvac.translation.transformer import Transformer

VALIDATION_TOKENS = 8192  # padded cells of a validation batch: a matter of speed alone


class TranslationJob(Job[Batch]):
    """The Transformer of a recipe on the text of a prepared run folder."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        training = self.recipe.training
        self.device = device_of(self.recipe.device)
        self.bf16 = uses_bf16(training.precision, self.device)
        self.tasks, self.levels = tuple(prepared.tasks), prepared.levels
        self.identity = {
            "vocabulary": prepared.vocabulary.fingerprint,
            "tasks": list(prepared.tasks),
        }
        tags = {prepared.vocabulary.tag_id(Direction.parse(t).target) for t in prepared.tasks}
        model = build_model(self.recipe, len(prepared.vocabulary), sorted(tags))
        if training.start_from and not list_checkpoints(self.folder / "checkpoints"):
            start = find_model(resolve(training.start_from)).parameters
            fill(model, load_tensors(start), start)
        self.model: Transformer = model.to(self.device)
        save_shape(self.folder, self.model.config)
        self.balance = Balance(prepared)

    def batch(self, number: int) -> Batch:
        """Sentence pairs of several directions."""
        return self.balance.plan(number)

    def begin(self, step: int) -> dict[str, Any] | None:
        """Learn new shares where that is due; tell the model where in its schedule it is."""
        self.model.begin_step(step / self.recipe.training.steps)
        return self.balance.begin(step, self.model, self.mean_loss)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Label-smoothed loss, plain negative log-likelihood and sentence of each target token."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, nll, rows = self.model.token_losses(
                batch.source,
                batch.target_in,
                batch.target_out,
                self.recipe.training.label_smoothing,
            )
        return loss, nll.detach(), rows

    def mean_loss(self, batch: Batch) -> Tensor:
        """The scalar training loss of a batch, wherever it lies."""
        return self.losses(batch.to(self.device))[0].mean()

    def auxiliary_loss(self) -> Tensor | None:
        """The budget of a model that routes by language."""
        return self.model.auxiliary_loss()

    @torch.no_grad()
    def validation_nll(self) -> dict[str, float]:
        """Mean negative log-likelihood per target token of every direction."""
        self.model.eval()
        tasks = tuple(self.prepared.valid)
        sums = torch.zeros(len(tasks), 2, dtype=torch.float64)
        for index, batch, counts in self.validation_batches(tasks):
            values = self.losses(batch.to(self.device))[1]
            if counts:
                own = [float(values.sum(dtype=torch.float64)), values.numel()]
                sums[index] += torch.tensor(own, dtype=torch.float64)
        sums = self.added_up(sums)
        return dict(zip(tasks, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))

    def validation_batches(self, tasks: tuple[str, ...]) -> Iterator[tuple[int, Batch, bool]]:
        """The validation text: position of the task, sentences, whether they are to be counted."""
        for index in range(len(tasks)):
            for batch in in_order(self.prepared.valid, tasks, index, VALIDATION_TOKENS):
                yield index, batch, True

    def added_up(self, sums: Tensor) -> Tensor:
        """Sums over all that validate: this process alone."""
        return sums

    def validate(self) -> dict[str, float]:
        """NLL and perplexity, by resource level and by direction."""
        return averages(self.validation_nll(), self.levels) if self.prepared.valid else {}

    def metrics(self) -> list[str]:
        """The names of what `validate` measures."""
        valid = self.prepared.valid
        return list(averages(dict.fromkeys(valid, 0.0), self.levels)) if valid else []

    def describe(self) -> list[str]:
        """How directions are drawn, and how large the model is."""
        return [self.balance.table(), parameter_count(self.model)]

    def state_dict(self) -> dict[str, Any]:
        """Shares that were learned."""
        return self.balance.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with learned shares."""
        self.balance.load_state_dict(state)
