"""Where the K gradients of a parameter group are held until it is complete."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradvac.engine.gradients.on_demand import Held, Lookup, Product, Rows
from gradvac.engine.gradients.slots import Slot
from gradvac.engine.groups import ParameterGroup
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
        return [slot for slot in self.slots if not (slot.sparse or slot.held)]

    def set_aside(self) -> dict[str, Any]:
        """Return what was collected so far and go on with nothing; the uses to come are kept."""
        state = {"matrix": self.matrix, "expected": self.expected, "streams": self.streams}
        state["slots"] = [vars(slot).copy() for slot in self.slots]
        self.matrix = None
        for slot in self.slots:
            slot.empty()
        return state

    def put_back(self, state: dict[str, Any]) -> None:
        """Go on with what :meth:`set_aside` returned."""
        self.close()
        self.matrix, self.expected = state["matrix"], state["expected"]
        self.streams = state["streams"]
        for slot, values in zip(self.slots, state["slots"], strict=True):
            vars(slot).update(values)

    def open(self, n_tasks: int) -> None:
        """Make room for the gradients of K tasks; what was collected for fewer is kept."""
        if self.matrix is not None and len(self.matrix) >= n_tasks:
            return
        if self.matrix is None:
            for slot in self.slots:
                size = n_tasks * slot.parameter.numel() * self.dtype.itemsize
                fits = size <= self.budget or slot.parameter.ndim != 2
                slot.apart = not (fits or slot.hooked)
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
        for slot in used:
            slot.stir()
        found: list[Rows] = [s.compact(n_tasks, self.dtype) for s in used if s.sparse]
        self.open(n_tasks)
        found += [slot.whole(n_tasks) for slot in used if slot.held]
        if dense := self._dense:
            for slot in dense:
                if slot.fresh:
                    slot.buffer.zero_()
                else:
                    slot.run_hooks(n_tasks)
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
        for slot in self.slots:
            slot.stir()
        for slot in self._dense:
            if slot.fresh:
                slot.buffer.zero_()
        if not any(slot.held for slot in self.slots):
            assert self.matrix is not None
            return [(self.matrix.shape[1], self.matrix[:n_tasks])]
        found: list[tuple[int, Rows | None]] = []
        for slot in self.slots:
            rows = slot.buffer[:n_tasks].flatten(1) if not slot.held else None
            if slot.held and not slot.fresh:
                rows = slot.whole(n_tasks)
            found.append((slot.parameter.numel(), rows))
        return found

    def gradients(
        self, combined: list[Tensor], dtype: torch.dtype | None = None
    ) -> list[Tensor | None]:
        """Make the parameters' gradients of the combined :meth:`rows`; None where unused.

        In the dtype of the parameters, or one that holds that and ``dtype``.
        """
        if not self.used:
            return [None] * len(self.slots)
        remaining = iter(combined)
        used = [slot for slot in self.slots if not slot.fresh]
        spread = {slot: slot.spread(next(remaining)) for slot in used if slot.sparse}
        for slot in used:
            if slot.held:
                spread[slot] = next(remaining).view(slot.parameter.shape)
        dense = self._dense
        pieces = next(remaining).split([slot.parameter.numel() for slot in dense]) if dense else ()
        spread |= {
            slot: piece.view(slot.parameter.shape)
            for slot, piece in zip(dense, pieces, strict=True)
        }
        if dtype is None:
            spread |= {
                s: s.as_sparse(spread[s]) for s in used if s.wants_sparse and s.uses == s.lookups
            }
        kinds = [
            slot.parameter.dtype
            if dtype is None
            else torch.promote_types(dtype, slot.parameter.dtype)
            for slot in self.slots
        ]
        return [
            None if slot.fresh else spread[slot].to(kind)
            for slot, kind in zip(self.slots, kinds, strict=True)
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


class ParameterSlot(Slot):
    """Gradients of a parameter, a part of the matrix of its group.

    A table in which rows were looked up and nothing else was done has gradients that are zero but
    for those rows. They are kept apart and only for the rows that some task looked up. Gradients
    above the budget are kept apart too, as what they are made of, see
    :mod:`gradvac.engine.gradients.on_demand`.

    Attributes:
        apart: whether the gradients are above the budget.
        leaf: what a forward pass uses: the parameter, or the whole one of a sharded parameter.
        asleep: whether its gradients were all zero when they were checked, which shows nothing.
        woken: whether they were the first time not, since then.
    """

    def __init__(self, store: GroupStore, parameter: nn.Parameter) -> None:
        self.store, self.parameter, self.leaf = store, parameter, parameter
        self.asleep = self.woken = False
        self.forget()

    def forget(self) -> None:
        """Forget the step."""
        self.empty()
        self.uses = self.lookups = 0  # in the forward pass
        self.wants_sparse = False  # looked up by an embedding with sparse=True

    def empty(self) -> None:
        """Forget what was collected."""
        self.buffer = torch.empty(0)  # [K, *shape], a view of the group's matrix
        self.fresh = True
        self.apart = False
        self._made_of: list[Product | Lookup] = []
        self._touched = torch.empty(0)

    @property
    def held(self) -> bool:
        """Whether the gradients are neither in the matrix of the group nor rows looked up."""
        return self.apart and not self.sparse

    def probe(self) -> Tensor:
        """Return a tensor without data laid out as each of the K."""
        return torch.empty(self.parameter.shape, device="meta")

    @property
    def sparse(self) -> bool:
        """Whether only rows looked up are kept; not while micro-batches are added up."""
        return self.store.streams and self.uses == self.lookups > 0 and not self.hooked

    @property
    def hooked(self) -> bool:
        """Whether somebody registered a hook that may change the gradient."""
        return bool(getattr(self.leaf, "_backward_hooks", None))

    def run_hooks(self, n_tasks: int) -> None:
        """Let the hooks of the parameter change the gradient of each task, as autograd does."""
        if not self.hooked:
            return
        for piece in self.buffer[:n_tasks]:
            gradient = piece.to(self.parameter.dtype)
            for hook in (self.leaf._backward_hooks or {}).values():
                changed = hook(gradient)
                gradient = gradient if changed is None else changed
            piece.copy_(gradient)

    def holds(self, n_tasks: int) -> bool:
        """Whether to add products and rows looked up as what they are."""
        if self.sparse:
            return True
        self.store.open(n_tasks)
        return self.apart and not len(self.buffer)

    def stir(self) -> None:
        """Note if gradients that were zero so far no longer are."""
        if self.asleep and not self.fresh:
            parts = [use[1] for use in self._made_of] or [self.buffer]  # gradients of outputs
            self.woken = self.woken or any(bool(part.any()) for part in parts)

    def expect(self) -> None:
        """Count a use in the forward pass."""
        self.uses += 1
        self.store.expected += 1

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        self.store.expected -= 1
        if not self.store.expected:
            self.store.ready.append(self.store)

    def collected(self, n_tasks: int) -> tuple[Tensor, bool]:
        """Return the K gradients, ``[K, *shape]``, and whether they hold nothing yet."""
        self.store.open(n_tasks)
        if self.apart and len(self.buffer) < n_tasks:
            self._form(n_tasks)
        fresh, self.fresh = self.fresh, False
        return self.buffer[:n_tasks], fresh

    def add_made_of(self, use: Product | Lookup) -> None:
        """Add gradients as what they are made of, if the slot :meth:`holds` them so."""
        self._made_of.append(use)
        self.fresh = False

    def whole(self, n_tasks: int) -> Rows:
        """Return gradients above the budget, ``[K, P]``, made on demand if they can be."""
        if len(self.buffer):
            return self.collected(n_tasks)[0].flatten(1)
        shape = self.parameter.shape
        return Held(self._made_of, shape, n_tasks, self.store.dtype, self.store.budget)

    def _form(self, n_tasks: int) -> None:
        """Give up the budget: this use of the parameter needs its gradients all there."""
        table, before = self.parameter, self.buffer
        shape = (n_tasks, *table.shape)
        self.buffer = torch.zeros(shape, dtype=self.store.dtype, device=table.device)
        if len(before):
            self.buffer[: len(before)] = before
        for use in self._made_of:
            use.add_to(self.buffer, 0)
        self._made_of = []

    def compact(self, n_tasks: int, dtype: torch.dtype) -> Tensor:
        """Return the gradients of the rows looked up, ``[K, rows * d]``."""
        found = [use for use in self._made_of if isinstance(use, Lookup)]
        ids = torch.cat([use.ids for use in found])
        waits = ids.device.type == "cpu" or self.wants_sparse
        self._touched, where = ids.unique(return_inverse=True) if waits else _distinct(ids)
        table = self.parameter
        shape = (n_tasks, len(self._touched), table.shape[1])
        result = torch.zeros(shape, dtype=dtype, device=table.device)
        places = where.split([len(use.ids) for use in found])
        for use, place in zip(found, places, strict=True):
            use._replace(ids=place).add_to(result, 0)
        return result.flatten(1)

    def as_sparse(self, gradient: Tensor) -> Tensor:
        """Return a gradient as ``nn.Embedding(sparse=True)`` has it: the rows looked up alone."""
        rows = self._touched if self.sparse else gradient.any(1).nonzero().flatten()
        return torch.sparse_coo_tensor(
            rows[None],
            gradient.index_select(0, rows),
            gradient.shape,
            check_invariants=False,
            is_coalesced=True,
        )

    def spread(self, combined: Tensor) -> Tensor:
        """Return the gradient of the whole table from that of the rows looked up."""
        gradient = combined.new_zeros(self.parameter.shape)
        return gradient.index_add_(0, self._touched, combined.view(len(self._touched), -1))


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Do what ``ids.unique(return_inverse=True)`` does, without asking the device how many.

    As many as there are ids are returned; zeros follow the distinct ones.
    """
    ordered, order = ids.sort()
    new = torch.ones_like(ordered)
    new[1:] = ordered[1:] != ordered[:-1]
    place = new.cumsum(0) - 1
    distinct = torch.zeros_like(ids).scatter_(0, place, ordered)
    return distinct, torch.empty_like(ids).scatter_(0, order, place)
