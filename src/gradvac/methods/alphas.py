"""How CATS (reconstruction) keeps its alphas and moves them: `MeanAlphas`; others, of old.

The slopes are those of `gradvac.methods.cats`, which says what an alpha is and what is our own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from gradvac.methods.shared import TaskValues
from gradvac.methods.simplex import nearest_weights, raised_to_floors

MEMORY = 100  # steps over which shares are averaged. Chosen here, as are the bounds of a step:
_FACTOR = 0.5  # of log weights; reached by losses that are sums
_SUMS = (0.5, 2.0)  # of free alphas, wide enough for the Lagrangian to work
_SHARE = 0.5  # of 1/N, of free alphas


class Alphas(ABC):
    """The alphas of tasks, under "alpha" in the ``state`` of a method, in a form of their own.

    Attributes:
        kinds: further numbers that are kept for each task.
        floor: of alpha, in the unit of the form.
        rate: of the moves.
        pull: lambda_s, the multiplier of the sum of alphas.
    """

    kinds: tuple[str, ...]

    def __init__(self, state: TaskValues, floor: float, rate: float) -> None:
        self.state, self.floor, self.rate, self.pull = state, floor, rate, 0.0

    @abstractmethod
    def meet(self, shares: dict[str, float], step: int) -> None:
        """Take in the tasks of a step, the ``step``-th from 0, and their shares of it."""

    @abstractmethod
    def current(self, step: int) -> tuple[str, ...]:
        """The N tasks that have an alpha."""

    @abstractmethod
    def start(self, tasks: Sequence[str]) -> Tensor:
        """The alphas that give the plain sum, ``[N]``."""

    @abstractmethod
    def weights(self, tasks: Sequence[str]) -> Tensor:
        """Weights of tasks, ``[N]``, alpha over its start; exactly 1 where nothing was learned."""

    @abstractmethod
    def moved(
        self, tasks: Sequence[str], alpha: Tensor, slope: Tensor, multiplier: float
    ) -> Tensor:
        """What to keep of alpha ``[N]`` after a step down the ``slope`` ``[N]`` of the Lagrangian.

        ``multiplier`` is lambda_c.
        """

    def move(self, tasks: Sequence[str], alpha: Tensor, slope: Tensor, multiplier: float) -> None:
        """Move the alphas of tasks."""
        new = self.moved(tasks, alpha, slope, multiplier)
        self.state["alpha"].update(zip(tasks, new.tolist(), strict=True))

    def numbers(self, kind: str, tasks: Sequence[str]) -> Tensor:
        """What is kept of tasks, ``[N]`` float64."""
        return torch.tensor([self.state[kind][task] for task in tasks], dtype=torch.float64)


class MeanAlphas(Alphas):
    """Of mean losses: alpha begins at the mean shares p; log(alpha / p) is kept."""

    kinds = ("seen", "shares")

    def meet(self, shares: dict[str, float], step: int) -> None:
        """Update the mean shares of all tasks; those absent from the step have a share of 0 there.

        The mean of the first steps, then a moving average.
        """
        for task in shares:
            self.state["alpha"].setdefault(task, 0.0)
        kept, rate = self.state["shares"], max(1 / (step + 1), 1 / MEMORY)
        for task in {**kept, **shares}:
            old = kept.get(task, 0.0)
            kept[task] = old + rate * (shares.get(task, 0.0) - old)
        self.state["seen"].update(dict.fromkeys(shares, float(step)))

    def current(self, step: int) -> tuple[str, ...]:
        """Those seen lately, as others have no share of the text."""
        seen = self.state["seen"]
        return tuple(task for task in self.state["alpha"] if step - seen[task] < MEMORY)

    def start(self, tasks: Sequence[str]) -> Tensor:
        """The mean shares."""
        shares = self.numbers("shares", tasks)
        return shares / shares.sum()

    def weights(self, tasks: Sequence[str]) -> Tensor:
        """Return alpha / p."""
        return self.numbers("alpha", tasks).exp()

    def moved(
        self, tasks: Sequence[str], alpha: Tensor, slope: Tensor, multiplier: float
    ) -> Tensor:
        """By factors, onto the simplex and above the floor."""
        # A rate that suits losses is far too large for a multiplier of a hundred.
        centred = slope - alpha @ slope / alpha.sum()
        step = _at_most(_FACTOR, self.rate * centred / (1 + multiplier))
        start = self.start(tasks)
        floors = (self.floor / start).clamp_max(1)
        return raised_to_floors(self.numbers("alpha", tasks) - step, start, floors)


class _ShareAlphas(Alphas):
    """Of gradients of shares of the loss, the form of earlier versions: alpha begins at 1/N."""

    kinds = ("lambda_n",)

    def meet(self, shares: dict[str, float], step: int) -> None:
        """Give new tasks an alpha."""
        for task in shares:
            self.state["alpha"].setdefault(task, 0.0)
            self.state["lambda_n"].setdefault(task, 0.0)

    def current(self, step: int) -> tuple[str, ...]:
        """All tasks that were ever seen."""
        return tuple(self.state["alpha"])

    def start(self, tasks: Sequence[str]) -> Tensor:
        """Equal alphas."""
        return torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64)


class SoftmaxAlphas(_ShareAlphas):
    """alpha = floor / N + (1 - floor) softmax(a), on the simplex by construction; a is kept."""

    def weights(self, tasks: Sequence[str]) -> Tensor:
        """Return N alpha."""
        logits = self.numbers("alpha", tasks)
        p = (logits - logits.max()).exp()
        return 1 + (1 - self.floor) * (p / p.mean() - 1)

    def moved(
        self, tasks: Sequence[str], alpha: Tensor, slope: Tensor, multiplier: float
    ) -> Tensor:
        """Gradient descent on the logits."""
        logits = self.numbers("alpha", tasks)
        s = logits.softmax(0)
        return logits - self.rate * (1 - self.floor) * s * (slope - s @ slope)


class FreeAlphas(_ShareAlphas):
    """Free alphas, with lambda_s (sum_n alpha_n - 1)^2 - sum_n lambda_n (alpha_n - floor) added.

    They would never return to the simplex, as raw losses push all of them below 0 at once. So a
    step moves no alpha by more than half an equal share, and the result is moved to the nearest
    point with ``floor <= alpha_n <= 1`` and a sum between 1/2 and 2 (`nearest_weights`).
    """

    def meet(self, shares: dict[str, float], step: int) -> None:
        """Give new tasks an equal share."""
        alpha = self.state["alpha"]
        known = len(alpha)
        super().meet(shares, step)
        if len(alpha) > known:
            for n, task in enumerate(alpha):
                alpha[task] = alpha[task] * known / len(alpha) if n < known else 1 / len(alpha)

    def weights(self, tasks: Sequence[str]) -> Tensor:
        """Return N alpha."""
        return len(tasks) * self.numbers("alpha", tasks)

    def moved(
        self, tasks: Sequence[str], alpha: Tensor, slope: Tensor, multiplier: float
    ) -> Tensor:
        """Descent on alpha, ascent on lambda_s and lambda_n."""
        multipliers = self.numbers("lambda_n", tasks)
        floor, over = self.floor / len(tasks), float(alpha.sum()) - 1
        step = self.rate * (slope + 2 * self.pull * over - multipliers)
        new = nearest_weights(alpha - _at_most(_SHARE / len(tasks), step), floor, *_SUMS)
        self.pull += self.rate * over**2
        multipliers = (multipliers + self.rate * (floor - alpha)).clamp_min(0)
        self.state["lambda_n"].update(zip(tasks, multipliers.tolist(), strict=True))
        return new

    def bring_into_bounds(self) -> None:
        """Mend a loaded state of an earlier version, which let all alphas be 0."""
        alpha = self.state["alpha"]
        if alpha:
            kept = torch.tensor(list(alpha.values()), dtype=torch.float64)
            kept = nearest_weights(kept, self.floor / len(alpha), *_SUMS)
            alpha.update(zip(alpha, kept.tolist(), strict=True))


FORMS: dict[str, type[Alphas]] = {
    "multiplicative": MeanAlphas,
    "softmax": SoftmaxAlphas,
    "lagrangian": FreeAlphas,
}
"""By the name that states have for them."""


def _at_most(most: float, step: Tensor) -> Tensor:
    """A step, shortened so that no entry is larger than ``most``."""
    largest = float(step.abs().max())
    return step * (most / largest) if largest > most else step
