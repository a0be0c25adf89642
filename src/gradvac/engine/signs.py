"""Signs of life: what ranks leave for each other in the store that all of them reach.

A collective that fails says that somebody is gone, not who. The store outlives the connections
between ranks, so each rank leaves there why it gave up, or that it is still there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

ROLL_CALL = 20.0
"""Seconds to wait for a sign of life once a rank seems gone: the others may be computing still."""

_MEETINGS = Counter[str]()
"""How many there were, by the members: no key of a store is used twice."""

_LOST = "a rank is gone, and with it the store of the ranks, which rank 0 may have kept"


class Signs:
    """The signs of the ranks of a group.

    Args:
        members: their numbers in the default group, in the order of the group.
        rank: the place of this one among them.
    """

    def __init__(self, members: Sequence[int], rank: int) -> None:
        self.members, self.rank = members, rank

    @property
    def store(self) -> Any:
        """The store of the default group."""
        return dist.distributed_c10d._get_default_store()

    def leave(self, reason: str) -> None:
        """Say why this rank gives up."""
        with suppress(RuntimeError):
            self.store.set(f"gradvac/failed/{self.members[self.rank]}", reason)

    def failed(self) -> str:
        """Say which rank gave up and why; empty if none said so."""
        for other in self.members:
            if self.store.check([key := f"gradvac/failed/{other}"]):
                return f"rank {other} failed: {self.store.get(key).decode()}"
        return ""

    def pulse(self) -> None:
        """Show once more that this rank is there."""
        self.store.add(f"gradvac/pulse/{self.members[self.rank]}", 1)

    def pulse_of(self, other: int) -> int:
        """Return how often a rank has shown that it is there."""
        return self.store.add(f"gradvac/pulse/{other}", 0)

    def end(self) -> None:
        """Say that this rank has done its work, and will show itself no more."""
        with suppress(RuntimeError):
            self.store.set(f"gradvac/ended/{self.members[self.rank]}", "1")

    def ended(self, other: int) -> bool:
        """Return whether a rank has done its work."""
        return self.store.check([f"gradvac/ended/{other}"])

    def missing(self) -> str:
        """Say which ranks failed or are gone; empty if all answer the roll call."""
        missing, left = [], ROLL_CALL
        try:
            if reason := self.failed():
                return reason
            self.store.set(f"gradvac/alive/{self.members[self.rank]}", "1")
            for other in self.members:
                try:
                    self.store.wait([f"gradvac/alive/{other}"], timedelta(seconds=left))
                except RuntimeError:
                    missing.append(other)
                    left = 1.0  # the rest have had their time
            if self.rank == 0:
                time.sleep(1.0)  # this process may keep the store, and the others read it still
        except RuntimeError:
            return _LOST
        return gone(missing)

    def meet(self, only_first: bool = False) -> str:
        """Say that this rank has come here, and wait until all ranks have, or the first alone.

        Returns why that will never be, or nothing. The store is asked, not waited for: that would
        have a limit, and what takes long has none.
        """
        turn, pause = self._turn(), 0.01
        self.store.set(f"{turn}/{self.rank}", "1")
        awaited = [f"{turn}/{r}" for r in range(1 if only_first else len(self.members))]
        try:
            while not self.store.check(awaited):
                if reason := self.failed():
                    return reason
                time.sleep(pause)
                pause = min(1.0, pause * 1.5)
        except RuntimeError:
            return _LOST
        return ""

    def _turn(self) -> str:
        """Name a meeting, the same on all ranks, which come to them alike."""
        members = ",".join(map(str, self.members))
        _MEETINGS[members] += 1
        return f"gradvac/meeting/{members}/{_MEETINGS[members]}"


def gone(ranks: Sequence[int]) -> str:
    """Say which ranks are gone; nothing if none is."""
    names = ", ".join(map(str, ranks))
    return names and (f"rank {names} is gone" if len(ranks) == 1 else f"ranks {names} are gone")
