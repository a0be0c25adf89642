"""Synthetic task gradients, and the orders of a seed in the form the literal version takes."""

from collections.abc import Callable

import torch
from torch import Tensor

from gradvac.methods import StepGeometry, visiting_order

REGIMES = ("independent", "shared", "conflicting")


def names(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{n}" for n in range(count))


def task_gradients(regime: str, n_tasks: int, size: int, generator: torch.Generator) -> Tensor:
    """Float64 [K, size], norms spread over e^-3..e^3, cosines near 0, positive or negative."""
    noise = torch.randn(n_tasks, size, generator=generator, dtype=torch.float64)
    common = torch.randn(size, generator=generator, dtype=torch.float64)
    sign = torch.ones(n_tasks, 1, dtype=torch.float64)
    if regime == "conflicting":
        sign[::2] = -1
    rows = noise + (0 if regime == "independent" else 1.5) * sign * common
    scale = torch.rand(n_tasks, 1, generator=generator, dtype=torch.float64) * 6 - 3
    return rows * scale.exp()


def geometry(
    gradients: dict[str, Tensor] | Tensor,
    tasks: tuple[str, ...] | None = None,
    step: int = 0,
    losses: Tensor | None = None,
) -> StepGeometry:
    """Geometry of float64 rows [K, P], for one group ``g`` or several by name."""
    by_group = {"g": gradients} if isinstance(gradients, Tensor) else gradients
    gram = torch.stack([rows @ rows.T for rows in by_group.values()])
    n_tasks = gram.shape[1]
    if losses is None:
        losses = torch.zeros(n_tasks, dtype=torch.float64)
    return StepGeometry(gram, losses, tasks or names("t", n_tasks), tuple(by_group), step)


def random_order(seed: int, geo: StepGeometry) -> Callable[[str, str], list[str]]:
    """The visiting orders of a step as a function of group and task."""
    order = visiting_order(seed, geo.step, geo.groups, geo.tasks)

    def of(group: str, task: str) -> list[str]:
        row = order[geo.groups.index(group), geo.tasks.index(task)]
        return [geo.tasks[j] for j in row.tolist()]

    return of


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
