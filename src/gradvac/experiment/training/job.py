"""The interface of a job for the trainer: a model, multi-task batches, losses, validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradvac.data.batches import Batch, random_batch
from gradvac.data.encoded import EncodedTask
from gradvac.experiment.recipe.load import R
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.run.folder import TaskInfo
from gradvac.experiment.training.balance import Balance
from gradvac.experiment.training.build import device_of, uses_bf16
from gradvac.experiment.training.metrics import averages
from gradvac.geometry.measure import Losses, measure
from gradvac.methods import StepGeometry


class TaskBatch(Protocol):
    """Samples of several tasks: a dataclass whose tensors have the samples as first dimension.

    ``task`` [B] indexes ``tasks``; ``tokens`` is the number of tokens in the loss, ``counts`` the
    same for each task present, by name; ``padding`` is the share of padded cells.
    """

    @property
    def task(self) -> Tensor: ...  # noqa: D102
    @property
    def tasks(self) -> tuple[str, ...]: ...  # noqa: D102
    @cached_property
    def tokens(self) -> int: ...  # noqa: D102
    @cached_property
    def counts(self) -> dict[str, int]: ...  # noqa: D102
    @cached_property
    def present(self) -> list[int]: ...  # noqa: D102
    @property
    def padding(self) -> float: ...  # noqa: D102
    def of_task(self, index: int) -> Self: ...  # noqa: D102
    def to(self, device: torch.device) -> Self: ...  # noqa: D102


B = TypeVar("B", bound=TaskBatch)
V = TypeVar("V")


@dataclass(frozen=True)
class Prepared(Generic[R, V]):
    """The encoded text of a run, and the ``vocabulary`` of the encoding."""

    folder: Path
    recipe: R
    vocabulary: V
    tasks: dict[str, TaskInfo]
    train: Mapping[str, EncodedTask]
    valid: Mapping[str, EncodedTask]

    @property
    def levels(self) -> dict[str, str]:
        """Task -> resource level."""
        return {name: info.level for name, info in self.tasks.items()}


class Job(ABC, Generic[B]):
    """A model and its tasks: all that the trainer uses. The trainer does not depend on languages.

    ``model`` is an `nn.Module`, built by the constructor of each kind; ``identity`` (JSON) must
    equal that of a checkpoint before a run resumes from it.
    """

    model: Any

    def __init__(self, prepared: Prepared[Any, Any], identity: Mapping[str, Any]) -> None:
        self.prepared, self.folder = prepared, prepared.folder
        self.recipe: BaseRecipe = prepared.recipe
        training = self.recipe.training
        self.device = device_of(self.recipe.device)
        self.bf16 = uses_bf16(training.precision, self.device)
        self.tasks, self.levels = tuple(prepared.tasks), prepared.levels
        self.identity = {**identity, "tasks": list(prepared.tasks)}
        self.balance = Balance(
            self.recipe.batches,
            prepared.train,
            prepared.valid,
            seed=self.recipe.seed,
            steps=training.steps,
        )

    @abstractmethod
    def batch(self, number: int) -> B:
        """Batch ``number`` of the run; depends on the recipe and what `begin` learned."""

    @abstractmethod
    def losses(self, batch: B) -> tuple[Tensor, Tensor, Tensor]:
        """Training loss [N], plain negative log-likelihood [N] and sample [N] of each token."""

    @abstractmethod
    def mean_loss(self, drawn: Batch) -> Tensor:
        """The scalar training loss of drawn sentences on any device."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Validation metrics by name, lower is better; empty without validation text."""

    def metrics(self) -> list[str]:
        """The names of the metrics of `validate`, without computing them."""
        valid = self.prepared.valid
        return list(averages(dict.fromkeys(valid, 0.0), self.levels)) if valid else []

    def begin(self, step: int) -> dict[str, Any] | None:
        """Prepare for ``step``; returns what to log if the shares of the tasks change."""
        return self.balance.begin(step, self.model, self.mean_loss)

    def held_out(self, step: int) -> StepGeometry:
        """Mean losses and gradients of validation text of every task, with dropout off.

        A random batch of each, all together of the size of a training batch; depends only on the
        parameters, the seed and the step.
        """
        valid, seen = self.prepared.valid, {}
        tasks, size = tuple(valid), self.recipe.batches.size

        def loss_of(index: int) -> Losses:
            def parts() -> Iterator[Tensor]:
                rng = np.random.default_rng([self.recipe.seed, 4, step, index])
                batch = random_batch(valid, tasks, index, max(1, size // len(tasks)), rng)
                loss = self.mean_loss(batch)
                seen[index] = loss.detach().double()
                yield loss

            return parts

        losses = {task: loss_of(index) for index, task in enumerate(tasks)}
        frame = measure(self.model, losses, "whole_model", step)
        values = torch.stack([seen[index] for index in range(len(tasks))]).cpu()
        return StepGeometry(torch.from_numpy(frame.gram), values, tasks, frame.groups, step)

    def auxiliary_loss(self) -> Tensor | None:
        """An extra loss of the last whole batch, not of one task; for joint training only."""
        return None

    def describe(self) -> list[str]:
        """Lines to print before the first step: how tasks are drawn, the size of the model."""
        total = sum(p.numel() for p in self.model.parameters())
        return [self.balance.table(), f"{total:,} parameters"]

    def state_dict(self) -> dict[str, Any]:
        """The state learned by `begin`, for JSON."""
        return self.balance.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``."""
        self.balance.load_state_dict(state)


class RankJob(Job[B]):
    """The part of a job on one of several ranks; ``sharded``: it holds its rows of the model."""

    sharded: bool

    @abstractmethod
    def tokens(self, number: int) -> int:
        """The number of tokens in the loss of batch ``number``, on all ranks together."""

    @abstractmethod
    def stand_in(self, number: int) -> B:
        """A sample of batch ``number``, for a rank without samples that joins collectives."""
