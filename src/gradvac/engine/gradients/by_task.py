"""Products and sums over the rows of each task, in a number of operations that does not grow with K.

The gradient of a weight is a product of two matrices whose rows belong to tasks, K products of the
rows of one task each; those of a bias or of a scale are K sums. A loop over the tasks launches K
operations for what plain training does in one. Here the rows are brought into the order of their
tasks, filled up to the height of the longest, and multiplied as one batch. Where tasks differ much
in size they are taken in classes, so that less than half of what is multiplied is filling.

On a CPU a launch costs next to nothing and filling costs arithmetic, so that large products are
taken one task at a time; :func:`batched` decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradvac.engine.samples.rows import Padding, RowMap

_LAUNCH = 150_000
"""Multiplications that cost a CPU what one more product of a few rows does (measured: 10 us)."""


def batched(rows: RowMap, width: int, device: torch.device) -> bool:
    """Whether to take the rows of all tasks as one batch, on a device.

    Args:
        rows: the task of each row.
        width: multiplications for each row: the product of the widths of both sides, or the width
            of what is summed.
        device: where.
    """
    if device.type != "cpu":
        return True
    filling = sum(p.height * len(p.tasks) for p in rows.padded) - len(rows)
    return filling * width < _LAUNCH * rows.n_tasks


class TaskRows:
    """The rows ``[N, d]`` of each task among K, for products and sums of them.

    Args:
        values: the rows.
        rows: the task of each.
        clear: whether to fill up with zeros; one side of a product is enough.
    """

    def __init__(self, values: Tensor, rows: RowMap, clear: bool = False) -> None:
        self.rows = rows
        self.parts: list[tuple[Padding, Tensor]] = []
        for padding in rows.padded:
            index = padding.index.on(values.device)
            shape = (len(padding.tasks), padding.height, *values.shape[1:])
            if index is None:  # sorted by task, and all of one height
                part = values.view(shape)
            else:
                part = values.index_select(0, index).view(shape)
                gaps = padding.gaps.on(values.device)
                if clear and gaps is not None:
                    part = part.masked_fill_(gaps.view(*gaps.shape, *[1] * (values.ndim - 1)), 0.0)
            self.parts.append((padding, part))

    def product(self, other: TaskRows, out: Tensor, fresh: bool) -> None:
        """Write ``self_k^T other_k`` to ``out`` ``[K, p, q]``, or add it if that is not fresh."""
        for (padding, left), (_, right) in zip(self.parts, other.parts, strict=True):
            a, b = left.mT, right
            if not padding.all_tasks or out.dtype != a.dtype:
                self._put(padding, torch.bmm(a, b), out, fresh)
            elif fresh:
                torch.bmm(a, b, out=out)
            else:
                out.baddbmm_(a, b)
        self._clear_others(out, fresh)

    def sums(self, out: Tensor, fresh: bool) -> None:
        """Write the sum of the rows of each task to ``out`` ``[K, d]``, or add it.

        The rows have to be cleared.
        """
        for padding, part in self.parts:
            if padding.all_tasks and fresh:
                torch.sum(part, 1, dtype=out.dtype, out=out)
            else:
                self._put(padding, part.sum(1, dtype=out.dtype), out, fresh)
        self._clear_others(out, fresh)

    @staticmethod
    def _put(padding: Padding, found: Tensor, out: Tensor, fresh: bool) -> None:
        """Write or add what was found for the tasks of a class."""
        if padding.all_tasks:
            out.copy_(found) if fresh else out.add_(found)
        elif fresh:
            out.index_copy_(0, padding.positions.on(out.device), found.to(out.dtype))
        else:
            out.index_add_(0, padding.positions.on(out.device), found.to(out.dtype))

    def _clear_others(self, out: Tensor, fresh: bool) -> None:
        """Set to zero what belongs to tasks without rows."""
        absent = self.rows.absent.on(out.device)
        if fresh and absent is not None:
            out.index_fill_(0, absent, 0.0)


def sums(values: Tensor, rows: RowMap) -> Tensor:
    """Return the sum of the rows ``[N, d]`` of each task, ``[K, d]``, in at least float32."""
    dtype = torch.promote_types(torch.float32, values.dtype)
    out = torch.empty(rows.n_tasks, *values.shape[1:], dtype=dtype, device=values.device)
    if batched(rows, values[0].numel() if len(values) else 0, values.device):
        TaskRows(values, rows, clear=True).sums(out, fresh=True)
        return out
    for own, part in zip(rows.blocks(values), out, strict=True):
        torch.sum(own, 0, dtype=dtype, out=part)
    return out

