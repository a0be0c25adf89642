"""The current step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradvac.engine.ranks.agreement import Agreement
from gradvac.engine.report import StepReport, check_shares, joined
from gradvac.engine.samples.owners import Owners
from gradvac.sending import to_device

Shares = Mapping[str, float | Tensor]
"""By task, what its mean loss was multiplied by."""


def read_together(found: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Copy float64 tensors to the CPU in one wait, those on another device than the first not."""
    first = found[0]
    assert first is not None
    there = [n for n, x in enumerate(found) if x is not None and x.device == first.device]
    parts = [x for n, x in enumerate(found) if x is not None and n in there]
    whole = torch.cat([part.flatten() for part in parts]).cpu()
    pieces = whole.split([part.numel() for part in parts])
    read = list(found)
    for n, part, piece in zip(there, parts, pieces, strict=True):
        read[n] = piece.view(part.shape)
    return read


class Step:
    """The state of the current step."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._positions: dict[str, int] = {}
        self.number = 0
        self.loss_scale = 1.0
        self._shares: Shares | None = None
        self._shares_there: Tensor | None = None  # those that are tensors, not read yet
        self.streams = False
        self.accumulated = False
        self.elements = 0  # losses of samples or tokens that were given
        self.waiting = 0  # groups that are complete but not yet combined
        self.at_once: int | None = None  # numbers of a task's gradients that are combined together
        self.gram: Tensor | None = None  # of the whole model, with two passes
        self.gradients: dict[int, Tensor | None] = {}  # combined, by id of the parameter
        self.reports: list[StepReport] = []
        self.unread: list[StepReport] = []  # of a lazy engine, on the device
        self.agreed: Agreement | None = None  # with the other ranks
        self.failed_everywhere = False  # on all ranks, so they need not be told
        self._losses: list[Tensor] = []  # of micro-batches, [2, K]: see `add_losses`
        self._read: Tensor | None = None
        self.heads_state: Tensor | None = None  # see `HeadGradients.state`

    def position(self, name: str) -> int:
        """Return the position of a task; a new task is appended."""
        if name not in self._positions:
            self._positions[name] = len(self.names)
            self.names.append(name)
        return self._positions[name]

    def add_losses(self, losses: Tensor, present: Tensor | None = None) -> None:
        """Add the losses ``[K]`` of a micro-batch, and which tasks have one: all by default."""
        present = torch.ones_like(losses) if present is None else present.to(losses)
        self._losses.append(torch.stack([losses, present]))
        self._read = None

    def add_losses_of(self, loss: Tensor, owners: Owners) -> None:
        """Add losses ``[N]`` to those of their tasks; a loss of 0 makes no task present."""
        task, value = owners.on(loss.device), loss.detach().double()
        total = torch.zeros(owners.n_tasks, dtype=torch.float64, device=loss.device)
        total.index_add_(0, task, value)
        counted = torch.zeros_like(total).index_add_(0, task, (value != 0).double())
        self.add_losses(total, counted > 0)

    def fetch(self, values: Tensor) -> Tensor:
        """Return float64 values on the CPU; what is not read yet is copied in the same wait."""
        losses = self.added() if self._read is None else None
        found = read_together([values, losses, self.heads_state, self._shares_there])
        self._read = self._read if found[1] is None else found[1]
        self.heads_state, self._shares_there = found[2:]
        assert found[0] is not None
        return found[0]

    def give_shares(self, shares: Shares | None) -> None:
        """Keep the shares; tensors among them are read together with the Gram matrices."""
        self._shares = shares
        there = [x.detach().double() for x in (shares or {}).values() if isinstance(x, Tensor)]
        self._shares_there = torch.stack(there) if there else None

    @property
    def shares(self) -> dict[str, float] | None:
        """By task, what its mean loss was multiplied by; the host waits unless they were read."""
        if self._shares is None:
            return None
        read = iter(() if self._shares_there is None else self._shares_there.tolist())
        return {
            task: next(read) if isinstance(share, Tensor) else share
            for task, share in self._shares.items()
        }

    def shares_on(self, device: torch.device) -> Tensor | None:
        """Return the shares of the tasks, ``[K]``, on a device and without a wait."""
        if self._shares is None:
            return None
        check_shares(self._shares, self.tasks)
        given = [self._shares[task] for task in self.tasks]
        if not any(isinstance(share, Tensor) for share in given):
            return to_device(torch.tensor(given, dtype=torch.float64), device)
        whole = lambda x: torch.full((), x, dtype=torch.float64, device=device)
        return torch.stack(
            [x.detach().double().to(device) if isinstance(x, Tensor) else whole(x) for x in given]
        )

    def present(self) -> list[int]:
        """Return the positions of the tasks that have a loss in the step, on this rank."""
        return self._on_host()[1].nonzero().flatten().tolist()

    def losses(self, n_tasks: int) -> Tensor:
        """Return the losses of all micro-batches, ``[K]``, on the CPU."""
        losses = self._on_host()[0]
        return pad(losses, (0, n_tasks - len(losses)))

    def _on_host(self) -> Tensor:
        """Losses of the tasks and how often they had one, ``[2, K]``."""
        if self._read is None:
            self._read = self.added().cpu()
        return self._read

    def added(self) -> Tensor:
        """Return losses of the tasks and how often they had one, ``[2, K]``, where they are."""
        if not self._losses:
            return torch.zeros(2, len(self.names), dtype=torch.float64)
        first = self._losses[0].device
        padded = [pad(x, (0, len(self.names) - x.shape[1])).to(first) for x in self._losses]
        return torch.stack(padded).sum(0)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the step on all ranks."""
        return tuple(self.names) if self.agreed is None else self.agreed.tasks

    @property
    def task_losses(self) -> Tensor:
        """Their losses without the loss scale, ``[K]``, on the CPU."""
        total = self.losses(len(self.names)) if self.agreed is None else self.agreed.losses
        return total / self.loss_scale

    def report(self, groups: tuple[str, ...]) -> StepReport:
        """Join the reports of the groups, in the order of the model."""
        return joined(self.reports, groups)
