"""FAMO (Liu, Feng, Stone, Liu; NeurIPS 2023; arXiv 2306.03792): weights from the losses alone.

Algorithm 1 descends on log losses, weighted so that all of them fall at the same rate::

    z = softmax(w)
    update with c sum_i z_i grad log(L_i - b_i),    1/c = sum_i z_i / (L_i - b_i)
    delta_i = log(L_i before the step - b_i) - log(L_i after it - b_i)
    w <- Adam on  J^T delta + gamma w,   J the Jacobian of softmax

In the authors' code "after" means the same batch once more, an extra forward pass. By default the
losses of the *next step* are taken here, which cost nothing: the same for full batches, and with
mini-batches delta also contains the difference of the batches, which the average over steps
removes. To use the same batch, call :meth:`FAMO.after` with its losses after an extra forward pass.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import StepGeometry
from gradvac.methods.shared import SharedWeights, positive_losses

_BETAS, _EPS = (0.9, 0.999), 1e-8  # Adam's defaults (Kingma & Ba 2015), as in the authors' code


class FAMO(SharedWeights):
    """FAMO: raise the weights of the tasks whose log loss falls most slowly.

    Weights sum to 1. A task's logit changes when the task is seen again: the fall of its loss is
    then divided by the steps in between. Weights depend on losses, not on gradients; the scale of
    either does not matter. ``report()`` has ``task_weights`` and ``preferences`` (z, of log
    losses), both [groups, K].

    Args:
        learning_rate: of the logits; the paper's 0.025.
        weight_decay: gamma, of the logits; 1e-3 as in the paper (the authors' code: 1e-5).
        min_losses: lower bounds b_i by task name; 0 for the others.

    Raises:
        GradientError: if an argument is out of range and, from ``weights``, if a loss is not
            above its bound: its logarithm is taken.

    Example:
        >>> import torch
        >>> from gradvac import FAMO, StepGeometry
        >>> losses = torch.tensor([1.0, 3.0]).double()
        >>> step = StepGeometry(torch.eye(2).double()[None], losses, ("fr", "hi"), ("all",), step=0)
        >>> FAMO().weights(step)  # at first in proportion to 1 / loss
        tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """

    def __init__(
        self,
        learning_rate: float = 0.025,
        weight_decay: float = 1e-3,
        min_losses: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__("logits", "exp_avg", "exp_avg_sq", "updates", "losses", "steps")
        if not 0 < learning_rate < math.inf:
            raise GradientError(f"learning_rate is {learning_rate!r}; it must be positive")
        if not 0 <= weight_decay < math.inf:
            raise GradientError(f"weight_decay is {weight_decay!r}; it must be >= 0")
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.min_losses = dict(min_losses or {})
        # exp_avg, exp_avg_sq, updates: Adam's, per task; losses, steps: the last seen, above b.

    def _decide(self, geometry: StepGeometry) -> tuple[Tensor, dict[str, Tensor]]:
        tasks, step = geometry.tasks, geometry.step
        losses = positive_losses(geometry, geometry.mean_losses, "FAMO takes its logarithm", True)
        above = {
            task: self._above(task, loss) for task, loss in zip(tasks, losses.tolist(), strict=True)
        }
        self._learn(above, {task: step for task in tasks})
        logits = [self._state["logits"].get(task, 0.0) for task in tasks]
        z = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0)
        # The gradients at hand are of share * loss; log does not see the share.
        scale = torch.tensor(list(above.values()), dtype=torch.float64)
        if geometry.shares is not None:
            scale = scale * geometry.shares.double().cpu()
        self._state["losses"].update(above)
        self._state["steps"].update({task: float(step) for task in tasks})
        weights = z / scale
        return weights / weights.sum(), {"preferences": z}

    def after(self, losses: Mapping[str, float]) -> None:
        """Give the mean losses of tasks on the same batch, after the parameters were updated.

        Raises:
            GradientError: if a loss is not finite and above its bound, or the task's loss before
                the update is not known.
        """
        unknown = sorted(set(losses) - set(self._state["losses"]))
        if unknown:
            raise GradientError(f"after() before any step with task {unknown[0]!r}")
        above = {task: self._above(task, float(loss)) for task, loss in losses.items()}
        steps = self._state["steps"]
        self._learn(above, {task: int(steps[task]) + 1 for task in above})
        for task in above:
            del self._state["losses"][task], steps[task]

    def _above(self, task: str, loss: float) -> float:
        """How far a loss is above its bound."""
        bound = self.min_losses.get(task, 0.0)
        if not bound < loss < math.inf:
            raise GradientError(
                f"the loss of task {task!r} is {loss!r}; FAMO takes the logarithm of what is "
                f"above its bound {bound!r} (min_losses)"
            )
        return loss - bound

    def _learn(self, above: Mapping[str, float], steps: Mapping[str, int]) -> None:
        """Take one step of Adam on the logits of the tasks whose last loss is known."""
        state = self._state
        tasks = [task for task in above if task in state["losses"]]
        if not tasks:
            return
        read = lambda kind: torch.tensor(
            [state[kind].get(task, 0.0) for task in tasks], dtype=torch.float64
        )
        now = torch.tensor([above[task] for task in tasks], dtype=torch.float64)
        elapsed = torch.tensor([float(steps[task]) for task in tasks]) - read("steps")
        delta = (read("losses").log() - now.log()) / elapsed.clamp_min(1)
        logits, count = read("logits"), read("updates") + 1
        z = torch.softmax(logits, 0)
        slope = z * (delta - z @ delta) + self.weight_decay * logits
        mean = _BETAS[0] * read("exp_avg") + (1 - _BETAS[0]) * slope
        square = _BETAS[1] * read("exp_avg_sq") + (1 - _BETAS[1]) * slope.square()
        unbiased = (square / (1 - _BETAS[1] ** count)).sqrt() + _EPS
        logits = logits - self.learning_rate * mean / (1 - _BETAS[0] ** count) / unbiased
        new = {"logits": logits, "exp_avg": mean, "exp_avg_sq": square, "updates": count}
        for kind, values in new.items():
            state[kind].update(zip(tasks, values.tolist(), strict=True))
