"""A lookout for ranks that are gone, where nothing that waits for them says so.

Collectives of NCCL do not raise: the host goes on, and waits for a device that waits for the lost
rank, until NCCL's watchdog ends the process without naming anybody. Gloo raises when a connection
breaks, and waits out its timeout when a rank hangs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.heartbeats import gone

# Chosen here. A rank shows that it is there every five seconds, and is given up when it has not for
# sixty looks of another one, five minutes: Python may be held up by a call that takes minutes. Then
# this process has half a minute to end by itself before it is ended.
EVERY, LOOKS, GRACE = 5.0, 60, 30.0


@contextmanager
def lookout(ranks: Ranks) -> Iterator[None]:
    """Look out for the other ranks from a thread of its own while the work inside goes on.

    When one of them failed or is gone, says so, and ends the process if the work does not.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(ranks, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        ranks.signs.end()


def _look(ranks: Ranks, over: threading.Event) -> None:
    pulses: dict[int, tuple[int, int]] = {}  # by rank: the last pulse, and looks since it came
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
            os._exit(2)  # what waits for a device cannot be interrupted


def _silent(ranks: Ranks, pulses: dict[int, tuple[int, int]]) -> list[int]:
    """Show that this rank is there; return those after it that have not shown it for long.

    Looks are counted, not seconds: all ranks may have been stopped for a while.
    """
    signs = ranks.signs
    signs.pulse()
    # Each looks after the next two, so that the store is asked a few times for each rank.
    after = [signs.members[(ranks.rank + n) % ranks.size] for n in range(1, min(3, ranks.size))]
    for other in after:
        pulse, (before, looks) = signs.pulse_of(other), pulses.get(other, (-1, 0))
        pulses[other] = (pulse, 0 if pulse != before else looks + 1)
    silent = [other for other, (_, looks) in pulses.items() if looks >= LOOKS]
    return [other for other in silent if not signs.ended(other)]
