"""CATS (reconstruction): Curvature Aware Task Scaling (Li & Gong, NeurIPS 2021; arXiv 2104.07639).

What is known: the authors' idea (learn task weights alpha that guide training to regions of low
curvature with uniformly low loss; scale and combine gradients instead of projecting them) and
their figures. Their pseudo-code and hyper-parameters were not available, and there is no official
code. The constrained objective below is that of two third-party implementations, one of
which moves its multipliers in the wrong direction; here they ascend::

    min_{theta, alpha}  sum_n alpha_n L_n
    subject to          curvature(alpha) <= eps,   sum_n alpha_n = 1,   alpha_n >= floor

    Lagrangian = sum_n alpha_n L_n + lambda_c (curvature(alpha) - eps)
    alpha descends, lambda_c >= 0 ascends

Near a minimum the Hessian is about E[g g^T], so a squared gradient norm approximates curvature. Of
the combined gradient (``cross_terms``) it is alpha^T G alpha, of the stacked alpha_n g_n it is
sum_n alpha_n^2 |g_n|^2; both come from the Gram matrix of the whole model.

**Units.** In a batch the task n has the share s_n, and the gradients of the step are those of
s_n L_n. With ``units="mean"`` L_n is a task's mean loss and so is its gradient: G_nm is the
batches' Gram matrix over s_n s_m, as both codes take loss and gradient of one scalar. alpha begins
at the mean shares p_n, where the update is the plain sum, and the weight of a gradient of the
step is w_n = alpha_n / p_n. These w are kept, and updates multiply them::

    log w_n <- log w_n - learning_rate (L_n + 2 lambda_c (G alpha)_n) / (1 + lambda_c) + constant

p is averaged over many steps, absent tasks counting 0: a task in one batch of ten has to have all
of its alpha there, and the share of one batch, perhaps of one sentence, would undo the sampling.
Averages over batches are weighted by s_n s_m, so that a batch of few tokens counts little.

What a mini-batch does to it: noise of independent tokens adds about c / s_n to G_nn. If shares
were constant this would be least curvature at alpha = p, so noise alone moves nothing. But the
pull 2 p_n G_nn is then smaller by E[s_n]^2 / E[s_n^2] for a task that is often absent or
whose share varies: rare tasks gain weight by noise alone (a test shows it).
``gradients="validation"`` takes them of held-out text instead, as much of each task.

``units="share"`` is the form of earlier versions: mean losses, but G of the gradients of s_n L_n,
and alpha from equal weights on. Two parametrizations: ``softmax``, and ``lagrangian`` with
lambda_s (sum_n alpha_n - 1)^2 - sum_n lambda_n (alpha_n - floor) added. Its free alphas would never
return to the simplex, as raw losses push all of them below 0 at once. So a step moves no alpha by
more than half an equal share, and the result is moved to the nearest point with ``floor <= alpha_n
<= 1`` and a sum between 1/2 and 2 (`nearest_weights`).

Our own additions: these bounds, eps relative to the curvature at the start (an absolute one
has the unit of a squared gradient and fits only one set-up), the multiplicative updates and their
division by 1 + lambda_c, the softmax, the moving averages, the cap on lambda_c, every default.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import StepGeometry
from gradvac.methods.pairs import PairTable
from gradvac.methods.shared import SharedWeights, check_number, positive_losses
from gradvac.methods.simplex import nearest_weights, raised_to_floors

# Below this share of the sum of squares the task gradients cancel at the start: there is no
# curvature to bound, and a bound relative to it means nothing. Chosen here.
_CANCELLED = 1e-2
_MEMORY = 100  # steps over which shares are averaged. Chosen here, as are the bounds of a step:
_FACTOR = 0.5  # of log weights; reached by losses that are sums
_SUMS = (0.5, 2.0)  # of free alphas, wide enough for the Lagrangian to work
_SHARE = 0.5  # of 1/N, of free alphas


class CATS(SharedWeights):
    """CATS (reconstruction): learned task weights under a bound on a proxy of curvature.

    A task's weight is alpha_n over its mean share of the batches: alphas equal to the shares give
    the plain sum. Use it with proportional (T = 1) sampling, as on the authors' poster. A task
    that is not seen for 100 steps keeps its weight. Losses without shares count as mean losses,
    and a task's share is then the part of the steps that it is in.
    ``report()`` has ``task_weights`` [groups, K], ``curvature`` (in the unit of rho) and
    ``multiplier`` (lambda_c), both [groups].

    Args:
        rho: the bound: a fraction of the curvature at the first alphas if ``bound`` is "relative",
            else eps itself. By default 0.3, which gradients with cosines above 0 hardly allow, so
            that the step size decides how far weights go; 0.8 with ``units="share"``.
        bound: "relative" or "absolute".
        parametrization: of ``units="share"`` alone. "softmax", the default: alpha = floor +
            (1 - N floor) softmax(a), on the simplex by construction. "lagrangian": free alpha in
            [floor, 1] whose sum, between 1/2 and 2, lambda_s pulls to 1.
        cross_terms: curvature of the combined gradient instead of the stacked ones; the default
            is True, and False with ``units="share"``. A step then reads N^2 numbers: False suits
            thousands of tasks.
        loss_term: "raw" losses, their "ratio" to the first loss of each task, or "none". The
            loss term favours tasks with a low loss.
        floor: smallest alpha, in [0, 1), by default 1e-3; a task with a smaller share has a weight
            of at least 1. With ``units="share"`` a fraction of 1/N, by default 0.2.
        learning_rate: of alpha and of the multipliers.
        update_every: steps between updates.
        warmup_steps: steps with equal weights; at least the optimizer's warm-up.
        smoothing: decay of the moving averages of Gram matrix and losses, in [0, 1).
        lambda_max: cap on lambda_c, which would grow for ever if the floor makes the bound
            impossible.
        units: "mean": losses and gradients of each task's mean loss. "share": the form of earlier
            versions, whose gradients are those of shares of the step's loss.
        gradients: of which text alpha is learned: "training", the step's own, or "validation":
            what :meth:`observe` is given before each step that is :attr:`due`. For "mean" units.

    Raises:
        GradientError: if an argument is out of range and, from ``weights``, if with "ratio" a
            first loss is not positive, or with "validation" a task was not observed.

    Example:
        >>> import torch
        >>> from gradvac import CATS, StepGeometry
        >>> gram = torch.diag(torch.tensor([0.81, 0.01]).double())[None]  # 0.9 of it is French,
        >>> shares = torch.tensor([0.9, 0.1]).double()  # and mean losses have gradients of length 1
        >>> method = CATS(update_every=1)
        >>> for step in range(3):  # less curvature: a larger weight of the smaller share
        ...     method.weights(StepGeometry(gram, 2 * shares, ("fr", "hi"), ("all",), step, shares))
        tensor([[1., 1.]], dtype=torch.float64)
        tensor([[1., 1.]], dtype=torch.float64)
        tensor([[0.9987, 1.0115]], dtype=torch.float64)
    """

    def __init__(
        self,
        rho: float | None = None,
        bound: Literal["relative", "absolute"] = "relative",
        parametrization: Literal["softmax", "lagrangian"] | None = None,
        cross_terms: bool | None = None,
        loss_term: Literal["raw", "ratio", "none"] = "raw",
        floor: float | None = None,
        learning_rate: float = 0.1,
        update_every: int = 10,
        warmup_steps: int = 0,
        smoothing: float = 0.9,
        lambda_max: float = 1e3,
        units: Literal["mean", "share"] = "mean",
        gradients: Literal["training", "validation"] = "training",
    ) -> None:
        _check_choice("units", units, ("mean", "share"))
        _check_choice("gradients", gradients, ("training", "validation"))
        if (units, gradients) == ("share", "validation"):
            raise GradientError("gradients is 'validation'; units='share' has only 'training'")
        own = ["seen", "shares"] if units == "mean" else ["lambda_n"]
        own += ["observed"] * (gradients == "validation")
        super().__init__("alpha", "losses", "initial", *own)  # alpha, or logits of it
        if parametrization is not None:
            _check_choice("parametrization", parametrization, ("softmax", "lagrangian"))
            if units == "mean":
                raise GradientError(
                    f"parametrization is {parametrization!r}; units='mean' has none"
                )
        _check_choice("bound", bound, ("relative", "absolute"))
        _check_choice("loss_term", loss_term, ("raw", "ratio", "none"))
        mean = units == "mean"
        self.units = units
        self.gradients = gradients
        self.rho = (0.3 if mean else 0.8) if rho is None else rho
        self.floor = (1e-3 if mean else 0.2) if floor is None else floor
        self.cross_terms = mean if cross_terms is None else cross_terms
        self.parametrization = parametrization or ("multiplicative" if mean else "softmax")
        positive = {"rho": self.rho, "learning_rate": learning_rate, "lambda_max": lambda_max}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise GradientError(f"{name} is {value!r}; it must be finite and positive")
        for name, value in {"floor": self.floor, "smoothing": smoothing}.items():
            if not 0 <= value < 1:
                raise GradientError(f"{name} is {value!r}; it must lie in [0, 1)")
        if update_every < 1 or warmup_steps < 0:
            raise GradientError(
                f"update_every is {update_every!r} and warmup_steps {warmup_steps!r}; they must "
                "be at least 1 and 0"
            )
        self.bound = bound
        self.loss_term = loss_term
        self.learning_rate = learning_rate
        self.update_every = update_every
        self.warmup_steps = warmup_steps
        self.smoothing = smoothing
        self.lambda_max = lambda_max
        self._lambda_c = self._lambda_s = 0.0
        self._steps = 0
        self._averages = PairTable()  # "gram", and "weight": of the steps that are in it

    # -- a step ---------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the next step updates the weights."""
        number = self._steps + 1
        return number > self.warmup_steps and number % self.update_every == 0

    def observe(self, geometry: StepGeometry) -> None:
        """Take the gradients of held-out text, for ``gradients="validation"``.

        Losses are mean losses, and all parameters are in the groups; `gradvac.geometry.measure`
        takes such gradients.

        Raises:
            GradientError: if the method learns from training gradients.
            NotFiniteError: if an inner product or a loss is not finite; nothing is then changed.

        Example:
            >>> import torch
            >>> from gradvac import CATS, StepGeometry
            >>> seen = lambda gram, shares=None: StepGeometry(
            ...     torch.diag(torch.tensor(gram).double())[None],
            ...     torch.ones(2).double(), ("fr", "hi"), ("all",), 0, shares)
            >>> method = CATS(gradients="validation", update_every=1)
            >>> for step in range(3):
            ...     if method.due:  # here French has the longer gradient on held-out text
            ...         method.observe(seen([4.0, 1.0]))
            ...     weights = method.weights(seen([1.0, 1.0], torch.tensor([0.5, 0.5])))
            >>> weights
            tensor([[0.9921, 1.0079]], dtype=torch.float64)
        """
        if self.gradients == "training":
            raise GradientError("CATS observes training gradients; gradients is not 'validation'")
        geometry.check_finite()
        self._average(geometry, torch.ones(len(geometry.tasks), dtype=torch.float64))
        self._state["observed"].update(dict.fromkeys(geometry.tasks, float(self._steps)))

    def _decide(self, geometry: StepGeometry) -> tuple[Tensor, dict[str, Tensor]]:
        weight = torch.ones(len(geometry.tasks), dtype=torch.float64)
        if self.units == "mean" and geometry.shares is not None:
            weight = geometry.shares.double().cpu()
        if self.gradients == "training":
            self._average(geometry, weight)
        self._meet(geometry.tasks, weight.tolist())
        tasks, due = self._current(), self.due
        if due:
            self._check_observed(tasks, geometry.step)
        start, weights = self._start(tasks), self._task_weights(tasks)
        alpha, gram = start * weights, self._gram(tasks, start)
        report = {
            "curvature": _times(gram, alpha) @ alpha,
            "multiplier": torch.tensor(self._lambda_c, dtype=torch.float64),
        }
        self._steps += 1
        if due:
            self._update(tasks, alpha, gram, start)
        return weights[[tasks.index(task) for task in geometry.tasks]], report

    def _average(self, geometry: StepGeometry, weight: Tensor) -> None:
        """Update the moving averages of losses and Gram matrix; a task counts by ``weight``."""
        losses = geometry.mean_losses.double().cpu()
        if self.loss_term == "ratio":
            losses = positive_losses(geometry, losses, "loss_term='ratio' divides by the first one")
        initial, average = self._state["initial"], self._state["losses"]
        for task, loss in zip(geometry.tasks, losses.tolist(), strict=True):
            initial.setdefault(task, loss)
            old = average.setdefault(task, loss)
            average[task] = self.smoothing * old + (1 - self.smoothing) * loss
        seen = torch.stack([geometry.gram.sum(0).cpu(), weight.outer(weight)])
        before = self._averages.read(("gram", "weight"), geometry.tasks)
        self._averages.write(
            ("gram", "weight"),
            geometry.tasks,
            self.smoothing * before + (1 - self.smoothing) * seen,
        )

    def _meet(self, tasks: Sequence[str], shares: list[float]) -> None:
        """Add new tasks, with a weight of 1 or an equal alpha; update the mean shares."""
        alpha = self._state["alpha"]
        known = len(alpha)
        for task in tasks:
            alpha.setdefault(task, 0.0)
        if self.units == "mean":
            self._observe_shares(dict(zip(tasks, shares, strict=True)))
        else:
            for task in tasks:
                self._state["lambda_n"].setdefault(task, 0.0)
        if self.parametrization == "lagrangian" and len(alpha) > known:
            for n, task in enumerate(alpha):
                alpha[task] = alpha[task] * known / len(alpha) if n < known else 1 / len(alpha)

    def _check_observed(self, tasks: Sequence[str], step: int) -> None:
        """Raise GradientError if `observe` is missing before an update."""
        if self.gradients == "training":
            return
        observed = self._state["observed"]
        missing = [task for task in tasks if observed.get(task) != self._steps]
        if missing:
            raise GradientError(
                f"CATS(gradients='validation') updates at step {step}, and observe was not called "
                f"before it with a gradient of {', '.join(missing)}"
            )

    def _observe_shares(self, found: dict[str, float]) -> None:
        """Update the mean shares of all tasks; those absent from the step have a share of 0 there.

        The mean of the first steps, then a moving average.
        """
        shares, rate = self._state["shares"], max(1 / (self._steps + 1), 1 / _MEMORY)
        for task in {**shares, **found}:
            old = shares.get(task, 0.0)
            shares[task] = old + rate * (found.get(task, 0.0) - old)
        self._state["seen"].update(dict.fromkeys(found, float(self._steps)))

    def _current(self) -> tuple[str, ...]:
        """All tasks seen; of means only those seen lately, as others have no share of the text."""
        known = self._state["alpha"]
        if self.units == "share":
            return tuple(known)
        seen = self._state["seen"]
        return tuple(task for task in known if self._steps - seen[task] < _MEMORY)

    def _start(self, tasks: tuple[str, ...]) -> Tensor:
        """The alphas that give the plain sum, ``[N]``."""
        if self.units == "share":
            return torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64)
        shares = self._numbers("shares", tasks)
        return shares / shares.sum()

    def _gram(self, tasks: tuple[str, ...], start: Tensor) -> Tensor:
        """Averaged Gram matrix of the curvature, in the unit that rho has.

        It is ``[N, N]``, or its diagonal ``[N]`` without cross terms: tasks may be thousands.
        """
        read = self._averages.read if self.cross_terms else self._averages.diagonal
        gram, weight = read(("gram", "weight"), tasks)
        gram = torch.where(weight > 0, gram / weight, 0.0)  # 0 for pairs never seen together
        squares = gram.diagonal() if self.cross_terms else gram
        if self.bound == "absolute":
            return gram
        unit, stacked = (_times(x, start) @ start for x in (gram, squares))
        # Without gradients, or if they cancel, there is nothing to bound: curvature 0.
        return gram / unit if unit > _CANCELLED * stacked else torch.zeros_like(gram)

    def _task_weights(self, tasks: tuple[str, ...]) -> Tensor:
        """Weights of tasks, ``[N]``; exactly 1 where nothing was learned."""
        stored = self._numbers("alpha", tasks)
        if self.parametrization == "multiplicative":
            return stored.exp()
        if self.parametrization == "lagrangian":
            return len(stored) * stored
        p = (stored - stored.max()).exp()
        return 1 + (1 - self.floor) * (p / p.mean() - 1)

    def _numbers(self, kind: str, tasks: tuple[str, ...]) -> Tensor:
        return torch.tensor([self._state[kind][task] for task in tasks], dtype=torch.float64)

    # -- the update -----------------------------------------------------------------------------

    def _update(self, tasks: tuple[str, ...], alpha: Tensor, gram: Tensor, start: Tensor) -> None:
        """Descend on alpha and ascend on the multipliers, from their current values."""
        lr, stored = self.learning_rate, self._numbers("alpha", tasks)
        slope = 2 * self._lambda_c * _times(gram, alpha) + self._loss_slope(tasks)
        excess = float(_times(gram, alpha) @ alpha) - self.rho
        if self.parametrization == "multiplicative":
            # A rate that suits losses is far too large for a multiplier of a hundred.
            step = _at_most(
                _FACTOR, lr * (slope - alpha @ slope / alpha.sum()) / (1 + self._lambda_c)
            )
            stored = raised_to_floors(stored - step, start, (self.floor / start).clamp_max(1))
        elif self.parametrization == "softmax":
            s = stored.softmax(0)
            stored = stored - lr * (1 - self.floor) * s * (slope - s @ slope)
        else:
            multipliers = self._numbers("lambda_n", tasks)
            over = float(alpha.sum()) - 1
            step = _at_most(
                _SHARE / len(tasks), lr * (slope + 2 * self._lambda_s * over - multipliers)
            )
            stored = nearest_weights(alpha - step, self.floor / len(tasks), *_SUMS)
            self._lambda_s += lr * over**2
            multipliers = (multipliers + lr * (self.floor / len(tasks) - alpha)).clamp_min(0)
            self._state["lambda_n"].update(zip(tasks, multipliers.tolist(), strict=True))
        self._state["alpha"].update(zip(tasks, stored.tolist(), strict=True))
        self._lambda_c = min(max(0.0, self._lambda_c + lr * excess), self.lambda_max)

    def _loss_slope(self, tasks: tuple[str, ...]) -> Tensor:
        """Derivative of the loss term by alpha, ``[N]``."""
        losses = self._numbers("losses", tasks)
        if self.loss_term == "none":
            return torch.zeros_like(losses)
        return losses / self._numbers("initial", tasks) if self.loss_term == "ratio" else losses

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
            GradientError: if that method had other units or another parametrization, or the state
                is of another method, or damaged; nothing is then changed.
        """
        if isinstance(state, Mapping) and "parametrization" in state:
            units = "mean" if state["parametrization"] == "multiplicative" else "share"
            if units != self.units:
                raise GradientError(
                    f"units is {self.units!r}; the state is of CATS(units={units!r})"
                )
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


def _at_most(most: float, step: Tensor) -> Tensor:
    """A step, shortened so that no entry is larger than ``most``."""
    largest = float(step.abs().max())
    return step * (most / largest) if largest > most else step


def _times(gram: Tensor, alpha: Tensor) -> Tensor:
    """The matrix, or the diagonal one given by its diagonal, times a vector."""
    return gram * alpha if gram.dim() == 1 else gram @ alpha


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise GradientError(f"{name} is {value!r}; it must be {' or '.join(allowed)}")
