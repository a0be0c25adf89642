"""Products and sums over the rows of each task, in a number of operations independent of K.

The gradient of a weight is a product of two matrices whose rows belong to tasks, K products of the
rows of one task each; those of a bias or of a scale are K sums. A loop over the tasks launches K
operations for what plain training does in one. Here the rows are sorted by task, padded to the
length of the longest, and multiplied as one batch. If task sizes differ much, tasks are batched in
classes, so that less than half of the rows is padding.

On a CPU a launch costs almost nothing and padding costs arithmetic, so large products are computed
one task at a time; :func:`batched` decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradvac.engine.gradients.precision import at_least_float32
from gradvac.engine.samples.owners import Owners, Padding

_LAUNCH = 150_000
"""Multiplications that cost a CPU as much as one more small product (measured: 10 us)."""
_CACHED = 2**22  # bytes that fit a shared cache, chosen here


def batched(owners: Owners, *sides: Tensor) -> bool:
    """Whether to process the rows of all tasks as one batch.

    Args:
        owners: the task of each row.
        sides: the factors ``[N, p]`` and ``[N, q]`` of products, or the summands ``[N, ...]``.
    """
    if sides[0].device.type != "cpu":
        return True
    held, width = 0, 1
    for side in sides:
        n = side.numel()
        held += n * side.element_size()
        width *= n // max(1, side.shape[0])
    return held <= _CACHED and owners.padding * width < _LAUNCH * owners.n_tasks


class TaskRows:
    """The rows ``[N, ...]`` of each task among K side by side, for products and sums of them.

    Args:
        values: the rows.
        owners: the task of each.
        clear: whether to pad with zeros; one side of a product is enough.
    """

    def __init__(self, values: Tensor, owners: Owners, clear: bool = False) -> None:
        self.owners = owners
        self.parts: list[tuple[Padding, Tensor]] = []
        for padding, index, gaps in owners.layouts(values.device):
            shape = (padding.n_tasks, padding.height, *values.shape[1:])
            # Without an index they are already sorted by task, and all tasks have equally many.
            part = (values if index is None else values.index_select(0, index)).view(shape)
            if clear and gaps is not None:
                part = part.masked_fill_(gaps.view(*gaps.shape, *[1] * (values.ndim - 1)), 0.0)
            self.parts.append((padding, part))

    def product(self, other: TaskRows, out: Tensor, fresh: bool) -> None:
        """Write ``self_k^T other_k`` to ``out`` ``[K, p, q]``, or add it if not ``fresh``."""
        for (padding, left), (_, right) in zip(self.parts, other.parts, strict=True):
            # A CPU multiplies one matrix at a time into memory that is not contiguous. What is
            # added is rounded alike in any memory: K, and so it, differs when a run is resumed.
            apart = fresh and out.device.type == "cpu" and not out.is_contiguous()
            if apart or not padding.all_tasks or out.dtype != left.dtype:
                _put(padding, torch.bmm(left.mT, right), out, fresh)
            elif fresh:
                torch.bmm(left.mT, right, out=out)
            else:
                out.baddbmm_(left.mT, right)
        self._clear_absent(out, fresh)

    def sums(self, out: Tensor, fresh: bool) -> None:
        """Write the sums of cleared rows of each task to ``out`` ``[K, ...]``, or add them."""
        for padding, part in self.parts:
            if padding.all_tasks and fresh:
                torch.sum(part, 1, dtype=out.dtype, out=out)
            else:
                _put(padding, part.sum(1, dtype=out.dtype), out, fresh)
        self._clear_absent(out, fresh)

    def _clear_absent(self, out: Tensor, fresh: bool) -> None:
        """Set the entries of tasks without rows to zero."""
        absent = self.owners.absent.on(out.device)
        if fresh and absent is not None:
            out.index_fill_(0, absent, 0.0)


def _put(padding: Padding, found: Tensor, out: Tensor, fresh: bool) -> None:
    """Write the results for the tasks of a class to ``out`` ``[K, ...]``, or add them."""
    if padding.all_tasks:
        out.copy_(found) if fresh else out.add_(found)
        return
    tasks = padding.positions.on(out.device)
    assert tasks is not None
    if fresh:
        out.index_copy_(0, tasks, found.to(out.dtype))
    else:
        out.index_add_(0, tasks, found.to(out.dtype))


def add_products(left: Tensor, right: Tensor, owners: Owners, out: Tensor) -> None:
    """Add ``left_k^T right_k`` to ``out`` ``[K, p, q]``, for the rows of each task k."""
    if batched(owners, left, right):
        TaskRows(left, owners, clear=True).product(TaskRows(right, owners), out, fresh=False)
        return
    for a, b, own in zip(owners.blocks(left), owners.blocks(right), out, strict=True):
        put_product(a.T, b, own, fresh=False)


def put_product(a: Tensor, b: Tensor, out: Tensor, fresh: bool) -> None:
    """Write ``a @ b`` to ``out``, which may be wider, or add it if not ``fresh``."""
    if fresh and out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif fresh:
        out.copy_(a @ b)
    elif len(b) and out.dtype == a.dtype:
        out.addmm_(a, b)
    elif len(b):
        out.add_(a @ b)


def put_sums(values: Tensor, owners: Owners, out: Tensor, fresh: bool) -> None:
    """Write the sum of the rows ``[N, ...]`` of each task to ``out`` ``[K, ...]``, or add it."""
    if batched(owners, values):
        TaskRows(values, owners, clear=True).sums(out, fresh)
        return
    for part, own in zip(owners.blocks(values), out, strict=True):
        if fresh:
            torch.sum(part, 0, dtype=out.dtype, out=own)
        elif len(part):
            own.add_(part.sum(0, dtype=out.dtype))


def sums(values: Tensor, owners: Owners) -> Tensor:
    """Return the sum of the rows ``[N, ...]`` of each task, ``[K, ...]``, in at least float32."""
    dtype = at_least_float32(values.dtype)
    out = torch.empty(owners.n_tasks, *values.shape[1:], dtype=dtype, device=values.device)
    put_sums(values, owners, out, fresh=True)
    return out
