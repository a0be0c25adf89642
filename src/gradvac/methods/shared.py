"""Common parts of the methods that give a task one weight for the whole model."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import Method, StepGeometry


class TaskValues:
    """One float64 number per task and kind, kept by name; in ``state_dict`` as JSON can hold it."""

    def __init__(self, *kinds: str) -> None:
        self._values: dict[str, dict[str, float]] = {kind: {} for kind in kinds}

    def __getitem__(self, kind: str) -> dict[str, float]:
        return self._values[kind]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy: kind -> task -> number."""
        return {kind: dict(values) for kind, values in self._values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all numbers by a copy of ``state``.

        Raises:
            GradientError: if a value is not a finite number; nothing is then changed.
        """
        for kind in self._values:
            if not isinstance(state[kind], Mapping):
                raise GradientError(f"state {kind!r} is {state[kind]!r}; it must be task: number")
            for task, value in state[kind].items():
                check_number(f"state {kind!r} of task {task!r}", value)
        self._values = {
            kind: {str(task): float(value) for task, value in state[kind].items()}
            for kind in self._values
        }


def check_number(what: str, value: Any) -> None:
    """Raise GradientError unless a value is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise GradientError(f"{what} is {value!r}; it must be a finite number")


class SharedWeights(Method):
    """A task has the same weight in every group, decided from all groups of the step at once.

    Args:
        kinds: the kinds of numbers kept for each task, under ``_state``.

    Raises:
        GradientError: from ``weights``, if an engine passes other groups than before: passing
            them one by one would advance the state several times per step.
    """

    needs_all_groups = True

    def __init__(self, *kinds: str) -> None:
        self._state = TaskValues(*kinds)
        self._groups: frozenset[str] = frozenset()
        self._report: dict[str, Tensor] = {}

    def _weights(self, geometry: StepGeometry) -> Tensor:
        groups = frozenset(geometry.groups)
        if self._groups and groups != self._groups:
            raise GradientError(
                f"{type(self).__name__} needs all {len(self._groups)} parameter groups of step "
                f"{geometry.step} at once; found {', '.join(geometry.groups)}"
            )
        weights, report = self._decide(geometry)
        self._groups = groups
        n_groups = len(geometry.groups)
        self._report = {
            name: value.expand(n_groups, *value.shape)
            for name, value in ({"task_weights": weights} | report).items()
        }
        return weights.to(geometry.gram.device).repeat(n_groups, 1)

    @abstractmethod
    def _decide(self, geometry: StepGeometry) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weights of the tasks, ``[K]`` float64 on the CPU, and what to report."""

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and what is kept for each task: kind -> task -> number."""
        return super().state_dict() | self._state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the method that returned ``state`` was, perhaps with other groups.

        Raises:
            GradientError: if the state is of another method, or damaged; nothing is then changed.
        """
        self._check_state(state)
        self._state.load_state_dict(state)
        super().load_state_dict(state)
        self._groups = frozenset()

    def report(self) -> dict[str, Tensor]:
        """Return ``task_weights``, ``[groups, K]``, and what else the method says it reports."""
        return self._report


def positive_losses(
    geometry: StepGeometry, losses: Tensor, why: str, allow_zero: bool = False
) -> Tensor:
    """Return losses of the step, ``[K]`` float64 on the CPU, or reject those a method cannot use.

    Raises:
        GradientError: if a loss is negative, or 0 unless ``allow_zero``; ``why`` gives the reason.
    """
    losses = losses.detach().double().cpu()
    bad = losses < 0 if allow_zero else losses <= 0
    if bool(bad.any()):
        n = int(bad.nonzero()[0])
        raise GradientError(
            f"the loss of task {geometry.tasks[n]!r} is {losses[n].item()!r} at step "
            f"{geometry.step}; {why}"
        )
    return losses
