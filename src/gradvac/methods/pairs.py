"""One float64 number per parameter group and ordered pair of tasks, kept by name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import check_keys


class PairTable:
    """A dense table ``[groups, tasks, tasks]`` that grows as names appear; new entries are 0.

    It lives on the CPU and in float64 whatever the gradients are: a moving average kept in bfloat16
    stops changing once its updates are smaller than a rounding step. It has space for later names,
    so that adding thousands of them, a few at a time, does not copy it each time.
    """

    def __init__(self) -> None:
        self._room = torch.zeros(0, 0, 0, dtype=torch.float64)
        self._groups: dict[str, int] = {}
        self._tasks: dict[str, int] = {}

    def read(self, groups: tuple[str, ...], tasks: tuple[str, ...]) -> Tensor:
        """Return a copy of the entries of these names, ``[groups, K, K]``."""
        known_groups = [n for n, name in enumerate(groups) if name in self._groups]
        known_tasks = [n for n, name in enumerate(tasks) if name in self._tasks]
        values = torch.zeros(len(groups), len(tasks), len(tasks), dtype=torch.float64)
        if known_groups and known_tasks:
            here = _grid(known_groups, known_tasks)
            names = ([groups[n] for n in known_groups], [tasks[n] for n in known_tasks])
            values[here] = self._room[self._positions(*names)]
        return values

    def diagonal(self, groups: tuple[str, ...], tasks: tuple[str, ...]) -> Tensor:
        """Return a copy of the entries of tasks with themselves, ``[groups, K]``; all are known."""
        g = torch.tensor([self._groups[name] for name in groups])[:, None]
        t = torch.tensor([self._tasks[name] for name in tasks])
        return self._room[g, t, t]

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
            self._room = torch.zeros(n_groups, room, room, dtype=torch.float64)
            self._room[: old.shape[0], : old.shape[1], : old.shape[2]] = old
        self._room[self._positions(groups, tasks)] = values.cpu()

    def _positions(
        self, groups: list[str] | tuple[str, ...], tasks: list[str] | tuple[str, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _grid([self._groups[n] for n in groups], [self._tasks[n] for n in tasks])

    def state_dict(self) -> dict[str, Any]:
        """Return a copy: ``targets`` ``[groups, tasks, tasks]`` and the names of its axes."""
        return {
            "targets": self._room[
                : len(self._groups), : len(self._tasks), : len(self._tasks)
            ].clone(),
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
        self._groups = {name: n for n, name in enumerate(groups)}
        self._tasks = {name: n for n, name in enumerate(tasks)}


def _grid(groups: list[int], tasks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Index arrays that select ``[groups, tasks, tasks]`` in one go."""
    g, t = torch.tensor(groups, dtype=torch.int64), torch.tensor(tasks, dtype=torch.int64)
    return g[:, None, None], t[None, :, None], t[None, None, :]
