"""Samples that lie along two dimensions of a tensor: the tokens of several packed rows.

Token ``(b, t)`` of a batch ``[B, T]`` has a task of its own, so no dimension alone has owners. But
an operation that keeps rows apart and keeps positions apart keeps tokens apart. So each rule is
applied twice: to where the rows lie, each its own owner, and to where the positions lie. Attention,
which mixes positions, is checked row by row, see :mod:`gradvac.engine.samples.segments`. The task
of a slice is that of the row and the position it belongs to.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Call, Mixed, Place, Places, Rule


class Crossed(Place):
    """Where the positions lie, as a place of its own, and where the rows lie.

    Attributes:
        rows: the dimension of the rows, and the row that each slice belongs to.
        grid: the task of each token.
    """

    rows: Place
    grid: Grid

    @classmethod
    def of(cls, rows: Place, positions: Place, grid: Grid) -> Crossed:
        """Cross the places of rows and of positions."""
        found = cls(*positions)
        found.rows, found.grid = rows, grid
        return found

    @property
    def positions(self) -> Place:
        """The dimension of the positions, and the position that each slice belongs to."""
        return Place(*self)

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions that hold samples, ascending; one if rows and positions share it."""
        return tuple(sorted({self.rows.dim, self.dim}))

    @property
    def n_tasks(self) -> int:
        """Number of tasks K of the step."""
        return self.grid.n_tasks

    @property
    def separable(self) -> bool:
        """False: the samples of a task are not the same positions of every row."""
        return False

    def fits(self, shape: torch.Size) -> bool:
        """Whether a tensor of a shape has as many rows and positions."""
        return self.rows.fits(shape) and self.positions.fits(shape)

    def along(self) -> Owners:
        """The task of each slice along :attr:`dims`, flattened."""
        ndim = max(self.dims) + 1
        return self.grid.owners(self, self.tasks(ndim).shape)

    def flat(self, shape: torch.Size) -> Owners:
        """The task of each element of a shape, flattened."""
        return self.grid.owners(self, shape)

    def tasks(self, ndim: int) -> Tensor:
        """The task of each slice, as a tensor of ``ndim`` dimensions to broadcast, on the CPU."""
        return self.grid.tasks[self.rows.tasks(ndim), self.positions.tasks(ndim)]


class Grid:
    """The task of each token of several rows.

    Args:
        tasks: position of the task of each token, ``[B, T]``.
        n_tasks: number of tasks K of the step.

    Attributes:
        place: where the tokens lie in the inputs of a model.
    """

    def __init__(self, tasks: Tensor, n_tasks: int) -> None:
        self.tasks, self.n_tasks = tasks, n_tasks
        self._found: dict[tuple[object, ...], tuple[Crossed, Owners]] = {}
        rows, positions = (Owners.of_samples(torch.arange(n), n) for n in tasks.shape)
        self.place = Crossed.of(Place(rows, 0), Place(positions, 1), self)

    def owners(self, place: Crossed, shape: torch.Size) -> Owners:
        """The task of each element of a shape, flattened."""
        rows, positions = place.rows, place.positions
        key = shape, rows.dim, positions.dim, id(rows.owners), id(positions.owners)
        if key not in self._found:
            index = place.tasks(len(shape)).expand(shape).flatten()
            self._found[key] = place, Owners(index, self.n_tasks)  # keeps what the ids are of
        return self._found[key][1]


def places_after(rule: Rule, call: Call) -> Places:
    """Where the samples lie after a call, by the rule of the operation.

    Raises:
        Mixed: if the operation does not keep samples apart.
    """
    given = [(x, place) for x, place in call.inputs if isinstance(place, Crossed)]
    if not given:
        return rule(call)
    if any(x.requires_grad and not isinstance(place, Crossed) for x, place in call.inputs):
        raise Mixed("its inputs hold their samples in different places")
    of_positions = [(x, place.positions) for x, place in given]
    positions = rule(replace(call, inputs=of_positions, crossed=given))
    rows = rule(replace(call, inputs=[(x, place.rows) for x, place in given], segments=None))
    return _joined(rows, positions, given[0][1].grid)


def _joined(rows: Places, positions: Places, grid: Grid) -> Places:
    """The places of what an operation returns, from those of the rows and of the positions."""
    if isinstance(rows, Place) and isinstance(positions, Place):
        return Crossed.of(rows, positions, grid)
    if rows is None or positions is None or isinstance(rows, Place) or isinstance(positions, Place):
        return None
    each = zip(rows, positions, strict=True)
    return [None if r is None or p is None else Crossed.of(r, p, grid) for r, p in each]
