"""One float64 number per parameter group and ordered pair of tasks, kept by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import check_keys
from gradvac.sending import to_device

_Places = tuple[tuple[int, ...], tuple[int, ...]]
_Grid = tuple[Tensor, Tensor, Tensor]
_GRIDS = 64  # index arrays kept, chosen here: steps bring the same names again and again


class PairTable:
    """A dense table ``[groups, tasks, tasks]`` that grows as names appear; new entries are 0.

    It is in float64 whatever the gradients are: a moving average kept in bfloat16 stops changing
    once its updates are smaller than a rounding step. It lives on the CPU until it is read on
    another device, and is written there without a wait. It has space for later names, so that
    adding thousands of them, a few at a time, does not copy it each time.
    """

    def __init__(self) -> None:
        self._room = torch.zeros(0, 0, 0, dtype=torch.float64)
        self._groups: dict[str, int] = {}
        self._tasks: dict[str, int] = {}
        self._grids: dict[_Places, _Grid] = {}  # sent to the device once

    def on(self, device: torch.device) -> None:
        """Move the table to a device."""
        if self._room.device != device:
            self._room = to_device(self._room, device)
            self._grids.clear()

    def read(self, groups: tuple[str, ...], tasks: tuple[str, ...]) -> Tensor:
        """Return a copy of the entries of these names, ``[groups, K, K]``, where the table is."""
        known_groups = [n for n, name in enumerate(groups) if name in self._groups]
        known_tasks = [n for n, name in enumerate(tasks) if name in self._tasks]
        names = ([groups[n] for n in known_groups], [tasks[n] for n in known_tasks])
        if len(known_groups) == len(groups) and len(known_tasks) == len(tasks):
            return self._room[self._positions(*names)]
        values = self._room.new_zeros(len(groups), len(tasks), len(tasks))
        if known_groups and known_tasks:
            here = self._grid(known_groups, known_tasks)
            values[here] = self._room[self._positions(*names)]
        return values

    def diagonal(self, groups: tuple[str, ...], tasks: tuple[str, ...]) -> Tensor:
        """Return a copy of the entries of tasks with themselves, ``[groups, K]``."""
        values = self._room.new_zeros(len(groups), len(tasks))
        for n, group in enumerate(groups):
            if group in self._groups:
                known = [k for k, task in enumerate(tasks) if task in self._tasks]
                t = torch.tensor([self._tasks[tasks[k]] for k in known], dtype=torch.int64)
                values[n, known] = self._room[self._groups[group], t, t]
        return values

    def write(self, groups: tuple[str, ...], tasks: tuple[str, ...], values: Tensor) -> None:
        """Store ``values``, ``[groups, K, K]``, under these names."""
        for name in groups:
            self._groups.setdefault(name, len(self._groups))
        for name in tasks:
            self._tasks.setdefault(name, len(self._tasks))
        n_groups, n_tasks = len(self._groups), len(self._tasks)
        if n_groups > self._room.shape[0] or n_tasks > self._room.shape[1]:
            old, room = self._room, self._room.shape[1]
            if n_tasks > room:  # a quarter more; the first step often has all names
                room = n_tasks + (n_tasks // 4 if room else 0)
            self._room = old.new_zeros(n_groups, room, room)
            self._room[: old.shape[0], : old.shape[1], : old.shape[2]] = old
        self._room[self._positions(groups, tasks)] = values.to(self._room.device)

    def _positions(
        self, groups: list[str] | tuple[str, ...], tasks: list[str] | tuple[str, ...]
    ) -> _Grid:
        return self._grid([self._groups[n] for n in groups], [self._tasks[n] for n in tasks])

    def _grid(self, groups: list[int], tasks: list[int]) -> _Grid:
        """Index arrays that select ``[groups, tasks, tasks]`` in one go, where the table is."""
        places = tuple(groups), tuple(tasks)
        if places not in self._grids:
            if len(self._grids) >= _GRIDS:
                self._grids.clear()
            on_host = (torch.tensor(each, dtype=torch.int64) for each in places)
            g, t = (to_device(each, self._room.device) for each in on_host)
            self._grids[places] = g[:, None, None], t[None, :, None], t[None, None, :]
        return self._grids[places]

    def snapshot(self) -> PairTable:
        """Return a copy, on the same device."""
        copy = PairTable()
        copy._room = self._room.clone()
        copy._groups, copy._tasks = dict(self._groups), dict(self._tasks)
        return copy

    def keep_if(self, keep: Tensor, before: PairTable) -> None:
        """Go back to the entries of an earlier :meth:`snapshot` unless ``keep``; names stay."""
        old = to_device(before._room, self._room.device)
        if old.shape != self._room.shape:
            groups, rows, columns = old.shape
            old = torch.zeros_like(self._room)
            old[:groups, :rows, :columns] = to_device(before._room, old.device)
        self._room = torch.where(keep, self._room, old)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy: ``targets`` ``[groups, tasks, tasks]`` and the names of its axes."""
        return {
            "targets": self._room[: len(self._groups), : len(self._tasks), : len(self._tasks)].to(
                "cpu", copy=True
            ),
            "groups": list(self._groups),
            "tasks": list(self._tasks),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the table by a copy of ``state``.

        Raises:
            GradientError: if a part is missing, names and table do not fit together, or a number is
                not finite; the table is then unchanged.
        """
        check_keys("the state of a table of pairs", state, ("targets", "groups", "tasks"))
        values, groups, tasks = state["targets"], state["groups"], state["tasks"]
        expected = (len(groups), len(tasks), len(tasks))
        if not isinstance(values, Tensor):
            raise GradientError(
                f"state 'targets' is a {type(values).__name__}; it must be a tensor"
            )
        if values.shape != expected or values.dtype != torch.float64:
            raise GradientError(
                f"state 'targets' is {values.dtype} {list(values.shape)}; its {len(groups)} groups "
                f"and {len(tasks)} tasks need float64 {list(expected)}"
            )
        if not bool(values.isfinite().all()):
            group, one, other = (~values.isfinite()).nonzero()[0].tolist()
            raise GradientError(
                f"state 'targets' of group {groups[group]!r}, tasks {tasks[one]!r} and "
                f"{tasks[other]!r} is {values[group, one, other].item()}; it must be finite"
            )
        self._room = values.detach().cpu().clone()
        self._grids.clear()
        self._groups = {name: n for n, name in enumerate(groups)}
        self._tasks = {name: n for n, name in enumerate(tasks)}
