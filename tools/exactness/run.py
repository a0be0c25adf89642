"""Run a part of the rows of the matrix, one after the other."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from . import adapters, models, operators
from .compare import FALLBACK, QUICK, WAYS
from .report import Row

LIMIT = 180  # seconds a row may take: fifty times the median, so that a hang is seen


class Part(NamedTuple):
    """Every n-th of something, beginning with the i-th."""

    i: int
    n: int

    @staticmethod
    def parse(text: str) -> Part:
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        part = Part(int(match[1]), int(match[2])) if match else Part(0, 0)
        if not 1 <= part.i <= part.n:
            raise argparse.ArgumentTypeError(
                f"a part is given as 2/12, the second of twelve; not {text!r}"
            )
        return part


ALL = Part(1, 1)
Task = tuple[str, Callable[[], Iterable[Row]]]


def rows_of(kind: str, quick: bool) -> list[Task]:
    """Return the names of all rows and what makes each, in an order that stays."""
    if kind in ("models", "adapters"):
        ways = QUICK if quick else WAYS
        found = models.architectures() if kind == "models" else adapters.adapters()
        ways = ways if kind == "models" else (*ways, FALLBACK)
        return [(model.name, lambda model=model: models.rows(model, ways)) for model in found]
    return [
        (operators.title(op), lambda op=op: [operators.row(op, quick)])
        for op in operators.operators()
    ]


class TooLong(BaseException):
    """A row takes longer than it may."""


@contextmanager
def seconds(limit: int) -> Iterator[None]:
    """Raise :class:`TooLong` in what takes longer; in the main thread."""

    def late(*_: Any) -> None:
        raise TooLong(f"it takes longer than {limit} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def quiet() -> Iterator[None]:
    """One thread, and neither warnings nor the engine's lines about falling back."""
    log, threads = logging.getLogger("gradvac"), torch.get_num_threads()
    level = log.level
    log.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        torch.set_num_threads(threads)


def run(
    kind: str,
    part: Part = ALL,
    only: str = "",
    quick: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    keep: Callable[[list[Row]], None] = lambda _: None,
) -> list[Row]:
    """Try the rows of a part; ``keep`` is called with all so far, whenever there are more."""
    with quiet():
        chosen = [task for task in rows_of(kind, quick) if re.search(only, task[0])]
        chosen = chosen[part.i - 1 :: part.n]
        found = []
        for n, (name, make) in enumerate(chosen):
            start = time.perf_counter()
            rows: list[Row] = []
            try:
                with seconds(LIMIT):
                    for row in make():
                        rows.append(row)
            except TooLong as e:
                rows.append(Row(name, kind.rstrip("s"), "not tested", str(e)))
            took = time.perf_counter() - start
            for row in rows:
                tell(f"{n + 1}/{len(chosen)} {took:.1f} s {row.line}")
            found += rows
            keep(found)
    return found
