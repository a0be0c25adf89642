"""The reference of the single pass: one backward per task through the same graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gradvac.engine import SinglePassEngine, parameter_groups
from gradvac.methods import Method, StepGeometry

Losses = Callable[[], tuple[Tensor, Tensor | None]]
"""The forward pass: losses [N] and the sample of each [N]; or [B, ...] and None."""


class OneTask(Method):
    """Gives the gradient of one task alone, so that p.grad shows it."""

    def __init__(self, task: str) -> None:
        self.task = task

    def _weights(self, geometry: StepGeometry) -> Tensor:
        chosen = torch.tensor([float(task == self.task) for task in geometry.tasks])
        return chosen.double().expand(len(geometry.groups), -1)


def separate(
    model: nn.Module, losses: Losses, tasks: Sequence[str], granularity: str = "all_layer"
) -> dict[str, list[Tensor]]:
    """Gradient of each task and parameter group, by autograd."""
    torch.manual_seed(1)
    loss, rows = losses()
    index = torch.tensor([list(dict.fromkeys(tasks)).index(t) for t in tasks])
    owner = index[rows] if rows is not None else index.view(-1, *[1] * (loss.ndim - 1))
    found = {}
    for n, task in enumerate(dict.fromkeys(tasks)):
        of_task = (loss * (owner == n)).sum()
        found[task] = []
        for group in parameter_groups(model, granularity):
            gradients = torch.autograd.grad(
                of_task, group.parameters, retain_graph=True, allow_unused=True
            )
            found[task].append(flat(gradients, group.parameters))
    return found


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )


def found_by(
    make: Callable[[nn.Module, Method], SinglePassEngine],
    model: nn.Module,
    losses: Losses,
    tasks: Sequence[str],
    steps: int = 1,
    before: Sequence[str] | None = None,
    **options: object,
) -> dict[str, list[Tensor]]:
    """Gradient of each task and parameter group, by an engine in its last of some steps.

    The steps before have the tasks ``before``.
    """
    found = {}
    for task in dict.fromkeys(tasks):
        engine = make(model, OneTask(task))
        for n in range(steps):
            model.zero_grad()
            torch.manual_seed(1)
            here = tasks if before is None or n + 1 == steps else before
            with engine.tasks(here, **options):  # type: ignore[arg-type]
                engine.backward(*losses())
        found[task] = [
            flat([p.grad for p in group.parameters], group.parameters) for group in engine.groups
        ]
    return found


def largest_error(
    model: nn.Module,
    losses: Losses,
    tasks: Sequence[str],
    make: Callable[[nn.Module, Method], SinglePassEngine] = SinglePassEngine,
    steps: int = 1,
    before: Sequence[str] | None = None,
    **options: object,
) -> float:
    """Relative error of the worst task and parameter group; see :func:`found_by`."""
    expected = separate(model, losses, tasks)
    found = found_by(make, model, losses, tasks, steps, before, **options)
    return worst_error(found, expected)


def worst_error(found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> float:
    """Relative error of the worst task and parameter group."""
    worst = 0.0
    for task, groups in expected.items():
        for g, reference in zip(found[task], groups, strict=True):
            error = float((g - reference).norm())
            worst = max(worst, error / float(reference.norm()) if error else 0.0)
    return worst
