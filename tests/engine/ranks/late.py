"""Ranks whose collectives happen as late as they may, and memory that is spoilt once given back.

A collective reads what it sends and writes what it receives at any time between its call and the
end of its wait: on a GPU, and on a CPU in threads of gloo. Here that is when it is waited for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.gradients.pool import Pool
from gradvac.engine.ranks.group import Ranks


class LateRanks(Ranks):
    """Begins a collective when it is waited for; until then what it fills holds NaN."""

    def exchange(self, rows: Tensor, counts: Sequence[int], columns: int) -> tuple[Tensor, Any]:
        received = rows.new_full((sum(counts), columns), torch.nan)
        begin = super().exchange
        return received, LateWait(lambda: _fill(received, *begin(rows, counts, columns)))

    def gather(self, piece: Tensor) -> tuple[Tensor, Any]:
        begin = super().gather
        if not piece.is_floating_point():  # a message, which is waited for at once
            return begin(piece)
        whole = piece.new_full((self.size * len(piece),), torch.nan)
        return whole, LateWait(lambda: _fill(whole, *begin(piece)))

    def sum(self, values: Tensor) -> Any:
        begin = super().sum
        return LateWait(lambda: begin(values)())


def _fill(place: Tensor, found: Tensor, wait: Callable[[], None]) -> None:
    wait()
    place.copy_(found)


class LateWait:
    """Acts when it is first called."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.left = [act]

    def __call__(self) -> None:
        if self.left:
            self.left.pop()()


@contextmanager
def spoilt_pool() -> Iterator[None]:
    """Fill memory with NaN, inside, as soon as it is given back to the pool."""
    give = Pool.give

    def spoil(self: Pool, matrix: Tensor) -> None:
        give(self, matrix)
        self._free[-1].fill_(torch.nan)

    Pool.give = spoil
    try:
        yield
    finally:
        Pool.give = give
