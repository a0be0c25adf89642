"""Signs of life: what ranks leave for each other in the store that all of them reach.

A collective that fails says that somebody is gone, not who. The store outlives the connections
between ranks, so each rank leaves there why it gave up, or that it is still there.
"""

from __future__ import annotations

import hashlib
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
"""How many there were, by group: no key of a store is used twice."""

_LOST = "a rank is gone, and with it the store of the ranks, which rank 0 may have kept"


class Signs:
    """The signs of the ranks of a group.

    Args:
        members: their numbers in the default group, in the order of the group.
        rank: the place of this one among them.
    """

    def __init__(self, members: Sequence[int], rank: int) -> None:
        self.members, self.rank = members, rank
        named = ",".join(map(str, members))
        self._prefix = f"gradvac/{hashlib.blake2b(named.encode(), digest_size=8).hexdigest()}"

    @property
    def store(self) -> Any:
        """The store of the default group."""
        return dist.distributed_c10d._get_default_store()

    def leave(self, reason: str) -> None:
        """Say why this rank gives up."""
        self.accuse(f"rank {self.members[self.rank]} failed: {reason}")

    def accuse(self, what: str) -> None:
        """Say which rank is to blame, unless somebody has said so before."""
        with suppress(RuntimeError):
            if not self.store.check([f"{self._prefix}/failed"]):
                self.store.set(f"{self._prefix}/failed", what)

    def failed(self) -> str:
        """Say which rank gave up and why, or is gone; empty if nobody said so."""
        key = f"{self._prefix}/failed"
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def pulse(self) -> None:
        """Show once more that this rank is there."""
        self.store.add(f"{self._prefix}/pulse/{self.members[self.rank]}", 1)

    def pulse_of(self, other: int) -> int:
        """Return how often a rank has shown that it is there."""
        return self.store.add(f"{self._prefix}/pulse/{other}", 0)

    def end(self) -> None:
        """Say that this rank has done its work, and will show itself no more."""
        with suppress(RuntimeError):
            self.store.set(f"{self._prefix}/ended/{self.members[self.rank]}", "1")

    def ended(self, other: int) -> bool:
        """Return whether a rank has done its work."""
        return self.store.check([f"{self._prefix}/ended/{other}"])

    def missing(self) -> str:
        """Say which ranks failed or are gone; empty if all answer the roll call."""
        missing, left = [], ROLL_CALL
        try:
            if reason := self.failed():
                return reason
            self.store.set(f"{self._prefix}/alive/{self.members[self.rank]}", "1")
            for other in self.members:
                try:
                    self.store.wait([f"{self._prefix}/alive/{other}"], timedelta(seconds=left))
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
        _MEETINGS[self._prefix] += 1  # on all ranks, which come to them alike
        key, pause = f"{self._prefix}/meeting/{_MEETINGS[self._prefix]}", 0.01
        if not (only_first and self.rank):
            self.store.add(key, 1)
        awaited = 1 if only_first else len(self.members)
        try:
            while self.store.add(key, 0) < awaited:
                if reason := self.failed():
                    return reason
                time.sleep(pause)
                pause = min(1.0, pause * 1.5)
        except RuntimeError:
            return _LOST
        return ""


def gone(ranks: Sequence[int]) -> str:
    """Say which ranks are gone; nothing if none is."""
    names = ", ".join(map(str, ranks))
    return names and (f"rank {names} is gone" if len(ranks) == 1 else f"ranks {names} are gone")
