"""Full or failing disks: failed writes are kept and retried in order."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

DISK = 74
"""Exit code of a run that stopped because it could not save: EX_IOERR of sysexits.h."""

_OTHERS = {errno.EBADF, errno.EFAULT, errno.EPIPE}


def is_refusal(error: OSError) -> bool:
    """Whether the cause is a full, missing or stale disk or folder, not a program or pipe."""
    return error.errno is not None and error.errno not in _OTHERS


class Outbox:
    """A queue of writes; a failed one is retried later, before those after it.

    It must be possible to repeat a write that failed halfway.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def put(self, write: Callable[[], None]) -> None:
        """Queue a write, and try to write now."""
        self._waiting.append(write)
        self.flush()

    def flush(self) -> OSError | None:
        """Do the queued writes; returns the error of the first that still fails."""
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
    """The file name and the error message of the system."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what
