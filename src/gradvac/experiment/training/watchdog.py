"""A thread that detects lost ranks.

Collectives of NCCL do not raise: the process waits for a device that waits for the lost rank, until
NCCL's watchdog ends the process without naming a rank. Gloo raises when a connection breaks, but
waits for its timeout when a rank hangs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.heartbeats import gone

# Chosen here. A rank sends a pulse every five seconds, and counts as lost after sixty checks of
# another rank without one, five minutes: a call may block Python for minutes. Then this process has
# half a minute to end by itself before it is killed.
EVERY, LOOKS, GRACE = 5.0, 60, 30.0
JOIN = 5.0  # seconds to wait for the thread at the end: the store may be gone and not answer


@contextmanager
def lookout(ranks: Ranks) -> Iterator[None]:
    """Watch the other ranks from a thread while this context runs.

    If one failed or is lost and this process does not end by itself, print why and end it.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(ranks, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # A thread that comes back from the store while the interpreter ends aborts the process.
        thread.join(JOIN)
        ranks.signs.end()


def _look(ranks: Ranks, over: threading.Event) -> None:
    pulses: dict[int, tuple[int, int]] = {}  # by rank: the last pulse, and checks since then
    while not over.wait(EVERY):
        try:
            if lost := gone(_silent(ranks, pulses)):
                ranks.signs.accuse(lost)
            reason = ranks.signs.failed()
        except RuntimeError:
            reason = "the store of the ranks is gone, which rank 0 may have kept"
        if reason and not over.wait(GRACE):
            print(
                f"RankError: {reason} (seen by rank {ranks.rank}); start all ranks again from the "
                "last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)  # a wait for a device cannot be interrupted


def _silent(ranks: Ranks, pulses: dict[int, tuple[int, int]]) -> list[int]:
    """Send the pulse of this rank; return the watched ranks without a pulse for too long.

    Checks are counted, not seconds: all ranks may have been paused.
    """
    signs = ranks.signs
    signs.pulse()
    # Each rank watches the next two, so that the store gets few requests per rank.
    after = [signs.members[(ranks.rank + n) % ranks.size] for n in range(1, min(3, ranks.size))]
    for other in after:
        pulse, (before, looks) = signs.pulse_of(other), pulses.get(other, (-1, 0))
        pulses[other] = (pulse, 0 if pulse != before else looks + 1)
    silent = [other for other, (_, looks) in pulses.items() if looks >= LOOKS]
    return [other for other in silent if not signs.ended(other)]
