"""Where the K gradients of a parameter group are held until it is complete."""

from __future__ import annotations

import torch
from torch import Tensor

from gradvac.engine.groups import ParameterGroup
from gradvac.engine.held import Rows
from gradvac.engine.slots import ParameterSlot
from gradvac.errors import GradientError


class GroupStore:
    """Task gradients of one parameter group, a matrix ``[K, P]`` that exists while it is needed.

    Attributes:
        group: the parameters.
        matrix: the gradients, None before the first of them arrives.
        expected: uses in the forward pass whose gradients are still to come.
        streams: whether this backward pass is the only one of the step.
        ready: where a store puts itself when the last of its gradients has arrived.
        budget: bytes; a parameter whose K gradients are larger is held as what they are made of.
    """

    def __init__(
        self, group: ParameterGroup, pool: Pool, ready: list[GroupStore], budget: int
    ) -> None:
        device = group.parameters[0].device
        if any(p.device != device for p in group.parameters):
            raise GradientError(
                f"parameter group {group.name!r} lies on several devices; choose a finer "
                "granularity"
            )
        self.group = group
        self.pool, self.ready, self.budget = pool, ready, budget
        self.matrix: Tensor | None = None
        self.expected = 0
        self.slots = [ParameterSlot(self, p) for p in group.parameters]
        widest = max((p.dtype for p in group.parameters), key=lambda dtype: dtype.itemsize)
        self.dtype = torch.promote_types(torch.float32, widest)
        self.device = device
        self.streams = False

    @property
    def size(self) -> int:
        """Numbers to hold for each task, rows looked up left out."""
        return sum(slot.parameter.numel() for slot in self._dense)

    @property
    def used(self) -> bool:
        """Whether any gradient has arrived."""
        return not all(slot.fresh for slot in self.slots)

    @property
    def _dense(self) -> list[ParameterSlot]:
        """Slots whose gradients are in the matrix."""
        return [slot for slot in self.slots if not (slot.sparse or slot.apart)]

    def open(self, n_tasks: int) -> None:
        """Make room for the gradients of K tasks; what was collected for fewer is kept."""
        if self.matrix is not None and len(self.matrix) >= n_tasks:
            return
        if self.matrix is None:
            for slot in self.slots:
                size = n_tasks * slot.parameter.numel() * self.dtype.itemsize
                slot.apart = slot.parameter.ndim == 2 and size > self.budget
        dense = self._dense
        sizes = [slot.parameter.numel() for slot in dense]
        old, matrix = self.matrix, self.pool.take(n_tasks, sum(sizes), self.dtype, self.device)
        if old is not None:
            matrix[: len(old)] = old
            matrix[len(old) :].zero_()
            self.pool.give(old)
        self.matrix = matrix
        for slot, piece in zip(dense, matrix.split(sizes, dim=1), strict=True):
            slot.buffer = piece.view(n_tasks, *slot.parameter.shape)

    def rows(self, n_tasks: int) -> list[Rows]:
        """Return the gradients, ``[K, P_i]``, zero for parameters that no task used."""
        if not self.used:
            return [torch.zeros(n_tasks, 1, dtype=self.dtype, device=self.device)]
        used = [slot for slot in self.slots if not slot.fresh]
        found: list[Rows] = [s.compact(n_tasks, self.dtype) for s in used if s.sparse]
        self.open(n_tasks)
        found += [slot.whole(n_tasks) for slot in used if slot.apart]
        if dense := self._dense:
            for slot in dense:
                if slot.fresh:
                    slot.buffer.zero_()
            assert self.matrix is not None
            found.append(self.matrix[:n_tasks])
        return found

    def columns(self, n_tasks: int) -> list[tuple[int, Rows | None]]:
        """Return the gradients in the order of the parameters, with the number of their columns.

        None where no task used a parameter. Nothing may be kept as rows looked up.
        """
        if not self.used:
            return [(sum(slot.parameter.numel() for slot in self.slots), None)]
        self.open(n_tasks)
        for slot in self._dense:
            if slot.fresh:
                slot.buffer.zero_()
        if not any(slot.apart for slot in self.slots):
            assert self.matrix is not None
            return [(self.matrix.shape[1], self.matrix[:n_tasks])]
        found: list[tuple[int, Rows | None]] = []
        for slot in self.slots:
            rows = slot.buffer[:n_tasks].flatten(1) if not slot.apart else None
            if slot.apart and not slot.fresh:
                rows = slot.whole(n_tasks)
            found.append((slot.parameter.numel(), rows))
        return found

    def gradients(self, combined: list[Tensor]) -> list[Tensor | None]:
        """Make the parameters' gradients of the combined :meth:`rows`; None where unused."""
        if not self.used:
            return [None] * len(self.slots)
        remaining = iter(combined)
        used = [slot for slot in self.slots if not slot.fresh]
        spread = {slot: slot.spread(next(remaining)) for slot in used if slot.sparse}
        for slot in used:
            if slot.apart:
                spread[slot] = next(remaining).view(slot.parameter.shape)
        dense = self._dense
        pieces = next(remaining).split([slot.parameter.numel() for slot in dense]) if dense else ()
        spread |= {
            slot: piece.view(slot.parameter.shape)
            for slot, piece in zip(dense, pieces, strict=True)
        }
        return [
            None if slot.fresh else spread[slot].to(slot.parameter.dtype) for slot in self.slots
        ]

    def close(self) -> None:
        """Give the memory back and forget the step."""
        if self.matrix is not None:
            self.pool.give(self.matrix)
        self.matrix, self.expected = None, 0
        for slot in self.slots:
            slot.forget()


class Pool:
    """Memory for matrices, kept from step to step: fresh pages cost as much as filling them."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def numel(self) -> int:
        """Numbers that the memory not in use would hold."""
        return sum(memory.numel() for memory in self._free)

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
