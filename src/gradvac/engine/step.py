"""The step under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gradvac.engine.ranks.agreement import Agreement
from gradvac.engine.report import StepReport
from gradvac.engine.samples.owners import Owners


class Step:
    """What is known of the step under way."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._positions: dict[str, int] = {}
        self.number = 0
        self.loss_scale = 1.0
        self.shares: Mapping[str, float] | None = None
        self.streams = False
        self.accumulated = False
        self.waiting = 0  # groups that are complete but not yet combined
        self.largest: int | None = None  # numbers of the largest group
        self.gram = torch.zeros(1, dtype=torch.float64)  # of the whole model, of two passes
        self.gradients: dict[int, Tensor | None] = {}  # combined, by the id of the parameter
        self.reports: list[StepReport] = []
        self.agreed: Agreement | None = None  # with the other ranks
        self.failed_everywhere = False  # on all ranks, who then need not be told
        self._losses: list[Tensor] = []
        self._present: list[Tensor] = []

    def position(self, name: str) -> int:
        """Return the position of a task, a new one at the end."""
        if name not in self._positions:
            self._positions[name] = len(self.names)
            self.names.append(name)
        return self._positions[name]

    def add_losses(self, losses: Tensor, present: Tensor | None = None) -> None:
        """Add the losses ``[K]`` of a micro-batch, and which tasks have any: all, by default."""
        self._losses.append(losses)
        self._present.append(torch.ones_like(losses) > 0 if present is None else present)

    def add_losses_of(self, loss: Tensor, owners: Owners) -> None:
        """Add losses ``[N]`` to those of their tasks; one that is 0 makes no task present."""
        task, value = owners.index.to(loss.device), loss.detach().double()
        total = torch.zeros(owners.n_tasks, dtype=torch.float64, device=loss.device)
        total.index_add_(0, task, value)
        counted = torch.zeros_like(total).index_add_(0, task, (value != 0).double())
        self.add_losses(total, counted > 0)

    def present(self) -> list[int]:
        """Return the positions of the tasks that have a loss in the step, on this rank."""
        found = torch.zeros(len(self.names), dtype=torch.bool)
        for present in self._present:
            found[: len(present)] |= present.cpu()
        return found.nonzero().flatten().tolist()

    def losses(self, n_tasks: int) -> Tensor:
        """Return the losses of all micro-batches, ``[K]``, on the CPU."""
        total = torch.zeros(n_tasks, dtype=torch.float64)
        for losses in self._losses:
            total[: len(losses)] += losses.cpu()
        return total

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the step, on whatever rank."""
        return tuple(self.names) if self.agreed is None else self.agreed.tasks

    @property
    def task_losses(self) -> Tensor:
        """Their losses without the loss scale, ``[K]``, on the CPU."""
        total = self.losses(len(self.names)) if self.agreed is None else self.agreed.losses
        return total / self.loss_scale

    def report(self, groups: tuple[str, ...]) -> StepReport:
        """Join the reports of the groups, in the order of the model."""
        names = [name for report in self.reports for name in report.groups]
        order = torch.tensor([names.index(name) for name in groups])
        join = lambda parts: torch.cat(parts).index_select(0, order.to(parts[0].device))
        first = self.reports[0].geometry
        gram = join([report.gram for report in self.reports])
        geometry = replace(first, gram=gram, groups=groups)
        diagnostics = {
            key: join([report.diagnostics[key] for report in self.reports])
            for key in self.reports[0].diagnostics
        }
        return StepReport(geometry, join([r.weights for r in self.reports]), diagnostics)
