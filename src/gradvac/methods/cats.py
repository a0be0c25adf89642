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
and alpha from equal weights on. It has two parametrizations (`gradvac.methods.alphas`).

Our own additions: the bounds of a step, eps relative to the curvature at the start (an absolute
one has the unit of a squared gradient and fits only one set-up), the multiplicative updates and
their division by 1 + lambda_c, the moving averages, the cap on lambda_c, every default.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.alphas import FORMS, FreeAlphas
from gradvac.methods.base import StepGeometry
from gradvac.methods.pairs import PairTable
from gradvac.methods.shared import SharedWeights, check_number, positive_losses

# Below this share of the sum of squares the task gradients cancel at the start: there is no
# curvature to bound, and a bound relative to it means nothing. Chosen here.
_CANCELLED = 1e-2


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
        >>> seen = lambda step: StepGeometry(gram, 2 * shares, ("fr", "hi"), ("all",), step, shares)
        >>> for step in range(3):  # less curvature: a larger weight of the smaller share
        ...     method.weights(seen(step)).round(decimals=4)
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
        form = FORMS[self.parametrization]
        own = (*form.kinds, *["observed"] * (gradients == "validation"))
        super().__init__("alpha", "losses", "initial", *own)  # alpha, or logits of it
        self._alphas = form(self._state, self.floor, learning_rate)
        self.bound = bound
        self.loss_term = loss_term
        self.learning_rate = learning_rate
        self.update_every = update_every
        self.warmup_steps = warmup_steps
        self.smoothing = smoothing
        self.lambda_max = lambda_max
        self._lambda_c = 0.0
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
        self._alphas.meet(dict(zip(geometry.tasks, weight.tolist(), strict=True)), self._steps)
        tasks, due = self._alphas.current(self._steps), self.due
        if due:
            self._check_observed(tasks, geometry.step)
        start, weights = self._alphas.start(tasks), self._alphas.weights(tasks)
        alpha, gram = start * weights, self._gram(tasks, start)
        report = {
            "curvature": _times(gram, alpha) @ alpha,
            "multiplier": torch.tensor(self._lambda_c, dtype=torch.float64),
        }
        self._steps += 1
        if due:
            self._update(tasks, alpha, gram)
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

    # -- the update -----------------------------------------------------------------------------

    def _update(self, tasks: tuple[str, ...], alpha: Tensor, gram: Tensor) -> None:
        """Descend on alpha and ascend on the multipliers, from their current values."""
        slope = 2 * self._lambda_c * _times(gram, alpha) + self._loss_slope(tasks)
        excess = float(_times(gram, alpha) @ alpha) - self.rho
        self._alphas.move(tasks, alpha, slope, self._lambda_c)
        new = self._lambda_c + self.learning_rate * excess
        self._lambda_c = min(max(0.0, new), self.lambda_max)

    def _loss_slope(self, tasks: tuple[str, ...]) -> Tensor:
        """Derivative of the loss term by alpha, ``[N]``."""
        losses, initial = (self._alphas.numbers(kind, tasks) for kind in ("losses", "initial"))
        if self.loss_term == "none":
            return torch.zeros_like(losses)
        return losses / initial if self.loss_term == "ratio" else losses

    # -- what others see ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return weights, multipliers and averages by task name."""
        own = {
            "parametrization": self.parametrization,
            "lambda_c": self._lambda_c,
            "lambda_s": self._alphas.pull,
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
        self._lambda_c, self._alphas.pull = float(state["lambda_c"]), float(state["lambda_s"])
        self._steps = int(state["steps"])
        if isinstance(self._alphas, FreeAlphas):
            self._alphas.bring_into_bounds()


def _times(gram: Tensor, alpha: Tensor) -> Tensor:
    """The matrix, or the diagonal one given by its diagonal, times a vector."""
    return gram * alpha if gram.dim() == 1 else gram @ alpha


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise GradientError(f"{name} is {value!r}; it must be {' or '.join(allowed)}")
