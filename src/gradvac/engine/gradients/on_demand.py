"""Task gradients that are too large to hold: computed in chunks of rows, whenever needed.

K gradients of a softmax over 64,000 tokens are 13 GB at K = 50. Their factors, the inputs and
output gradients of the uses of the parameter, are smaller. These are kept instead. The Gram matrix
is summed over chunks of the parameter's rows, and once the weights are known the chunks are
computed again and combined: one more product, and the memory of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradvac.engine.gradients.by_task import add_products
from gradvac.engine.samples.owners import Owners


class Product(NamedTuple):
    """Gradients ``dy_k^T x_k`` (or the transpose) of a projection, k running over the tasks.

    Attributes:
        x: inputs, ``[N, in]``.
        dy: gradients of the outputs, ``[N, out]``.
        transposed: whether the parameter is ``[in, out]``, not ``[out, in]``.
        owners: the task of each of the N rows.
    """

    x: Tensor
    dy: Tensor
    transposed: bool
    owners: Owners

    def add_to(self, chunk: Tensor, start: int) -> None:
        """Add rows ``start, start + 1, ...`` of the gradients to ``chunk`` ``[K, rows, d]``."""
        of_rows, of_columns = (self.x, self.dy) if self.transposed else (self.dy, self.x)
        of_rows = of_rows[:, start : start + chunk.shape[1]]
        add_products(of_rows, of_columns, self.owners, chunk)


class Lookup(NamedTuple):
    """Gradients of rows looked up in a table.

    Attributes:
        ids: which rows, ``[N]``.
        dy: the gradients of the rows looked up, ``[N, d]``.
        owners: the task of each.
    """

    ids: Tensor
    dy: Tensor
    owners: Owners

    def add_to(self, chunk: Tensor, start: int) -> None:
        """Add rows ``start, start + 1, ...`` of the gradients to ``chunk`` ``[K, rows, d]``."""
        ids, height = self.ids - start, chunk.shape[1]
        here = (ids >= 0) & (ids < height)
        if chunk.device.type == "cpu":
            kept = here.nonzero().flatten()
            part = Lookup(ids[kept], self.dy[kept], self.owners.selected(kept))
        else:  # without asking the device how many are in the chunk
            dy = self.dy.where(here[:, None], 0.0)
            part = Lookup(ids.clamp(0, height - 1), dy, self.owners)
        part.add_all(chunk)

    def add_all(self, table: Tensor) -> None:
        """Add to the gradients of the whole table, ``[K, rows, d]``."""
        dy = self.dy.to(table.dtype)
        if table.device.type == "cpu" and table.is_contiguous():  # one operation for all tasks
            lines = table.view(-1, table.shape[2])
            lines.index_add_(0, self.ids + table.shape[1] * self.owners.index, dy)
            return
        if table.device.type != "cpu":
            table.index_put_((self.owners.on(table.device), self.ids), dy, accumulate=True)
            return
        for of_task, ids, own in zip(
            table, self.owners.blocks(self.ids), self.owners.blocks(dy), strict=True
        ):
            of_task.index_add_(0, ids, own)


class OnDemand:
    """Task gradients of one parameter, K matrices of its shape ``[gradients, d]``, made on demand.

    Attributes:
        scale: factor on all of them.
        numel: numbers of one task's gradient.
    """

    def __init__(
        self,
        uses: Sequence[Product | Lookup],
        shape: torch.Size,
        n_tasks: int,
        dtype: torch.dtype,
        budget: int,
    ) -> None:
        self.uses, self.shape, self.n_tasks, self.dtype = uses, shape, n_tasks, dtype
        self.scale = 1.0
        self.numel = shape.numel()
        self.at_once = max(1, budget // (n_tasks * shape[1] * dtype.itemsize))  # rows of a chunk

    @property
    def device(self) -> torch.device:
        """The device they are computed on."""
        return self.uses[0][0].device

    def chunks(self) -> Iterator[Tensor]:
        """Yield ``[K, rows * d]`` for each chunk of rows in turn, in reused memory."""
        height = min(self.at_once, self.shape[0])
        memory = torch.empty(
            self.n_tasks, height, self.shape[1], dtype=self.dtype, device=self.device
        )
        for start in range(0, self.shape[0], height):
            chunk = memory[:, : self.shape[0] - start].zero_()
            for use in self.uses:
                use.add_to(chunk, start)
            if self.scale != 1.0:
                chunk *= self.scale
            yield chunk.flatten(1)

    def columns(self, start: int, stop: int) -> Tensor:
        """Return the columns from ``start`` to ``stop`` of the flattened gradients."""
        width = self.shape[1]
        first, last = start // width, -(-stop // width)
        shape = (self.n_tasks, last - first, width)
        chunk = torch.zeros(shape, dtype=self.dtype, device=self.device)
        for use in self.uses:
            use.add_to(chunk, first)
        return chunk.flatten(1)[:, start - first * width : stop - first * width]


TaskGradients = Tensor | OnDemand
"""Task gradients of some parameters, ``[K, P]``, stored or computed on demand."""


def blocks(gradients: TaskGradients) -> Iterator[Tensor]:
    """Yield task gradients ``[K, P]`` in one piece, or in the chunks they are computed in."""
    if isinstance(gradients, Tensor):
        yield gradients
    else:
        yield from gradients.chunks()
