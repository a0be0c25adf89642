"""Which task owns each row of a tensor, and where the rows of a task lie."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from gradvac.sending import on_host

_CACHED = 2**22  # bytes that fit a shared cache, chosen here


Tiling = tuple[int, int] | None


class Batch:
    """What the owners of all tensors of a batch share.

    Attributes:
        any_tasks: whether only what holds for any tasks of the samples may be concluded, not what
            happens to hold for the tasks of this batch.
    """

    def __init__(self) -> None:
        self.any_tasks = False


class Owners:
    """The owners of the slices of a tensor along one dimension.

    Derived maps are cached, so costly work happens once per batch and shape.

    Attributes:
        index: position of the owning task of each slice, ``[n]``, int64, on the CPU.
        n_tasks: number of tasks K of the step; some may own no slice.
        tiling: how it comes from the samples of a batch, as the two numbers of :meth:`spread`;
            None if otherwise, for example by indices.
    """

    def __init__(
        self, index: Tensor, n_tasks: int, batch: Batch | None = None, tiling: Tiling = None
    ) -> None:
        self.index = index
        self.n_tasks = n_tasks
        self.tiling = tiling
        self._length = index.shape[0]
        self._batch = batch
        self._derived: dict[tuple[object, ...], Owners | None] = {}
        self._layouts: dict[torch.device, list[tuple[Padding, Tensor | None, Tensor | None]]] = {}

    @classmethod
    def of_samples(cls, index: Tensor, n_tasks: int) -> Owners:
        """The owners of the samples of a batch."""
        return cls(index, n_tasks, Batch(), (1, 1))

    @property
    def for_any_tasks(self) -> bool:
        """Whether only what holds for any tasks of the samples may be concluded."""
        return self._batch is not None and self._batch.any_tasks

    def for_any(self, tasks: bool) -> None:
        """Set :attr:`for_any_tasks`, of all owners of this batch."""
        assert self._batch is not None
        self._batch.any_tasks = tasks

    def __len__(self) -> int:
        return self._length

    def same(self, other: Owners) -> bool:
        """Whether both maps are equal."""
        if self is other:
            return True
        if self.for_any_tasks or other.for_any_tasks:
            return self.tiling is not None and self.tiling == other.tiling
        key = ("same", id(other))
        if key not in self._derived:  # ids are safe: the cache entry below keeps `other` alive
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
            tiling = None
            if self.tiling is not None and (self.tiling[0] == 1 or after == 1):
                tiling = self.tiling[0] * before, self.tiling[1] * after
            found = self._derived[key] = Owners(index, self.n_tasks, self._batch, tiling)
        return found

    def folded(self, before: int, after: int) -> Owners | None:
        """Undo :meth:`spread`; None if slices to be merged belong to different tasks."""
        if before == after == 1:
            return self
        key = ("folded", before, after, self.for_any_tasks)
        if key not in self._derived:
            blocks = self.index.view(before, -1, after)
            middle = blocks[0, :, 0]
            tiling = None
            if self.tiling is not None and not (self.tiling[0] % before or self.tiling[1] % after):
                tiling = self.tiling[0] // before, self.tiling[1] // after
            if self.for_any_tasks:
                uniform = tiling is not None
            else:
                uniform = bool((blocks == middle[None, :, None]).all())
            found = Owners(middle.contiguous(), self.n_tasks, self._batch, tiling)
            self._derived[key] = found if uniform else None
        return self._derived[key]

    def taken(self, start: int, length: int, stride: int) -> Owners:
        """Every ``stride``-th slice from ``start``."""
        if (start, length, stride) == (0, len(self), 1):
            return self
        key = ("taken", start, length, stride)
        found = self._derived.get(key)
        if found is None:
            index = self.index[start : start + (length - 1) * stride + 1 : stride]
            found = self._derived[key] = Owners(index.contiguous(), self.n_tasks, self._batch)
        return found

    def all_of(self, task: int, n_tasks: int) -> Owners:
        """The same number of slices, all owned by one of ``n_tasks`` tasks."""
        key = ("all_of", task, n_tasks)
        found = self._derived.get(key)
        if found is None:
            index = torch.full_like(self.index, task)
            found = self._derived[key] = Owners(index, n_tasks)
        return found

    def selected(self, positions: Tensor) -> Owners:
        """The slices at ``positions`` ``[m]``."""
        index = self.index.index_select(0, on_host(positions))
        return Owners(index, self.n_tasks, self._batch)

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """First and one past the last row of each task once the rows are sorted by task."""
        ends = self.index.bincount(minlength=self.n_tasks).cumsum(0).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def on(self, device: torch.device) -> Tensor:
        """Return :attr:`index` on a device."""
        found = self._index.on(device)
        assert found is not None
        return found

    @cached_property
    def _index(self) -> Positions:
        return Positions(self.index)

    @cached_property
    def padded(self) -> list[Padding]:
        """How to put the rows of each task side by side, tasks of similar height together.

        One class of all tasks if less than half of it is padding; else classes whose heights differ
        by less than a factor of two. Tasks without rows are in no class.
        """
        heights = {k: end - start for k, (start, end) in enumerate(self.bounds) if end > start}
        if not heights:
            return []
        classes: dict[int, list[int]] = {}
        if max(heights.values()) * len(heights) <= 2 * len(self):
            classes[0] = list(heights)
        else:
            for task, height in heights.items():
                classes.setdefault(height.bit_length(), []).append(task)
        return [Padding(self, tasks) for tasks in classes.values()]

    def layouts(self, device: torch.device) -> list[tuple[Padding, Tensor | None, Tensor | None]]:
        """Return :attr:`padded` with its :attr:`Padding.index` and ``gaps`` on a device."""
        found = self._layouts.get(device)
        if found is None:
            found = [(p, p.index.on(device), p.gaps.on(device)) for p in self.padded]
            self._layouts[device] = found
        return found

    @cached_property
    def padding(self) -> int:
        """How many rows are padding in :attr:`padded`."""
        return sum(p.height * len(p.tasks) for p in self.padded) - len(self)

    @cached_property
    def absent(self) -> Positions:
        """Positions of the tasks without rows."""
        found = [k for k, (start, end) in enumerate(self.bounds) if start == end]
        return Positions(torch.tensor(found) if found else None)

    @cached_property
    def _order(self) -> Positions:
        """The stable order that sorts rows by task; None if they are sorted."""
        if len(self) < 2 or bool((self.index[1:] >= self.index[:-1]).all()):
            return Positions(None)
        return Positions(self.index.argsort(stable=True))

    def order(self, device: torch.device) -> Tensor | None:
        """Positions of the rows sorted by task, ``[n]``, on a device; None if they are sorted."""
        return self._order.on(device)

    def blocks(self, values: Tensor) -> Iterator[Tensor]:
        """Yield the rows of each task among ``[n, ...]``.

        On a CPU large tensors are not sorted at once but copied one task at a time, so that the
        copy is still in the cache when it is used.
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


