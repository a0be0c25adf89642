"""CATS (reconstruction): Curvature Aware Task Scaling (Li & Gong, NeurIPS 2021; arXiv 2104.07639).

What is known: the authors' idea (learn task weights alpha that guide training to regions of low
curvature with uniformly low loss; scale and combine gradients instead of projecting them) and
their figures. Their pseudo-code and hyper-parameters were not available, and there is no official
code. The constrained objective below is that of two third-party implementations, one of
which moves its multipliers in the wrong direction; here they ascend::

    min_{theta, alpha}  sum_n alpha_n L_n
    subject to          curvature(alpha) <= eps,   sum_n alpha_n = 1,   alpha_n >= floor

    Lagrangian = sum_n alpha_n L_n + lambda_c (curvature(alpha) - eps)
                 + lambda_s (sum_n alpha_n - 1)^2 - sum_n lambda_n (alpha_n - floor)
    alpha descends, lambda >= 0 ascends

Near a minimum the Hessian is about E[g g^T], so a squared gradient norm approximates curvature. Of
the stacked alpha_n g_n (``diag``) it is sum_n alpha_n^2 |g_n|^2, of the combined gradient
(``full``) alpha^T G alpha; both come from the Gram matrix of the whole model.

The free alphas of the Lagrangian leave the simplex for a while by design, and with the plain steps
above they never return: raw losses push all of them below 0 at once, and lambda_s, which only
grows, moves them from 0 to 1 and back. So a step moves no alpha by more than half an equal share,
and the result is moved to the nearest point with ``floor <= alpha_n <= 1`` and a sum
between 1/2 and 2 (`nearest_weights`); if neither bound applies it is the plain step.

Our own additions: these two bounds, eps relative to the curvature at equal weights (an absolute one
has the unit of a squared gradient and fits only one set-up), the softmax in place of lambda_s and
lambda_n, the moving averages, the cap on lambda_c, and every default.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import StepGeometry
from gradvac.methods.pairs import PairTable
from gradvac.methods.shared import SharedWeights, check_number, positive_losses

# Below this share of the sum of squares the task gradients cancel at equal weights: there is no
# curvature to bound, and a bound relative to it means nothing. Chosen here.
_CANCELLED = 1e-2
# Bounds of a step of free alphas. Chosen here: wide enough for the Lagrangian to work.
_SUMS = (0.5, 2.0)
_SHARE = 0.5  # of 1/N


class CATS(SharedWeights):
    """CATS (reconstruction): learned task weights under a bound on a proxy of curvature.

    A task's weight is N alpha_n for N tasks seen so far: equal alphas give the plain sum. Use it
    with proportional (T = 1) sampling, as on the authors' poster. ``report()`` has
    ``task_weights`` [groups, K], ``curvature`` (in the unit of rho) and ``multiplier`` (lambda_c),
    both [groups].

    Args:
        rho: the bound: a fraction of the curvature at equal weights if ``bound`` is "relative",
            else eps itself.
        bound: "relative" or "absolute".
        parametrization: "softmax": alpha = floor + (1 - N floor) softmax(a), on the simplex by
            construction. "lagrangian": free alpha in [floor, 1] whose sum, between 1/2 and 2,
            lambda_s pulls to 1.
        cross_terms: curvature of the combined gradient ("full") instead of the stacked ("diag").
        loss_term: "raw" losses, their "ratio" to the first loss of each task, or "none". The
            loss term favours tasks with a low loss.
        floor: smallest alpha, as a fraction of 1/N, in [0, 1).
        learning_rate: of alpha and of the multipliers.
        update_every: steps between updates.
        warmup_steps: steps with equal weights; at least the optimizer's warm-up.
        smoothing: decay of the moving averages of Gram matrix and losses, in [0, 1).
        lambda_max: cap on lambda_c, which would grow for ever if the floor makes the bound
            impossible.

    Raises:
        GradientError: if an argument is out of range and, from ``weights`` with "ratio", if a
            first loss is not positive.

    Example:
        >>> import torch
        >>> from gradvac import CATS, StepGeometry
        >>> gram = torch.diag(torch.tensor([1.0, 9.0]).double())[None]  # lengths 1 and 3
        >>> method, losses = CATS(update_every=1, loss_term="none"), torch.ones(2).double()
        >>> for step in range(3):  # a smaller weight of the longer gradient: less curvature
        ...     method.weights(StepGeometry(gram, losses, ("fr", "hi"), ("all",), step))
        tensor([[1., 1.]], dtype=torch.float64)
        tensor([[1., 1.]], dtype=torch.float64)
        tensor([[1.0010, 0.9990]], dtype=torch.float64)
    """

    def __init__(
        self,
        rho: float = 0.8,
        bound: Literal["relative", "absolute"] = "relative",
        parametrization: Literal["softmax", "lagrangian"] = "softmax",
        cross_terms: bool = False,
        loss_term: Literal["raw", "ratio", "none"] = "raw",
        floor: float = 0.2,
        learning_rate: float = 0.1,
        update_every: int = 10,
        warmup_steps: int = 0,
        smoothing: float = 0.9,
        lambda_max: float = 1e3,
    ) -> None:
        super().__init__("alpha", "lambda_n", "losses", "initial")  # or logits of alpha
        _check_choice("bound", bound, ("relative", "absolute"))
        _check_choice("parametrization", parametrization, ("softmax", "lagrangian"))
        _check_choice("loss_term", loss_term, ("raw", "ratio", "none"))
        positive = {"rho": rho, "learning_rate": learning_rate, "lambda_max": lambda_max}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise GradientError(f"{name} is {value!r}; it must be finite and positive")
        for name, value in {"floor": floor, "smoothing": smoothing}.items():
            if not 0 <= value < 1:
                raise GradientError(f"{name} is {value!r}; it must lie in [0, 1)")
        if update_every < 1 or warmup_steps < 0:
            raise GradientError(
                f"update_every is {update_every!r} and warmup_steps {warmup_steps!r}; they must "
                "be at least 1 and 0"
            )
        self.rho = rho
        self.bound = bound
        self.parametrization = parametrization
        self.cross_terms = cross_terms
        self.loss_term = loss_term
        self.floor = floor
        self.learning_rate = learning_rate
        self.update_every = update_every
        self.warmup_steps = warmup_steps
        self.smoothing = smoothing
        self.lambda_max = lambda_max
        self._lambda_c = self._lambda_s = 0.0
        self._steps = 0
        self._averages = PairTable()  # "gram", and "weight": of the steps that are in it

    # -- a step ---------------------------------------------------------------------------------

    def _decide(self, geometry: StepGeometry) -> tuple[Tensor, dict[str, Tensor]]:
        losses = geometry.mean_losses.double().cpu()
        if self.loss_term == "ratio":
            losses = positive_losses(geometry, losses, "loss_term='ratio' divides by the first one")
        self._observe(geometry, losses.tolist())
        tasks = tuple(self._state["alpha"])
        here = [tasks.index(task) for task in geometry.tasks]
        weights = self._task_weights()
        alpha = weights / len(tasks)
        report = {
            "curvature": self._curvature(alpha, self._gram(tasks)),
            "multiplier": torch.tensor(self._lambda_c, dtype=torch.float64),
        }
        self._steps += 1
        if self._steps > self.warmup_steps and self._steps % self.update_every == 0:
            self._update(alpha, self._gram(tasks))
        return weights[here], report

    def _observe(self, geometry: StepGeometry, losses: list[float]) -> None:
        """Add new tasks with an equal share; update the averages."""
        alpha, initial, average = (self._state[kind] for kind in ("alpha", "initial", "losses"))
        known = len(alpha)
        for task, loss in zip(geometry.tasks, losses, strict=True):
            initial.setdefault(task, loss)
            old = average.get(task, loss)
            average[task] = self.smoothing * old + (1 - self.smoothing) * loss
            alpha.setdefault(task, 0.0)
            self._state["lambda_n"].setdefault(task, 0.0)
        if self.parametrization == "lagrangian" and len(alpha) > known:
            for n, task in enumerate(alpha):
                alpha[task] = alpha[task] * known / len(alpha) if n < known else 1 / len(alpha)
        gram = geometry.gram.sum(0).cpu()
        seen = torch.stack([gram, torch.ones_like(gram)])
        old = self._averages.read(("gram", "weight"), geometry.tasks)
        self._averages.write(
            ("gram", "weight"), geometry.tasks, self.smoothing * old + (1 - self.smoothing) * seen
        )

    def _gram(self, tasks: tuple[str, ...]) -> Tensor:
        """Averaged Gram matrix of the curvature, in the unit that rho has.

        It is ``[N, N]``, or its diagonal ``[N]`` without cross terms: tasks may be thousands.
        """
        read = self._averages.read if self.cross_terms else self._averages.diagonal
        gram, weight = read(("gram", "weight"), tasks)
        gram = torch.where(weight > 0, gram / weight, 0.0)  # 0 for pairs never seen together
        squares = gram.diagonal() if self.cross_terms else gram
        if self.bound == "absolute":
            return gram
        unit, stacked = (x.sum() / len(tasks) ** 2 for x in (gram, squares))  # at alpha = 1/N
        # Without gradients, or if they cancel, there is nothing to bound: curvature 0.
        return gram / unit if unit > _CANCELLED * stacked else torch.zeros_like(gram)

    def _curvature(self, alpha: Tensor, gram: Tensor) -> Tensor:
        return _times(gram, alpha) @ alpha

    def _task_weights(self) -> Tensor:
        """N alpha of all tasks seen, ``[N]``; exactly 1 where they are equal."""
        stored = torch.tensor(list(self._state["alpha"].values()), dtype=torch.float64)
        if self.parametrization == "lagrangian":
            return len(stored) * stored
        p = (stored - stored.max()).exp()
        return 1 + (1 - self.floor) * (p / p.mean() - 1)

    # -- the update -----------------------------------------------------------------------------

    def _update(self, alpha: Tensor, gram: Tensor) -> None:
        """Descend on alpha and ascend on the multipliers, from their current values."""
        tasks, lr = list(self._state["alpha"]), self.learning_rate
        slope = 2 * self._lambda_c * _times(gram, alpha) + self._loss_slope(tasks)
        excess = float(self._curvature(alpha, gram)) - self.rho
        if self.parametrization == "softmax":
            stored = torch.tensor(list(self._state["alpha"].values()), dtype=torch.float64)
            s = stored.softmax(0)
            stored = stored - lr * (1 - self.floor) * s * (slope - s @ slope)
        else:
            multipliers = torch.tensor([self._state["lambda_n"][t] for t in tasks]).double()
            over = float(alpha.sum()) - 1
            slope = slope + 2 * self._lambda_s * over - multipliers
            step = lr * slope
            largest, most = float(step.abs().max()), _SHARE / len(tasks)
            step = step * (most / largest) if largest > most else step
            stored = nearest_weights(alpha - step, self.floor / len(tasks), *_SUMS)
            self._lambda_s += lr * over**2
            multipliers = (multipliers + lr * (self.floor / len(tasks) - alpha)).clamp_min(0)
            self._state["lambda_n"].update(zip(tasks, multipliers.tolist(), strict=True))
        self._state["alpha"].update(zip(tasks, stored.tolist(), strict=True))
        self._lambda_c = min(max(0.0, self._lambda_c + lr * excess), self.lambda_max)

    def _loss_slope(self, tasks: list[str]) -> Tensor:
        """Derivative of the loss term by alpha, ``[N]``."""
        losses, initial = self._state["losses"], self._state["initial"]
        if self.loss_term == "none":
            return torch.zeros(len(tasks), dtype=torch.float64)
        unit = initial if self.loss_term == "ratio" else dict.fromkeys(tasks, 1.0)
        return torch.tensor([losses[t] / unit[t] for t in tasks], dtype=torch.float64)

    # -- what others see ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return weights, multipliers and averages by task name."""
        own = {
            "parametrization": self.parametrization,
            "lambda_c": self._lambda_c,
            "lambda_s": self._lambda_s,
            "steps": self._steps,
            "averages": self._averages.state_dict(),
        }
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where the method that returned ``state`` was.

        Raises:
            GradientError: if that method had another parametrization, or the state is of another
                method, or damaged; nothing is then changed.
        """
        self._check_state(state)
        _check_choice("parametrization", state["parametrization"], (self.parametrization,))
        for name in ("lambda_c", "lambda_s", "steps"):
            check_number(f"state {name!r}", state[name])
        averages = PairTable()
        averages.load_state_dict(state["averages"])
        super().load_state_dict(state)
        self._averages = averages
        self._lambda_c, self._lambda_s = float(state["lambda_c"]), float(state["lambda_s"])
        self._steps = int(state["steps"])
        alpha = self._state["alpha"]
        if self.parametrization == "lagrangian" and alpha:  # earlier versions let all of them be 0
            kept = torch.tensor(list(alpha.values()), dtype=torch.float64)
            kept = nearest_weights(kept, self.floor / len(alpha), *_SUMS)
            alpha.update(zip(alpha, kept.tolist(), strict=True))


def _times(gram: Tensor, alpha: Tensor) -> Tensor:
    """The matrix, or the diagonal one given by its diagonal, times a vector."""
    return gram * alpha if gram.dim() == 1 else gram @ alpha


def nearest_weights(weights: Tensor, low: float, least: float, most: float) -> Tensor:
    """Nearest point [N] with entries in [low, 1] and a sum between ``least`` and ``most``.

    All entries are shifted by one number and then cut at the bounds, as the conditions of Karush,
    Kuhn and Tucker require. That number is found by bisection.
    """
    cut = lambda shift: (weights + shift).clamp(low, 1)
    found = float(cut(0).sum())
    if least <= found <= most:
        return cut(0)
    goal = least if found < least else most
    below, above = low - float(weights.max()), 1 - float(weights.min())
    for _ in range(100):  # then no number is left between the two
        middle = (below + above) / 2
        below, above = (middle, above) if float(cut(middle).sum()) < goal else (below, middle)
    return cut(above)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise GradientError(f"{name} is {value!r}; it must be {' or '.join(allowed)}")
