"""What a run trains, as the trainer sees it: a model, batches of several tasks, losses, scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from gradvac.data.batches import Batch
from gradvac.data.encoded import EncodedTask
from gradvac.experiment.recipe.load import R
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.run.folder import TaskInfo
from gradvac.experiment.training.balance import Balance
from gradvac.experiment.training.build import device_of, uses_bf16
from gradvac.experiment.training.metrics import averages


class TaskBatch(Protocol):
    """Samples of several tasks: a dataclass whose tensors have the samples as first dimension.

    ``task`` [B] indexes ``tasks``; ``tokens`` counts what the loss is a mean of, ``counts`` the
    same of each task present, by name; ``padding`` is the share of cells that hold none.
    """

    @property
    def task(self) -> Tensor: ...  # noqa: D102
    @property
    def tasks(self) -> tuple[str, ...]: ...  # noqa: D102
    @cached_property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def counts(self) -> dict[str, int]: ...  # noqa: D102
    @property
    def present(self) -> list[int]: ...  # noqa: D102
    @property
    def padding(self) -> float: ...  # noqa: D102
    def of_task(self, index: int) -> Self: ...  # noqa: D102
    def to(self, device: torch.device) -> Self: ...  # noqa: D102


B = TypeVar("B", bound=TaskBatch)
V = TypeVar("V")


@dataclass(frozen=True)
class Prepared(Generic[R, V]):
    """The text side of a run, ready to train on; ``vocabulary`` is what it is encoded with."""

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
    """A model and its tasks. The trainer asks for nothing else, and knows no language.

    ``model`` is an `nn.Module`, which the constructor of a kind makes; ``identity``, JSON, is what
    a checkpoint has to agree with before a run goes on from it.
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
        """Batch ``number`` of the run, a function of the recipe and what `begin` learned."""

    @abstractmethod
    def losses(self, batch: B) -> tuple[Tensor, Tensor, Tensor]:
        """Training loss [N] and plain negative log-likelihood [N] of each token, its sample [N]."""

    @abstractmethod
    def mean_loss(self, drawn: Batch) -> Tensor:
        """The scalar training loss of sentences as they are drawn, wherever they lie."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """The validation line: each metric by name, lower is better; empty without such data."""

    def metrics(self) -> list[str]:
        """The names `validate` will return, without computing them."""
        valid = self.prepared.valid
        return list(averages(dict.fromkeys(valid, 0.0), self.levels)) if valid else []

    def begin(self, step: int) -> dict[str, Any] | None:
        """Get ready for ``step``; what to log if the shares of the tasks change here."""
        return self.balance.begin(step, self.model, self.mean_loss)

    def auxiliary_loss(self) -> Tensor | None:
        """A loss of the last whole batch that is no task's own; for joint training only."""
        return None

    def describe(self) -> list[str]:
        """Lines for the user before the first step: how tasks are drawn, the size of the model."""
        total = sum(p.numel() for p in self.model.parameters())
        return [self.balance.table(), f"{total:,} parameters"]

    def state_dict(self) -> dict[str, Any]:
        """What `begin` learned, for JSON."""
        return self.balance.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the job that returned ``state`` was."""
        self.balance.load_state_dict(state)


class RankJob(Job[B]):
    """The part of a job that one of several ranks has; ``sharded``: with its rows of the model."""

    sharded: bool

    @abstractmethod
    def tokens(self, number: int) -> int:
        """What the loss of batch ``number`` is a mean of, on all ranks together."""

    @abstractmethod
    def stand_in(self, number: int) -> B:
        """A sample of batch ``number``, for a rank that has none and gathers with the rest."""
