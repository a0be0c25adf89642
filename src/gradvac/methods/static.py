"""Fixed task weights: the baselines for every method (Xin et al. 2022)."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import Method, StepGeometry
from gradvac.sending import to_device


class StaticWeights(Method):
    """The same weight for a task at every step and in every group.

    Args:
        weights: finite, non-negative weight of every task; None for a weight of one each.

    Raises:
        GradientError: if a weight is negative or not finite and, from ``weights``, if a task of
            the step has none, so that a misspelt name does not silently get a default.

    Example:
        >>> import torch
        >>> from gradvac import StaticWeights, StepGeometry
        >>> gram = torch.eye(2).double()[None]
        >>> step = StepGeometry(gram, torch.ones(2).double(), ("fr", "hi"), ("all",), step=0)
        >>> StaticWeights({"fr": 1, "hi": 3}).weights(step)
        tensor([[1., 3.]], dtype=torch.float64)
    """

    on_device = True

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        for task, weight in (weights or {}).items():
            if not (math.isfinite(weight) and weight >= 0):
                raise GradientError(f"weight of task {task!r} is {weight!r}; it must be >= 0")
        self._by_task = None if weights is None else dict(weights)

    def _weights(self, geometry: StepGeometry) -> Tensor:
        weights = torch.tensor([self._of(task) for task in geometry.tasks], dtype=torch.float64)
        return to_device(weights, geometry.gram.device).repeat(len(geometry.groups), 1)

    def keep_if(self, finite: Tensor, before: Any) -> None:
        """Do nothing: there is no state."""

    def _of(self, task: str) -> float:
        if self._by_task is None:
            return 1.0
        if task not in self._by_task:
            near = get_close_matches(task, self._by_task, 1)
            raise GradientError(
                f"task {task!r} has no weight; weights are given for {', '.join(self._by_task)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return self._by_task[task]


class Joint(StaticWeights):
    """Plain multi-task training: the sum of the task gradients.

    Example:
        >>> import torch
        >>> from gradvac import Joint, StepGeometry
        >>> gram = torch.eye(2).double()[None]
        >>> step = StepGeometry(gram, torch.ones(2).double(), ("fr", "hi"), ("all",), step=0)
        >>> Joint().weights(step)
        tensor([[1., 1.]], dtype=torch.float64)
    """

    def __init__(self) -> None:
        super().__init__(None)
