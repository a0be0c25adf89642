"""Which gradients are sent between ranks together, in the same order on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradvac.engine.gradients.on_demand import OnDemand
from gradvac.engine.gradients.precision import at_least_float32
from gradvac.engine.groups import ParameterGroup
from gradvac.engine.ranks.shards import is_sharded


@dataclass(frozen=True)
class GradientColumns:
    """Task gradients of this rank in some adjacent columns, in the order of the parameters.

    Attributes:
        size: number of columns.
        gradients: the gradients, ``[own tasks, size]``, or an object that computes them; None if
            all are zero.
    """

    size: int
    gradients: Tensor | OnDemand | None


@dataclass(frozen=True)
class Segment:
    """The columns of a bucket that belong to one parameter group."""

    group: int
    start: int
    stop: int


@dataclass
class Bucket:
    """Adjacent pieces of the model whose gradients are sent together."""

    pieces: list[ParameterGroup]
    segments: list[Segment]
    dtype: torch.dtype

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Their parameters, in the order of the columns."""
        return [p for piece in self.pieces for p in piece.parameters]

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.segments[-1].stop

    @property
    def sharded(self) -> bool:
        """Whether each rank keeps only its rows of the parameters."""
        return is_sharded(self.pieces[0].parameters[0])

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.pieces[0].parameters[0].device


def _pieces(groups: Sequence[ParameterGroup], size: int) -> list[ParameterGroup]:
    """Divide groups into pieces of at least ``size`` numbers, each of one group, last first.

    The backward pass reaches the end of a model first.
    """
    place = {id(p): n for n, p in enumerate(p for g in groups for p in g.parameters)}
    pieces: list[ParameterGroup] = []
    for group in groups:
        names: list[str] = []
        parameters: list[nn.Parameter] = []
        for name, p in zip(group.names, group.parameters, strict=True):
            if parameters and is_sharded(parameters[-1]) != is_sharded(p):
                pieces.append(ParameterGroup(group.name, tuple(names), tuple(parameters)))
                names, parameters = [], []
            names.append(name)
            parameters.append(p)
            if sum(p.numel() for p in parameters) >= size or p is group.parameters[-1]:
                pieces.append(ParameterGroup(group.name, tuple(names), tuple(parameters)))
                names, parameters = [], []
    return sorted(pieces, key=lambda piece: -place[id(piece.parameters[-1])])


def buckets_of(groups: Sequence[ParameterGroup], size: int | Callable[[int], int]) -> list[Bucket]:
    """Put groups, or pieces of them, into buckets of at least ``size`` numbers.

    A bucket has one dtype and device, and its parameters are all sharded or all not. ``size`` may
    be a function of the number of parameters.
    """
    if not isinstance(size, int):
        size = size(sum(p.numel() for group in groups for p in group.parameters))
    position = {group.name: n for n, group in enumerate(groups)}
    buckets: list[Bucket] = []
    filled = size
    kind: object = None
    for piece in _pieces(groups, size):
        dtype = at_least_float32(*(p.dtype for p in piece.parameters))
        numel = sum(p.numel() for p in piece.parameters)
        first = piece.parameters[0]
        if filled >= size or kind != (dtype, first.device, is_sharded(first)):
            buckets.append(Bucket([], [], dtype))
            filled, kind = 0, (dtype, first.device, is_sharded(first))
        buckets[-1].pieces.append(piece)
        buckets[-1].segments.append(Segment(position[piece.name], filled, filled + numel))
        filled += numel
    return buckets
