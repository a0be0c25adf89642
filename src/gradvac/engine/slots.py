"""Where the K gradients of a parameter are collected until its group is complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gradvac.engine.groups import ParameterGroup
from gradvac.errors import GradientError


class GroupStore:
    """Task gradients of one parameter group, a matrix ``[K, P]`` that exists while it is needed.

    Attributes:
        group: the parameters.
        matrix: the gradients, None before the first of them arrives.
        expected: uses in the forward pass whose gradients are still to come.
    """

    def __init__(self, group: ParameterGroup, pool: Pool) -> None:
        device = group.parameters[0].device
        if any(p.device != device for p in group.parameters):
            raise GradientError(
                f"parameter group {group.name!r} lies on several devices; choose a finer "
                "granularity"
            )
        self.group = group
        self.pool = pool
        self.matrix: Tensor | None = None
        self.expected = 0
        self.slots = [ParameterSlot(self, p) for p in group.parameters]
        self.sizes = [p.numel() for p in group.parameters]
        self.numel = sum(self.sizes)
        widest = max((p.dtype for p in group.parameters), key=lambda dtype: dtype.itemsize)
        self.dtype = torch.promote_types(torch.float32, widest)
        self.device = device

    def open(self, n_tasks: int) -> None:
        """Make room for the gradients of K tasks; what was collected for fewer is kept."""
        if self.matrix is not None and len(self.matrix) >= n_tasks:
            return
        old, matrix = self.matrix, self.pool.take(n_tasks, self.numel, self.dtype, self.device)
        if old is not None:
            matrix[: len(old)] = old
            matrix[len(old) :].zero_()
            self.pool.give(old)
        self.matrix = matrix
        pieces = matrix.split(self.sizes, dim=1)
        for slot, piece, p in zip(self.slots, pieces, self.group.parameters, strict=True):
            slot.buffer = piece.unflatten(1, p.shape) if p.ndim else piece.squeeze(1)

    def rows(self, n_tasks: int) -> Tensor:
        """Return the gradients, ``[K, P]``, zero for parameters that no task used."""
        if all(slot.fresh for slot in self.slots):
            return torch.zeros(n_tasks, 1, dtype=self.dtype, device=self.device)
        self.open(n_tasks)
        assert self.matrix is not None
        for slot in self.slots:
            if slot.fresh:
                slot.buffer.zero_()
        return self.matrix[:n_tasks]

    def gradients(self, combined: Tensor) -> list[Tensor | None]:
        """Cut a combined gradient, ``[P]``, into those of the parameters, None where unused."""
        if len(combined) != self.numel:
            return [None] * len(self.slots)
        pieces = zip(self.slots, combined.split(self.sizes), strict=True)
        return [
            None if slot.fresh else piece.view(slot.parameter.shape).to(slot.parameter.dtype)
            for slot, piece in pieces
        ]

    def close(self) -> None:
        """Give the memory back and forget the step."""
        if self.matrix is not None:
            self.pool.give(self.matrix)
        self.matrix, self.expected = None, 0
        for slot in self.slots:
            slot.fresh, slot.buffer = True, torch.empty(0)


class Pool:
    """Memory for matrices, kept from step to step: fresh pages cost as much as filling them."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised matrix ``[rows, columns]``."""
        n = rows * columns
        fits = [m for m in self._free if len(m) >= n and m.dtype == dtype and m.device == device]
        if not fits:
            # A matrix grows here; without this the pool would keep what is too small for ever.
            same = [m for m in self._free if m.dtype == dtype and m.device == device]
            self._drop(same[-1] if same else None)
            return torch.empty(n, dtype=dtype, device=device).view(rows, columns)
        memory = min(fits, key=len)
        self._drop(memory)
        return memory[:n].view(rows, columns)

    def give(self, matrix: Tensor) -> None:
        """Take a matrix back."""
        n = matrix.untyped_storage().nbytes() // matrix.element_size()
        self._free.append(matrix.as_strided((n,), (1,), 0))

    def _drop(self, memory: Tensor | None) -> None:
        self._free = [m for m in self._free if m is not memory]


