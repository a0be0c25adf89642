"""Divides the columns of a bucket of parameters into slices, one for each rank.

Evenly if the combined gradient is gathered afterwards; by rows, as in ``fully_shard``, if it stays
on the rank that keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gradvac.engine.gradients.on_demand import OnDemand
from gradvac.engine.ranks.buckets import Bucket, GradientColumns, Segment
from gradvac.engine.ranks.shards import as_shard, local_rows, rows_of_a_rank


class Slicing(Protocol):
    """The slices of a bucket; each round sends a range of places.

    Attributes:
        gathers: whether the slices of all ranks are gathered at the end.
    """

    gathers: bool

    def rounds(self, at_once: int) -> list[tuple[int, int]]:
        """Return ranges of places that hold at most ``at_once`` columns for all ranks."""
        ...

    def slices(self, sources: Sequence[GradientColumns], own: int, start: int, stop: int) -> Tensor:
        """Return ``own`` gradients in a range of places, a slice for each rank, ``[R, own, w]``.

        Always a copy: the memory of the sources is reused while these are sent.
        """
        ...

    def columns(self, segment: Segment, start: int, stop: int) -> slice:
        """Return which columns of this rank's slice of a range of places belong to a segment."""
        ...

    def gradients(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return a gradient for each parameter, from the results of all rounds."""
        ...


class EvenSlicing:
    """Slices of equal width, regardless of parameters; places are columns.

    Args:
        bucket: the bucket to divide.
        rank: which slice is this rank's.
        size: number of ranks R.
    """

    gathers = True

    def __init__(self, bucket: Bucket, rank: int, size: int) -> None:
        self.bucket, self.rank, self.size = bucket, rank, size

    def rounds(self, at_once: int) -> list[tuple[int, int]]:
        """Return ranges of columns."""
        end = self.bucket.size
        return [(start, min(start + at_once, end)) for start in range(0, end, at_once)]

    def slices(self, sources: Sequence[GradientColumns], own: int, start: int, stop: int) -> Tensor:
        """Return the gradients of a range of columns, padded with zeros."""
        parts = _columns(sources, own, start, stop, self.bucket)
        width = -(-(stop - start) // self.size)
        if self.size * width > stop - start:
            parts.append(_zeros(own, self.size * width - (stop - start), self.bucket))
        gradients = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return _copied(gradients.reshape(own, self.size, width).transpose(0, 1))

    def columns(self, segment: Segment, start: int, stop: int) -> slice:
        """Return the columns of a segment in this rank's slice."""
        width = -(-(stop - start) // self.size)
        begin = start + self.rank * width
        end = min(begin + width, stop)
        a, b = max(begin, segment.start), min(end, segment.stop)
        return slice(a - begin, b - begin) if a < b else slice(0, 0)

    def gradients(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return whole gradients from the gathered slices."""
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        parameters = self.bucket.parameters
        pieces = whole[: self.bucket.size].split([p.numel() for p in parameters])
        return [piece.view(p.shape) for p, piece in zip(parameters, pieces, strict=True)]


class RowSlicing:
    """The rows of every parameter that a rank keeps, one parameter after the other.

    A rank that keeps fewer rows of a parameter than the first one has zeros instead: places are
    those of the first rank's slice.

    Args:
        bucket: the bucket to divide; all its parameters are sharded.
        size: number of ranks R.
    """

    gathers = False

    def __init__(self, bucket: Bucket, size: int) -> None:
        self.bucket, self.size = bucket, size
        self._widths = [
            rows_of_a_rank(p.shape[0], size) * prod(p.shape[1:]) for p in bucket.parameters
        ]
        ends = torch.tensor([0, *self._widths]).cumsum(0).tolist()
        self._place = dict(zip(_starts(bucket.parameters), ends, strict=True))  # by column

    def rounds(self, at_once: int) -> list[tuple[int, int]]:
        """Return ranges of places in a slice."""
        end, step = sum(self._widths), max(1, at_once // self.size)
        return [(start, min(start + step, end)) for start in range(0, end, step)]

    def slices(self, sources: Sequence[GradientColumns], own: int, start: int, stop: int) -> Tensor:
        """Return the rows of each rank in a range of places."""
        parts: list[Tensor] = []
        place = column = 0
        for p, width in zip(self.bucket.parameters, self._widths, strict=True):
            a, b = max(start - place, 0), min(stop - place, width)
            if a < b:
                parts.append(self._of_all(sources, own, column, p.numel(), width, a, b))
            place, column = place + width, column + p.numel()
        gradients = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        return _copied(gradients.transpose(0, 1))

    def _of_all(
        self,
        sources: Sequence[GradientColumns],
        own: int,
        first: int,
        numel: int,
        width: int,
        a: int,
        b: int,
    ) -> Tensor:
        """Return columns ``a`` to ``b`` of the slices of a parameter, ``[own, R, b - a]``."""
        if b - a == width:
            found = _columns(sources, own, first, first + numel, self.bucket)
            whole = found[0] if len(found) == 1 else torch.cat(found, 1)
            return pad(whole, (0, self.size * width - numel)).view(own, self.size, width)
        slices = []
        for r in range(self.size):
            begin, end = min(r * width + a, numel), min(r * width + b, numel)
            found = _columns(sources, own, first + begin, first + end, self.bucket)
            slices.append(
                pad(torch.cat(found, 1), (0, b - a - (end - begin)))
                if found
                else _zeros(own, b - a, self.bucket)
            )
        return torch.stack(slices, 1)

    def columns(self, segment: Segment, start: int, stop: int) -> slice:
        """Return the columns of a segment, the same in the slices of all ranks."""
        a = max(self._place[segment.start], start)
        b = min(self._place[segment.stop], stop)
        return slice(a - start, b - start) if a < b else slice(0, 0)

    def gradients(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows that this rank keeps, as DTensors."""
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        parameters = self.bucket.parameters
        found = []
        for p, piece in zip(parameters, whole.split(self._widths), strict=True):
            local = local_rows(p)
            found.append(as_shard(piece[: local.numel()].view(local.shape), p))
        return found


def slicing_of(bucket: Bucket, rank: int, size: int) -> Slicing:
    """Return how the columns of a bucket are divided."""
    return RowSlicing(bucket, size) if bucket.sharded else EvenSlicing(bucket, rank, size)


def _starts(parameters: Sequence[nn.Parameter]) -> list[int]:
    """First columns of parameters, and the end of the last."""
    return torch.tensor([0, *(p.numel() for p in parameters)]).cumsum(0).tolist()


def _copied(gradients: Tensor) -> Tensor:
    """Copy always: with one task or one rank, a transpose is already contiguous."""
    return gradients.clone(memory_format=torch.contiguous_format)


def _zeros(own: int, columns: int, bucket: Bucket) -> Tensor:
    return torch.zeros(own, columns, dtype=bucket.dtype, device=bucket.device)


def _columns(
    sources: Sequence[GradientColumns], own: int, start: int, stop: int, bucket: Bucket
) -> list[Tensor]:
    """Return the gradients of a range of columns, in adjacent pieces ``[own, n]``."""
    parts, first = [], 0
    for source in sources:
        a, b = max(start, first) - first, min(stop, first + source.size) - first
        first += source.size
        if a >= b:
            continue
        found = source.gradients
        if found is None:
            parts.append(_zeros(own, b - a, bucket))
        else:
            parts.append(found.columns(a, b) if isinstance(found, OnDemand) else found[:, a:b])
    return parts
