"""Where the K gradients of a parameter are collected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradvac.engine.gradients.on_demand import Lookup, OnDemand, Product, TaskGradients
from gradvac.engine.gradients.slots import Slot

if TYPE_CHECKING:
    from gradvac.engine.gradients.stores import GroupStore


_NOTHING = torch.empty(0)


class ParameterSlot(Slot):
    """Gradients of a parameter, a part of the matrix of its group.

    A table used only for lookups has zero gradients except in the rows looked up. Only these rows
    are kept, outside the matrix. Gradients above the budget are kept as the factors of a product,
    see :mod:`gradvac.engine.gradients.on_demand`.

    Attributes:
        over_budget: whether the gradients are above the budget.
        leaf: the tensor a forward pass uses: the parameter, or the gathered one if it is sharded.
        zero_when_checked: whether its gradients were all zero in the check, which verifies nothing.
        nonzero_since: whether they were nonzero at some time since then.
    """

    def __init__(self, store: GroupStore, parameter: nn.Parameter) -> None:
        self.store, self.parameter, self.leaf = store, parameter, parameter
        self.shape, self.numel = parameter.shape, parameter.numel()
        self.zero_when_checked = self.nonzero_since = False
        self.forget()

    def forget(self) -> None:
        """Forget the step."""
        self.empty()
        self.uses = self.lookups = 0  # in the forward pass
        self.wants_sparse = False  # looked up by an embedding with sparse=True

    def empty(self) -> None:
        """Forget what was collected."""
        self.buffer = _NOTHING  # [K, *shape], a view of the group's matrix
        self.fresh = True
        self.over_budget = False
        self._factors: list[Product | Lookup] = []
        self._touched = _NOTHING

    @property
    def keeps_factors(self) -> bool:
        """Whether the gradients are above the budget and kept as factors."""
        return self.over_budget and not self.sparse

    def probe(self) -> Tensor:
        """Return a tensor without data with the layout of each of the K gradients."""
        return torch.empty(self.parameter.shape, device="meta")

    @property
    def sparse(self) -> bool:
        """Whether only looked-up rows are kept; not while micro-batches are accumulated."""
        return self.store.streams and self.uses == self.lookups > 0 and not self.hooked

    @property
    def hooked(self) -> bool:
        """Whether a hook is registered that may change the gradient."""
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

    def takes_factors(self, n_tasks: int) -> bool:
        """Whether to add products and lookups by :meth:`add_factors`, not by :meth:`pieces`."""
        if self.sparse:
            return True
        matrix = self.store.matrix
        if matrix is None or matrix.shape[0] < n_tasks:
            self.store.open(n_tasks)
        return self.over_budget and not self.buffer.shape[0]

    def note_nonzero(self) -> None:
        """Record if gradients that were zero in the check are now nonzero."""
        if self.zero_when_checked and not self.fresh:
            parts = [use.dy for use in self._factors] or [self.buffer]
            self.nonzero_since = self.nonzero_since or any(bool(part.any()) for part in parts)

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
        """Return the K gradients, ``[K, *shape]``, and whether they are still unfilled."""
        matrix = self.store.matrix
        if matrix is None or matrix.shape[0] < n_tasks:
            self.store.open(n_tasks)
        if self.over_budget and self.buffer.shape[0] < n_tasks:
            self._form(n_tasks)
        fresh, self.fresh = self.fresh, False
        rows = self.buffer.shape[0]
        return self.buffer if rows == n_tasks else self.buffer[:n_tasks], fresh

    def add_factors(self, use: Product | Lookup) -> None:
        """Add gradients by their factors, if the slot :meth:`takes_factors`."""
        self._factors.append(use)
        self.fresh = False

    def whole(self, n_tasks: int) -> TaskGradients:
        """Return gradients above the budget, ``[K, P]``, made on demand if they can be."""
        if len(self.buffer):
            return self.collected(n_tasks)[0].flatten(1)
        shape = self.parameter.shape
        return OnDemand(self._factors, shape, n_tasks, self.store.dtype, self.store.budget)

    def _form(self, n_tasks: int) -> None:
        """Give up the budget: this use of the parameter needs its full gradients."""
        table, before = self.parameter, self.buffer
        shape = (n_tasks, *table.shape)
        self.buffer = torch.zeros(shape, dtype=self.store.dtype, device=table.device)
        if len(before):
            self.buffer[: len(before)] = before
        for use in self._factors:
            use.add_to(self.buffer, 0)
        self._factors = []

    def compact(self, n_tasks: int, dtype: torch.dtype) -> Tensor:
        """Return the gradients of the rows looked up, ``[K, rows * d]``."""
        found = [use for use in self._factors if isinstance(use, Lookup)]
        ids = torch.cat([use.ids for use in found])
        waits = ids.device.type == "cpu" or self.wants_sparse
        self._touched, where = ids.unique(return_inverse=True) if waits else _distinct(ids)
        table = self.parameter
        shape = (n_tasks, len(self._touched), table.shape[1])
        result = torch.zeros(shape, dtype=dtype, device=table.device)
        places = where.split([len(use.ids) for use in found])
        for use, place in zip(found, places, strict=True):
            use._replace(ids=place).add_all(result)
        return result.flatten(1)

    def as_sparse(self, gradient: Tensor) -> Tensor:
        """Return a gradient as ``nn.Embedding(sparse=True)`` does: only the rows looked up."""
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
    """Like ``ids.unique(return_inverse=True)``, without a wait for the device.

    The result has as many entries as ``ids``; zeros follow the distinct ones.
    """
    ordered, order = ids.sort()
    new = torch.ones_like(ordered)
    new[1:] = ordered[1:] != ordered[:-1]
    place = new.cumsum(0) - 1
    distinct = torch.zeros_like(ids).scatter_(0, place, ordered)
    return distinct, torch.empty_like(ids).scatter_(0, order, place)