class Slot:
    """Collects the K gradients of one tensor, a parameter or what was made of parameters alone."""

    fresh: bool

    def expect(self) -> None:
        """Count a use in the forward pass."""
        raise NotImplementedError

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        raise NotImplementedError

    def pieces(self, n_tasks: int) -> tuple[Sequence[Tensor], bool]:
        """Return the K tensors to add gradients to, and whether they hold nothing yet.

        Who asks must fill or add to every one of them.
        """
        raise NotImplementedError

    def add(self, gradients: Tensor) -> None:
        """Add gradients ``[K, *shape]``."""
        pieces, fresh = self.pieces(len(gradients))
        for piece, gradient in zip(pieces, gradients, strict=True):
            if fresh:
                piece.copy_(gradient)
            else:
                piece.add_(gradient)

    def zero(self, n_tasks: int) -> Sequence[Tensor]:
        """Return the K tensors, zero if they held nothing yet."""
        pieces, fresh = self.pieces(n_tasks)
        if fresh:
            for piece in pieces:
                piece.zero_()
        return pieces


class ParameterSlot(Slot):
    """Gradients of a parameter, a part of the matrix of its group."""

    def __init__(self, store: GroupStore, parameter: nn.Parameter) -> None:
        self.store, self.parameter = store, parameter
        self.buffer = torch.empty(0)  # [K, *shape], a view of the group's matrix
        self.fresh = True

    def expect(self) -> None:
        """Count a use in the forward pass."""
        self.store.expected += 1

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        self.store.expected -= 1

    def pieces(self, n_tasks: int) -> tuple[Sequence[Tensor], bool]:
        """Return the K tensors to add gradients to, and whether they hold nothing yet."""
        self.store.open(n_tasks)
        fresh, self.fresh = self.fresh, False
        return self.buffer[:n_tasks].unbind(0), fresh

    def add(self, gradients: Tensor) -> None:
        """Add gradients ``[K, *shape]``."""
        self.store.open(len(gradients))
        buffer = self.buffer[: len(gradients)]
        if self.fresh:
            buffer.copy_(gradients)
        else:
            buffer.add_(gradients)
        self.fresh = False


class ViewSlot(Slot):
    """Gradients of a view of another slot's tensor: views of its gradients."""

    def __init__(self, base: Slot, view: Callable[[Tensor], Tensor]) -> None:
        self.base, self.view = base, view

    def expect(self) -> None:
        """Count a use in the forward pass."""
        self.base.expect()

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        self.base.arrived()

    def pieces(self, n_tasks: int) -> tuple[Sequence[Tensor], bool]:
        """Return the K tensors to add gradients to, and whether they hold nothing yet."""
        return [self.view(piece) for piece in self.base.zero(n_tasks)], False


class ChainSlot(Slot):
    """Gradients of a tensor made of parameters alone, to be carried on to these at the end.

    Attributes:
        tensor: the tensor, with its graph.
        sources: slots of the parameters it was made of.
        buffer: the gradients, ``[K, *shape]``.
    """

    def __init__(self, tensor: Tensor, sources: list[Slot]) -> None:
        self.tensor, self.sources = tensor, sources
        self.buffer: Tensor | None = None

    def expect(self) -> None:
        """Count a use in the forward pass."""
        for slot in self.sources:
            slot.expect()

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        pass  # the parameters wait until the gradients have been carried on

    def pieces(self, n_tasks: int) -> tuple[Sequence[Tensor], bool]:
        """Return the K tensors to add gradients to, and whether they hold nothing yet."""
        buffer = self.buffer
        if buffer is None:
            dtype = torch.promote_types(torch.float32, self.tensor.dtype)
            shape = (n_tasks, *self.tensor.shape)
            self.buffer = torch.empty(shape, dtype=dtype, device=self.tensor.device)
            return self.buffer.unbind(0), True
        return buffer.unbind(0), False
