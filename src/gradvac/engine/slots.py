"""Where the K gradients of a tensor are collected: a parameter, or what is made of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradvac.engine.held import Held, Lookup, Product, Rows

if TYPE_CHECKING:
    from gradvac.engine.stores import GroupStore


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
    """Gradients of a parameter, a part of the matrix of its group.

    A table in which rows were looked up and nothing else was done has gradients that are zero but
    for those rows. They are kept apart and only for the rows that some task looked up. Gradients
    above the budget are kept apart too, as what they are made of, see :mod:`gradvac.engine.held`.

    Attributes:
        apart: whether the gradients are above the budget.
        leaf: what a forward pass uses: the parameter, or the whole one of a sharded parameter.
    """

    def __init__(self, store: GroupStore, parameter: nn.Parameter) -> None:
        self.store, self.parameter, self.leaf = store, parameter, parameter
        self.forget()

    def forget(self) -> None:
        """Forget the step."""
        self.buffer = torch.empty(0)  # [K, *shape], a view of the group's matrix
        self.fresh = True
        self.apart = False
        self.uses = self.lookups = 0  # in the forward pass
        self._made_of: list[Product | Lookup] = []
        self._touched = torch.empty(0)

    @property
    def sparse(self) -> bool:
        """Whether only rows looked up are kept; not while micro-batches are added up."""
        return self.store.streams and self.uses == self.lookups > 0

    def holds(self, n_tasks: int) -> bool:
        """Whether to add products and rows looked up as what they are."""
        if self.sparse:
            return True
        self.store.open(n_tasks)
        return self.apart and not len(self.buffer)

    def expect(self) -> None:
        """Count a use in the forward pass."""
        self.uses += 1
        self.store.expected += 1

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        self.store.expected -= 1
        if not self.store.expected:
            self.store.ready.append(self.store)

    def pieces(self, n_tasks: int) -> tuple[Sequence[Tensor], bool]:
        """Return the K tensors to add gradients to, and whether they hold nothing yet."""
        self.store.open(n_tasks)
        if self.apart and len(self.buffer) < n_tasks:
            self._form(n_tasks)
        fresh, self.fresh = self.fresh, False
        return self.buffer[:n_tasks].unbind(0), fresh

    def add(self, gradients: Tensor) -> None:
        """Add gradients ``[K, *shape]``."""
        pieces, fresh = self.pieces(len(gradients))
        buffer = self.buffer[: len(pieces)]
        if fresh:
            buffer.copy_(gradients)
        else:
            buffer.add_(gradients)

    def add_made_of(self, use: Product | Lookup) -> None:
        """Add gradients as what they are made of, if the slot :meth:`holds` them so."""
        self._made_of.append(use)
        self.fresh = False

    def whole(self, n_tasks: int) -> Rows:
        """Return gradients above the budget, ``[K, P]``, made on demand if they can be."""
        if len(self.buffer):
            self.pieces(n_tasks)
            return self.buffer[:n_tasks].flatten(1)
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
        self._touched, where = torch.cat([use.ids for use in found]).unique(return_inverse=True)
        table = self.parameter
        shape = (n_tasks, len(self._touched), table.shape[1])
        result = torch.zeros(shape, dtype=dtype, device=table.device)
        places = where.split([len(use.ids) for use in found])
        for use, place in zip(found, places, strict=True):
            Lookup(place, use.rows, use.bounds).add_to(result, 0)
        return result.flatten(1)

    def spread(self, combined: Tensor) -> Tensor:
        """Return the gradient of the whole table from that of the rows looked up."""
        gradient = combined.new_zeros(self.parameter.shape)
        return gradient.index_copy_(0, self._touched, combined.view(len(self._touched), -1))


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
