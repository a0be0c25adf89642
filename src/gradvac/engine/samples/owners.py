"""Which task owns each row of a tensor, and where the rows of a task lie."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

_CACHED = 2**22  # bytes that fit a shared cache, chosen here


class Owners:
    """The owners of the slices of a tensor along one dimension.

    Derived maps are cached, so that everything costly happens once per batch and shape.

    Attributes:
        index: position of the owning task of each slice, ``[n]``, int64, on the CPU.
        n_tasks: number of tasks K of the step; not all of them need own a slice.
    """

    def __init__(self, index: Tensor, n_tasks: int) -> None:
        self.index = index
        self.n_tasks = n_tasks
        self._derived: dict[tuple[object, ...], Owners | None] = {}
        self._order_on: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.index)

    def same(self, other: Owners) -> bool:
        """Whether both maps say the same."""
        if self is other:
            return True
        key = ("same", id(other))
        if key not in self._derived:  # ids are safe: what is cached below keeps `other` alive
            equal = len(self) == len(other) and torch.equal(self.index, other.index)
            self._derived[key] = other if equal else None
            self._derived["alive", id(other)] = other
        return self._derived[key] is not None

    def spread(self, before: int, after: int) -> Owners:
        """Merge the dimension with ones of size ``before`` in front of and ``after`` behind it."""
        if before == after == 1:
            return self
        key = ("spread", before, after)
        found = self._derived.get(key)
        if found is None:
            index = self.index.repeat_interleave(after).repeat(before)
            found = self._derived[key] = Owners(index, self.n_tasks)
        return found

    def folded(self, before: int, after: int) -> Owners | None:
        """Undo :meth:`spread`; None if slices to be merged belong to different tasks."""
        if before == after == 1:
            return self
        key = ("folded", before, after)
        if key not in self._derived:
            blocks = self.index.view(before, -1, after)
            middle = blocks[0, :, 0]
            uniform = bool((blocks == middle[None, :, None]).all())
            self._derived[key] = Owners(middle.contiguous(), self.n_tasks) if uniform else None
        return self._derived[key]

    def taken(self, start: int, length: int, stride: int) -> Owners:
        """Every ``stride``-th slice from ``start``."""
        if (start, length, stride) == (0, len(self), 1):
            return self
        key = ("taken", start, length, stride)
        found = self._derived.get(key)
        if found is None:
            index = self.index[start : start + (length - 1) * stride + 1 : stride]
            found = self._derived[key] = Owners(index.contiguous(), self.n_tasks)
        return found

    def all_of(self, task: int, n_tasks: int) -> Owners:
        """As many slices, all of one among ``n_tasks`` tasks."""
        key = ("all_of", task, n_tasks)
        found = self._derived.get(key)
        if found is None:
            index = torch.full_like(self.index, task)
            found = self._derived[key] = Owners(index, n_tasks)
        return found

    def selected(self, positions: Tensor) -> Owners:
        """The slices at ``positions`` ``[m]``."""
        return Owners(self.index.index_select(0, positions.detach().cpu()), self.n_tasks)

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """First and one past the last row of each task once the rows are sorted by task."""
        ends = self.index.bincount(minlength=self.n_tasks).cumsum(0).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def _order(self) -> Tensor | None:
        """The stable order that sorts rows by task; None if they are sorted."""
        if len(self) < 2 or bool((self.index[1:] >= self.index[:-1]).all()):
            return None
        return self.index.argsort(stable=True)

    def order(self, device: torch.device) -> Tensor | None:
        """Positions of the rows sorted by task, ``[n]``, on a device; None if they are sorted."""
        order = self._order
        if order is not None and device not in self._order_on:
            self._order_on[device] = order.to(device)
        return None if order is None else self._order_on[device]

    def sort(self, values: Tensor) -> Tensor:
        """Return the rows of ``[n, ...]`` sorted by task."""
        order = self.order(values.device)
        return values if order is None else values.index_select(0, order)

    def blocks(self, values: Tensor) -> Iterator[Tensor]:
        """Yield the rows of each task among ``[n, ...]``.

        On a CPU what is large is not sorted at once but copied one task at a time, so that the copy
        is still in the cache when it is used.
        """
        order = self.order(values.device)
        at_once = values.device.type != "cpu" or values.numel() * values.element_size() <= _CACHED
        if order is not None and at_once:
            values, order = values.index_select(0, order), None
        for start, end in self.bounds:
            yield values[start:end] if order is None else values.index_select(0, order[start:end])

    def positions(self, task: int, device: torch.device) -> Tensor:
        """Positions of the rows of a task, ascending."""
        return (self.index == task).nonzero().squeeze(1).to(device)
