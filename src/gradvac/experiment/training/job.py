"""What a run trains, as the trainer sees it: a model, batches of several tasks, losses, scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from gradvac.experiment.recipe.sections import BaseRecipe


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


class Job(ABC, Generic[B]):
    """A model and its tasks. The trainer asks for nothing else, and knows no language.

    ``model`` is an `nn.Module`; ``identity``, JSON, is what a checkpoint has to agree with before a
    run goes on from it.
    """

    recipe: BaseRecipe
    folder: Path
    device: torch.device
    model: Any
    tasks: tuple[str, ...]
    levels: Mapping[str, str]
    identity: Mapping[str, Any]

    @abstractmethod
    def batch(self, number: int) -> B:
        """Batch ``number`` of the run, a function of the recipe and what `begin` learned."""

    @abstractmethod
    def losses(self, batch: B) -> tuple[Tensor, Tensor, Tensor]:
        """Training loss [N] and plain negative log-likelihood [N] of each token, its sample [N]."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """The validation line: each metric by name, lower is better; empty without such data."""

    @abstractmethod
    def metrics(self) -> list[str]:
        """The names `validate` will return, without computing them."""

    def begin(self, step: int) -> dict[str, Any] | None:
        """Get ready for ``step``; what to log if the shares of the tasks change here."""
        return None

    def auxiliary_loss(self) -> Tensor | None:
        """A loss of the last whole batch that is no task's own; for joint training only."""
        return None

    def describe(self) -> list[str]:
        """Lines for the user before the first step."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What `begin` learned, for JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the job that returned ``state`` was."""
