"""GradNorm (Chen, Badrinarayanan, Lee, Rabinovich; ICML 2018; arXiv 1711.02257), on a Gram.

Task weights w_i are learned so that tasks with a slow training rate get longer gradients
(Algorithm 1), W being the parameters where norms are taken::

    G_i  = || grad_W (w_i L_i) ||       Gbar = mean_i G_i
    r_i  = (L_i / L_i(0)) / mean_j (L_j / L_j(0))
    Lgrad = sum_i | G_i - Gbar r_i^alpha |      Gbar r_i^alpha held constant
    w <- w - lr dLgrad/dw,   then renormalised so that sum_i w_i = number of tasks

For w_i > 0, ``G_i = w_i sqrt(Gram_ii)``, so ``dLgrad/dw_i = sign(G_i - Gbar r_i^alpha)
sqrt(Gram_ii)``: the Gram matrix of W replaces the paper's second backward pass.
"""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import StepGeometry
from gradvac.methods.shared import SharedWeights, positive_losses

_SMALLEST = 1e-3  # instead of a weight that a long step makes negative; chosen here


class GradNorm(SharedWeights):
    """GradNorm: one learned weight per task that balances gradient norms and training rates.

    The weights used in a step are those learned from the steps before it. Tasks absent from a step
    are not updated, but the sum is renormalised over all tasks seen so far; a new task begins
    with weight 1. ``report()`` has ``task_weights``, weighted ``norms`` and ``inverse_rates``, all
    [groups, K].

    Args:
        alpha: strength of the pull towards equal training rates; 0 equalises norms. The paper
            uses 1.5 for NYUv2 and 0.12 for its symmetric toy.
        learning_rate: of the weights; chosen here, because the norms are relative by default.
        group: where norms are taken: the name of a parameter group, "whole_model" for all of them
            together, or "last_layer": the last group whose name ends in a number, which is the
            last decoder layer under ``all_layer``, else the last group. Fully shared models
            have no "last shared layer", so the paper does not determine it.
        initial_losses: L_i(0): "first" for the first loss seen of each task, one number for all,
            such as log V for a cross-entropy over V classes (the paper's advice where L(0)
            depends on the initialisation), or a number per task.
        smoothing: decay of a moving average of each task's loss, in [0, 1); 0 as in the paper,
            0.9 or more where batches hold few samples of a task.
        relative: divide dLgrad/dw by the mean norm, so that the scale of the losses does not
            matter; False for exactly the paper's rule.

    Raises:
        GradientError: if an argument is out of range and, from ``weights``, if a loss is negative,
            a first loss is 0, a task has no initial loss, or the group does not exist.

    Example:
        >>> import torch
        >>> from gradvac import GradNorm, StepGeometry
        >>> gram = torch.diag(torch.tensor([1.0, 9.0]).double())[None]  # lengths 1 and 3
        >>> method, losses = GradNorm(learning_rate=0.1), torch.ones(2).double()
        >>> for step in range(2):  # equal losses: the shorter gradient gets the larger weight
        ...     method.weights(StepGeometry(gram, losses, ("fr", "hi"), ("all",), step))
        tensor([[1., 1.]], dtype=torch.float64)
        tensor([[1.1053, 0.8947]], dtype=torch.float64)
    """

    def __init__(
        self,
        alpha: float = 1.5,
        learning_rate: float = 0.025,
        group: str = "last_layer",
        initial_losses: Literal["first"] | float | Mapping[str, float] = "first",
        smoothing: float = 0.0,
        relative: bool = True,
    ) -> None:
        super().__init__("weights", "initial", "losses")
        if not 0 <= alpha < math.inf:
            raise GradientError(f"alpha is {alpha!r}; it must be finite and >= 0")
        if not 0 < learning_rate < math.inf:
            raise GradientError(f"learning_rate is {learning_rate!r}; it must be positive")
        if not 0 <= smoothing < 1:
            raise GradientError(f"smoothing is {smoothing!r}; it must lie in [0, 1)")
        _check_initial(initial_losses)
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.group = group
        self.initial_losses = initial_losses
        self.smoothing = smoothing
        self.relative = relative

    def _decide(self, geometry: StepGeometry) -> tuple[Tensor, dict[str, Tensor]]:
        tasks = geometry.tasks
        losses = positive_losses(geometry, geometry.mean_losses, "GradNorm needs losses >= 0", True)
        norm = self._gram(geometry).diagonal().clamp_min(0).sqrt()
        initial = {
            task: self._initial(task, loss)
            for task, loss in zip(tasks, losses.tolist(), strict=True)
        }
        known, average = self._state["weights"], self._state["losses"]
        weights = torch.tensor([known.get(task, 1.0) for task in tasks], dtype=torch.float64)
        smooth = torch.tensor([average.get(task, math.nan) for task in tasks], dtype=torch.float64)
        smooth = torch.where(
            smooth.isnan(), losses, self.smoothing * smooth + (1 - self.smoothing) * losses
        )
        rate = smooth / torch.tensor(list(initial.values()), dtype=torch.float64)
        r = rate / rate.mean() if bool(rate.any()) else torch.ones_like(rate)
        moved = self._move(weights, norm, r)
        for task, w, loss in zip(tasks, moved.tolist(), smooth.tolist(), strict=True):
            known[task], average[task] = w, loss
        self._state["initial"].update(initial)
        total = sum(known.values())
        for task in known:
            known[task] *= len(known) / total
        return weights, {"norms": weights * norm, "inverse_rates": r}

    def _move(self, weights: Tensor, norm: Tensor, r: Tensor) -> Tensor:
        """Take one step of gradient descent on Lgrad."""
        length = weights * norm
        unit = norm.mean() if self.relative and bool(norm.any()) else torch.ones(())
        slope = torch.sign(length - length.mean() * r**self.alpha) * norm / unit
        return (weights - self.learning_rate * slope).clamp_min(_SMALLEST)

    def _initial(self, task: str, loss: float) -> float:
        """L_i(0) of a task whose loss now is ``loss``."""
        given = self.initial_losses
        if isinstance(given, Mapping):
            if task not in given:
                near = get_close_matches(task, given, 1)
                raise GradientError(
                    f"task {task!r} has no initial loss; initial_losses are given for "
                    f"{', '.join(given)}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
            return given[task]
        if given != "first":
            return float(given)
        first = self._state["initial"].get(task, loss)
        if first == 0:
            raise GradientError(
                f"the first loss of task {task!r} is 0, so its training rate is undefined; give "
                "initial_losses"
            )
        return first

    def _gram(self, geometry: StepGeometry) -> Tensor:
        """Gram matrix of the chosen parameters, ``[K, K]``."""
        groups = geometry.groups
        if self.group in groups:
            return geometry.gram[groups.index(self.group)].cpu()
        if self.group == "whole_model":
            return geometry.gram.sum(0).cpu()
        if self.group == "last_layer":
            numbered = [n for n, name in enumerate(groups) if name.split(".")[-1].isdigit()]
            return geometry.gram[numbered[-1] if numbered else -1].cpu()
        near = get_close_matches(self.group, groups, 1)
        raise GradientError(
            f"group is {self.group!r}; it must be last_layer, whole_model or one of "
            f"{', '.join(groups)}" + (f"; did you mean {near[0]!r}?" if near else "")
        )


def _check_initial(given: Literal["first"] | float | Mapping[str, float]) -> None:
    if isinstance(given, str):
        if given != "first":
            raise GradientError(
                f"initial_losses is {given!r}; it must be 'first', a number or a number per task"
            )
        return
    for value in given.values() if isinstance(given, Mapping) else [given]:
        if not 0 < value < math.inf:
            raise GradientError(f"initial_losses holds {value!r}; it must be finite and positive")
