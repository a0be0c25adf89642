"""Task gradients of a parameter group that arrive one task after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from gradvac.engine.gradients.precision import at_least_float32
from gradvac.engine.groups import ParameterGroup
from gradvac.engine.ranks.buckets import GradientColumns
from gradvac.errors import GradientError


class GroupBuffer:
    """Task gradients of one parameter group, a matrix ``[>= K, P]`` reused from step to step."""

    def __init__(self, group: ParameterGroup) -> None:
        self.group = group
        self._sizes = [p.numel() for p in group.parameters]
        self._matrix = torch.empty(0, 0)  # allocated by the first row, on the model's device then
        self._reserved = 0
        self._filled = 0  # rows that hold gradients of this step
        self._used = [False] * len(self._sizes)

    def reserve(self, rows: int) -> None:
        """Allocate so many rows at once, when the next new one comes.

        Without it each new row copies all earlier ones, and both copies are held for a moment.
        """
        self._reserved = max(self._reserved, rows)

    def _new_rows(self, rows: int) -> Tensor:
        parameters = self.group.parameters
        if any(p.device != parameters[0].device for p in parameters):
            raise GradientError(
                f"parameter group {self.group.name!r} lies on several devices; choose a finer "
                "granularity"
            )
        dtype = at_least_float32(*(p.dtype for p in parameters))
        return torch.empty(rows, sum(self._sizes), dtype=dtype, device=parameters[0].device)

    def add(self, row: int, gradients: list[Tensor | None]) -> None:
        """Add gradients, one per parameter and None for zero, to a row."""
        if row == len(self._matrix):
            new = self._new_rows(max(1, self._reserved - row))
            self._matrix = torch.cat([self._matrix, new]) if row else new
        fresh = row == self._filled
        self._filled = max(self._filled, row + 1)
        pieces = self._matrix[row].split(self._sizes)
        for n, (piece, gradient) in enumerate(zip(pieces, gradients, strict=True)):
            if gradient is None:
                if fresh:
                    piece.zero_()
                continue
            self._used[n] = True
            flat = (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1)
            if fresh:
                piece.copy_(flat)
            else:
                piece.add_(flat)

    def task_gradients(self, n_tasks: int, loss_scale: float) -> Tensor:
        """Return the gradients of the step, ``[K, P]``, with the loss scale divided out."""
        matrix = self._matrix[:n_tasks]
        return matrix if loss_scale == 1.0 else matrix.mul_(1 / loss_scale)

    def piece(self, piece: ParameterGroup, n_tasks: int) -> tuple[GradientColumns, list[bool]]:
        """Return the gradients of adjacent parameters, and which of them are used."""
        first = next(n for n, p in enumerate(self.group.parameters) if p is piece.parameters[0])
        last = first + len(piece.parameters)
        size, start = sum(self._sizes[first:last]), sum(self._sizes[:first])
        used = self._used[first:last]
        return GradientColumns(
            size, self._matrix[:n_tasks, start : start + size] if any(used) else None
        ), used

    def gradients(self, combined: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return each parameter with its part of the combined gradient ``[P]``, None if unused."""
        parts = zip(self.group.parameters, combined.split(self._sizes), self._used, strict=True)
        return [(p, g.view(p.shape).to(p.dtype) if used else None) for p, g, used in parts]

    def clear(self) -> None:
        """Forget the gradients of the step; the memory is kept for the next one."""
        self._filled = 0
        self._used = [False] * len(self._sizes)
