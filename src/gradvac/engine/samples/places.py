"""How an operation moves the samples of a batch: one small rule per kind of operation.

A tensor has a *place*, a dimension and an :class:`Owners`, when each of its slices along that
dimension depends only on samples of one task. A rule says where the samples of an operation's
inputs lie in its output. Rules use shapes and arguments, never a coincidence of sizes, and raise
:class:`Mixed` when slices of different tasks are combined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gradvac.engine.samples.owners import Owners

if TYPE_CHECKING:
    from gradvac.engine.samples.segments import Segments


class Mixed(Exception):
    """An operation combines samples of different tasks, or is unknown and might."""


class Lost(Mixed):
    """After an operation, slices belong to no sample, or to other samples than before."""


class Place(NamedTuple):
    """Where the samples lie: slice i along ``dim`` belongs to task ``owners.index[i]``.

    Samples that lie along two dimensions have a :class:`gradvac.engine.samples.crossed.Crossed`.
    """

    owners: Owners
    dim: int

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions that hold samples, ascending."""
        return (self.dim,)

    @property
    def n_tasks(self) -> int:
        """Number of tasks K of the step."""
        return self.owners.n_tasks

    @property
    def separable(self) -> bool:
        """Whether the samples of a task can be taken out along one dimension."""
        return True

    def fits(self, shape: torch.Size) -> bool:
        """Whether a tensor of a shape has as many slices."""
        return self.dim < len(shape) and shape[self.dim] == len(self.owners)

    def along(self) -> Owners:
        """The task of each slice along :attr:`dims`, flattened."""
        return self.owners

    def flat(self, shape: torch.Size) -> Owners:
        """The task of each element of a shape, flattened."""
        return self.owners.spread(shape[: self.dim].numel(), shape[self.dim + 1 :].numel())

    def tasks(self, ndim: int) -> Tensor:
        """The task of each slice, as a tensor of ``ndim`` dimensions to broadcast, on the CPU."""
        return self.owners.index.view([-1 if d == self.dim else 1 for d in range(ndim)])

    def sole(self) -> Place:
        """Owners of the same slices if there is only one task."""
        return Place(self.owners.all_of(0, 1), self.dim)


@dataclass(slots=True, eq=False)
class Call:
    """A call of a function whose output needs a place.

    Attributes:
        func: the function.
        name: its name without underscores around it.
        args: positional arguments.
        kwargs: keyword arguments.
        inputs: the tensors with samples among them, those with a gradient first.
        out: the result of the function, once it has returned.
        segments: if samples are the tokens of sequences in one row, what checks that attention
            keeps them apart.
        crossed: if the samples lie along two dimensions and ``inputs`` has those of one, both.
    """

    func: Callable[..., Any]
    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    inputs: list[tuple[Tensor, Place]]
    out: Any = None
    segments: Segments | None = None
    crossed: Sequence[tuple[Tensor, Place]] = ()

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def place(self, argument: Any) -> Place | None:
        """Return where the samples lie in an argument, None if unknown."""
        return next((place for x, place in self.inputs if x is argument), None)

    def whole_place(self, argument: Any) -> Place | None:
        """Return where the samples lie in an argument, along both dimensions if they have two."""
        return next((p for x, p in self.crossed or self.inputs if x is argument), None)


Places = Place | Sequence[Place | None] | None
"""One for each tensor that an operation returns, or one for all."""

Rule = Callable[[Call], Places]


def sole_owner(owners: Owners) -> int | None:
    """The task that owns all slices, along any dimension; None if several do or may."""
    if owners.for_any_tasks:
        return None
    present = [task for task, (start, end) in enumerate(owners.bounds) if end > start]
    return present[0] if len(present) == 1 else None


def same_place(one: Place, other: Place) -> bool:
    """Whether two places are the same."""
    return one.dim == other.dim and one.owners.same(other.owners)


def agreed(places: Sequence[tuple[Tensor, Place]]) -> Place:
    """Return the place all inputs agree on, in dimensions of the output.

    The place of a tensor without gradient is only a hint; one with a gradient has priority.
    """
    (first, found), *others = places
    for x, place in others:
        if same_place(place, found):
            continue
        owner = sole_owner(place.owners)
        if not x.requires_grad or (owner is not None and owner == sole_owner(found.owners)):
            continue
        if not first.requires_grad:
            first, found = x, place
            continue
        raise Mixed("its inputs hold their samples in different places")
    return found
