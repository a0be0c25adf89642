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

from torch import Tensor

from gradvac.engine.samples.owners import Owners

if TYPE_CHECKING:
    from gradvac.engine.samples.segments import Segments


class Mixed(Exception):
    """An operation combines samples of different tasks, or is unknown and might."""


class Lost(Mixed):
    """After an operation, slices belong to no sample, or to other samples than before."""


class Place(NamedTuple):
    """Where the samples lie: slice i along ``dim`` belongs to task ``owners.index[i]``."""

    owners: Owners
    dim: int


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
    """

    func: Callable[..., Any]
    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    inputs: list[tuple[Tensor, Place]]
    out: Any = None
    segments: Segments | None = None

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def place(self, argument: Any) -> Place | None:
        """Return where the samples lie in an argument, None if unknown."""
        return next((place for x, place in self.inputs if x is argument), None)


Rule = Callable[[Call], Place | Sequence[Place | None] | None]


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
