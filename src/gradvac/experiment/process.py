"""A training process among others: signals, the lock of its run folder, its memory."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradvac.errors import RunError


class StopSignal:
    """The signal that asked the run to end, or None. Entered, it listens.

    The first SIGINT or SIGTERM is noted and ends the run at the next step; a second one acts at
    once, as it would without this.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside; afterwards signals do what they did before."""

        def note(number: int, frame: object) -> None:
            self.number = number
            signal.signal(number, signal.SIG_DFL)

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def alone(folder: Path, doing: str = "training this run") -> Iterator[None]:
    """Hold the lock of a run folder; RunError when another process trains (or measures) there."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise RunError(f"{folder}: another process is {doing}") from e
        yield


def bound_kernel_caches() -> None:
    """Keep the CPU's kernel library from hoarding a compiled kernel for every batch shape it met.

    Under bfloat16 each shape is a kernel of its own, and shapes hardly recur: 250 steps of the
    demo held 1.4 GB with the library's default of 1,024 kernels, 0.6 GB with 64, at equal speed.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
