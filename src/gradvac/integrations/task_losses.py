"""The losses of a batch and the samples they belong to, read as late as possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gradvac.errors import GradientError

Share = float | Tensor
"""What the mean loss of a task is multiplied by; a tensor on an accelerator."""


class TaskLosses(NamedTuple):
    """The losses of a batch of B samples.

    Attributes:
        values: the losses, ``[N]``.
        rows: the sample that each belongs to, ``[N]``, on the CPU.
        number: how many of them count; the others are zero.
        by_sample: how many losses of each sample count, ``[B]``.
    """

    values: Tensor
    rows: Tensor
    number: Tensor | int
    by_sample: Tensor

    @classmethod
    def padded(cls, losses: Tensor, counted: Tensor) -> TaskLosses:
        """Take losses ``[B, ...]``, of which some count, without a wait for the device."""
        rows = torch.arange(len(losses)).repeat_interleave(losses[0].numel())
        by_sample = counted.view(len(counted), -1).sum(1)
        return cls(losses.reshape(-1), rows, by_sample.sum(), by_sample)

    @classmethod
    def of(cls, losses: Tensor, rows: Tensor | None, n_samples: int) -> TaskLosses:
        """Take what ``task_losses`` returned; all of it counts.

        Raises:
            GradientError: if it is not clear which sample each loss belongs to.
        """
        if rows is None:
            if not losses.ndim or len(losses) != n_samples:
                raise GradientError(
                    f"task_losses returned {list(losses.shape)} for {n_samples} samples and no "
                    "rows; losses must be [B, ...], neither averaged nor summed over samples"
                )
            rows = torch.arange(n_samples).repeat_interleave(losses[0].numel())
            losses = losses.reshape(-1)
        rows = rows.detach().cpu()
        return cls(losses, rows, len(losses), rows.bincount(minlength=n_samples))

    def divisor(self) -> Tensor | int:
        """Return how many losses count, at least 1."""
        return self.number.clamp_min(1) if isinstance(self.number, Tensor) else max(self.number, 1)

    def shares(self, tasks: list[str], divisor: Tensor | float) -> dict[str, Share]:
        """Return by task what its mean loss is multiplied by if the losses are so divided."""
        names = sorted(set(tasks))
        index = torch.tensor([names.index(task) for task in tasks]).to(self.by_sample.device)
        counts = torch.zeros(len(names), dtype=torch.float64, device=index.device)
        counts.index_add_(0, index, self.by_sample.double())
        if isinstance(divisor, Tensor):
            counts = counts.to(divisor.device)
        found = counts / divisor
        return dict(zip(names, found.tolist() if found.is_cpu else found.unbind(), strict=True))


def none_zero(shares: Mapping[str, Share], least: float) -> dict[str, Share]:
    """Return shares with ``least`` in place of 0: of tasks without a loss."""
    there = {task: share for task, share in shares.items() if isinstance(share, Tensor)}
    found: dict[str, Share] = {
        task: share or least for task, share in shares.items() if task not in there
    }
    if there:
        values = torch.stack(list(there.values()))
        found |= zip(there, values.where(values != 0, least).unbind(), strict=True)
    return found
