"""Where the K gradients of a parameter group are held until it is complete."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradvac.engine.gradients.on_demand import TaskGradients
from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.gradients.pool import Pool
from gradvac.engine.gradients.precision import at_least_float32
from gradvac.engine.groups import ParameterGroup
from gradvac.errors import GradientError


class GroupStore:
    """Task gradients of one parameter group, a matrix ``[K, P]`` that exists only while needed.

    Attributes:
        group: the parameters.
        matrix: the gradients, None before the first of them arrives.
        expected: uses in the forward pass whose gradients have not arrived yet.
        streams: whether this backward pass is the only one of the step.
        ready: the list a store appends itself to when its last gradient has arrived.
        budget: bytes; if the K gradients of a parameter are larger, factors are kept instead.
    """

    def __init__(
        self,
        group: ParameterGroup,
        pool: Pool,
        ready: list[GroupStore],
        budget: int,
        storage: torch.dtype | None = None,
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
        self.dtype = storage or at_least_float32(*(p.dtype for p in group.parameters))
        self.device = device
        self.streams = False
        self._largest = max(slot.numel for slot in self.slots)
        self._size: int | None = None
        self._opened: list[ParameterSlot] | None = None  # those in the matrix that there is

    @property
    def size(self) -> int:
        """How many numbers to hold for each task in this step, without looked-up rows."""
        if self._size is None:
            self._size = sum(slot.numel for slot in self._dense)
        return self._size

    @property
    def used(self) -> bool:
        """Whether any gradient has arrived."""
        return not all(slot.fresh for slot in self.slots)

    @property
    def _dense(self) -> list[ParameterSlot]:
        """Slots whose gradients are in the matrix, or will be."""
        if self._opened is not None:
            return self._opened
        return [slot for slot in self.slots if not (slot.sparse or slot.keeps_factors)]

    def set_aside(self) -> dict[str, Any]:
        """Return what was collected so far and start empty; expected uses are kept."""
        state = {"matrix": self.matrix, "expected": self.expected, "streams": self.streams}
        state["slots"] = [vars(slot).copy() for slot in self.slots]
        state["opened"] = self._opened
        self.matrix, self._size, self._opened = None, None, None
        for slot in self.slots:
            slot.empty()
        return state

    def put_back(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`set_aside` returned."""
        self.close()
        self.matrix, self.expected = state["matrix"], state["expected"]
        self.streams, self._opened = state["streams"], state["opened"]
        for slot, values in zip(self.slots, state["slots"], strict=True):
            vars(slot).update(values)

    def open(self, n_tasks: int) -> None:
        """Allocate the gradients of K tasks; those collected for fewer tasks are kept."""
        if self.matrix is not None and self.matrix.shape[0] >= n_tasks:
            return
        most = self.budget // (n_tasks * self.dtype.itemsize)
        if self.matrix is None and self._largest > most:
            for slot in self.slots:
                fits = slot.numel <= most or slot.parameter.ndim != 2
                slot.over_budget = not (fits or slot.hooked)
        self._opened = None
        dense = self._opened = self._dense
        sizes = [slot.numel for slot in dense]
        old, matrix = self.matrix, self.pool.take(n_tasks, sum(sizes), self.dtype, self.device)
        if old is not None:
            matrix[: len(old)] = old
            matrix[len(old) :].zero_()
            self.pool.give(old)
        self.matrix = matrix
        for slot, piece in zip(dense, matrix.split(sizes, dim=1), strict=True):
            slot.buffer = piece if len(slot.shape) == 1 else piece.view(n_tasks, *slot.shape)

    def task_gradients(self, n_tasks: int) -> list[TaskGradients]:
        """Return the gradients, ``[K, P_i]``, zero for parameters that no task used."""
        if not self.used:
            return [torch.zeros(n_tasks, 1, dtype=self.dtype, device=self.device)]
        used = [slot for slot in self.slots if not slot.fresh]
        for slot in used:
            slot.note_nonzero()
        found: list[TaskGradients] = [s.compact(n_tasks, self.dtype) for s in used if s.sparse]
        self.open(n_tasks)
        found += [slot.whole(n_tasks) for slot in used if slot.keeps_factors]
        if dense := self._dense:
            for slot in dense:
                if slot.fresh:
                    slot.buffer.zero_()
                else:
                    slot.run_hooks(n_tasks)
            assert self.matrix is not None
            found.append(self.matrix[:n_tasks])
        return found

    def columns(self, n_tasks: int) -> list[tuple[int, TaskGradients | None]]:
        """Return the gradients in the order of the parameters, with the number of their columns.

        None if no task used a parameter. Not allowed while looked-up rows are kept separately.
        """
        if not self.used:
            return [(sum(slot.numel for slot in self.slots), None)]
        self.open(n_tasks)
        for slot in self.slots:
            slot.note_nonzero()
        for slot in self._dense:
            if slot.fresh:
                slot.buffer.zero_()
        if not any(slot.keeps_factors for slot in self.slots):
            assert self.matrix is not None
            return [(self.matrix.shape[1], self.matrix[:n_tasks])]
        found: list[tuple[int, TaskGradients | None]] = []
        for slot in self.slots:
            gradients = None if slot.keeps_factors else slot.buffer[:n_tasks].flatten(1)
            if slot.keeps_factors and not slot.fresh:
                gradients = slot.whole(n_tasks)
            found.append((slot.numel, gradients))
        return found

    def gradients(self, combined: list[Tensor], wide: bool = False) -> list[Tensor | None]:
        """Make the parameters' gradients of the combined :meth:`task_gradients`; None where unused.

        In the dtype of the parameters and, for ``nn.Embedding(sparse=True)``, sparse; all dense and
        at least float32 if ``wide``.
        """
        if not self.used:
            return [None] * len(self.slots)
        remaining = iter(combined)
        used = [slot for slot in self.slots if not slot.fresh]
        spread = {slot: slot.spread(next(remaining)) for slot in used if slot.sparse}
        for slot in used:
            if slot.keeps_factors:
                spread[slot] = next(remaining).view(slot.shape)
        dense = self._dense
        pieces = next(remaining).split([slot.numel for slot in dense]) if dense else ()
        for slot, piece in zip(dense, pieces, strict=True):
            spread[slot] = piece if len(slot.shape) == 1 else piece.view(slot.shape)
        if not wide:
            spread |= {
                s: s.as_sparse(spread[s]) for s in used if s.wants_sparse and s.uses == s.lookups
            }
        found: list[Tensor | None] = []
        for slot in self.slots:
            gradient, dtype = spread.get(slot), slot.parameter.dtype
            if slot.fresh or gradient is None:
                found.append(None)
                continue
            dtype = at_least_float32(dtype) if wide else dtype
            found.append(gradient if gradient.dtype == dtype else gradient.to(dtype))
        return found

    def close(self) -> None:
        """Return the memory and forget the step."""
        if self.matrix is not None:
            self.pool.give(self.matrix)
        self.matrix, self.expected, self._size, self._opened = None, 0, None, None
        for slot in self.slots:
            slot.forget()
