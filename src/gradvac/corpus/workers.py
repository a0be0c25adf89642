"""Processes that share work; with one job, the work is done in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def workers(jobs: int, start: Callable[[], None] | None = None) -> Iterator[Map]:
    """A `map` over `jobs` processes that gives results in the order of the items.

    `start` is called once in each process. A process that dies ends the map with an error.
    """
    if jobs == 1:
        if start is not None:
            start()
        yield map
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), start) as pool:
        yield pool.map
