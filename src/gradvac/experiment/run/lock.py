"""The lock of a run folder: one process at a time writes there."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gradvac.errors import RunError
from gradvac.reading import regular


@contextmanager
def alone(
    folder: Path, doing: str = "training this run", wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock of a run folder; RunError when another process uses it.

    With ``wait``, which receives a message, wait for the other process instead. The kernel
    releases the lock when the process ends in any way.
    """
    if (folder / ".lock").exists():
        regular(folder / ".lock")  # opening a FIFO would block
    try:
        opened = (folder / ".lock").open("w")
    except OSError as e:
        raise RunError(f"{folder}: cannot be written: {e.strerror}") from e
    with opened as lock:
        try:
            _lock(lock, f"{folder}: another process is {doing}", wait)
        except OSError as e:
            raise RunError(
                f"{folder}: cannot be locked against other processes: {e.strerror}"
            ) from e
        yield


def _lock(lock: IO[str], held: str, wait: Callable[[str], None] | None) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        if wait is None:
            raise RunError(held) from e
        wait(f"{held}; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
