"""A disk that is full, or refuses: what could not be written waits, and nothing overtakes it."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

DISK = 74
"""Exit code of a run that ended because it could not save: EX_IOERR of sysexits.h."""

_OTHERS = {errno.EBADF, errno.EFAULT, errno.EPIPE}


def is_refusal(error: OSError) -> bool:
    """Whether an error is of a disk or folder, full, gone or stale; not of a program or pipe."""
    return error.errno is not None and error.errno not in _OTHERS


class Outbox:
    """Writes in their order; one that fails waits, with all after it, to be tried again.

    A write must leave a file that it can be repeated on, whatever it had written when it failed.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def put(self, write: Callable[[], None]) -> None:
        """Write now if nothing waits and the disk agrees."""
        self._waiting.append(write)
        self.flush()

    def flush(self) -> OSError | None:
        """Write what waits; returns the error of the first write that still fails."""
        while self._waiting:
            try:
                self._waiting[0]()
            except OSError as e:
                if not is_refusal(e):
                    raise
                return e
            self._waiting.popleft()
        return None


def explain(error: OSError) -> str:
    """The file and what the system says of it."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what