class Padding:
    """The rows of some tasks side by side, padded to the height of the longest.

    Attributes:
        tasks: positions of the tasks.
        n_tasks: how many they are.
        height: rows of the longest.
        all_tasks: whether these are all tasks of the step, in their order.
    """

    def __init__(self, owners: Owners, tasks: list[int]) -> None:
        self.tasks, self.n_tasks = tasks, len(tasks)
        self._owners, self._bounds = owners, [owners.bounds[k] for k in tasks]
        self.height = max(end - start for start, end in self._bounds)
        self.all_tasks = len(tasks) == owners.n_tasks

    @cached_property
    def _layout(self) -> tuple[Positions, Positions]:
        starts, ends = torch.tensor(self._bounds).T.unsqueeze(2)
        places = starts + torch.arange(self.height)
        gaps = places >= ends  # padded with a row of the same task, so NaN stays within it
        order = self._owners.order(torch.device("cpu"))
        index = torch.where(gaps, starts, places).flatten()
        index = index if order is None else order[index]
        as_is = len(index) == len(self._owners) and torch.equal(index, torch.arange(len(index)))
        return Positions(None if as_is else index), Positions(gaps if bool(gaps.any()) else None)

    @property
    def index(self) -> Positions:
        """Positions of the rows, ``[tasks * height]``; None if they already have this layout."""
        return self._layout[0]

    @property
    def gaps(self) -> Positions:
        """Which rows are padding, ``[tasks, height]``; None if none."""
        return self._layout[1]

    @cached_property
    def positions(self) -> Positions:
        """Positions of the tasks, ``[tasks]``."""
        return Positions(torch.tensor(self.tasks))


class Positions:
    """Positions known on the host, copied to a device once; None if nothing is to be done."""

    def __init__(self, values: Tensor | None) -> None:
        self._values = values
        self._there: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor | None:
        """Return them on a device."""
        if self._values is None or device.type == "cpu":
            return self._values
        if device not in self._there:
            self._there[device] = self._values.to(device, non_blocking=True)
        return self._there[device]
