"""Signs of life of ranks, in the store that all of them reach.

A failed collective does not name the rank that died. The store outlives the connections between
ranks, so each rank writes there why it gave up, or that it is alive.
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
"""Seconds to wait for a sign of life once a rank seems dead: it may still be computing."""

_MEETINGS = Counter[str]()
"""Number of meetings so far, by group: no key of a store is used twice."""

_LOST = "a rank is gone, and with it the store of the ranks, which rank 0 may have kept"


class Signs:
    """The signs of the ranks of a group.

    Args:
        members: ranks in the default group, in the order of the group.
        rank: position of this rank among them.
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
        """Write why this rank gives up."""
        self.accuse(f"rank {self.members[self.rank]} failed: {reason}")

    def accuse(self, what: str) -> None:
        """Write which rank caused the failure, unless a rank already did."""
        with suppress(RuntimeError):
            if not self.store.check([f"{self._prefix}/failed"]):
                self.store.set(f"{self._prefix}/failed", what)

    def failed(self) -> str:
        """Return which rank gave up and why, or has died; empty if nothing was written."""
        key = f"{self._prefix}/failed"
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def pulse(self) -> None:
        """Increase the counter that shows that this rank is alive."""
        self.store.add(f"{self._prefix}/pulse/{self.members[self.rank]}", 1)

    def pulse_of(self, other: int) -> int:
        """Return the counter of signs of life of a rank."""
        return self.store.add(f"{self._prefix}/pulse/{other}", 0)

    def end(self) -> None:
        """Write that this rank has finished and gives no more signs of life."""
        with suppress(RuntimeError):
            self.store.set(f"{self._prefix}/ended/{self.members[self.rank]}", "1")

    def ended(self, other: int) -> bool:
        """Return whether a rank has finished."""
        return self.store.check([f"{self._prefix}/ended/{other}"])

    def missing(self) -> str:
        """Return which ranks failed or have died; empty if all give a sign of life."""
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
                    left = 1.0  # the others have had enough time
            if self.rank == 0:
                time.sleep(1.0)  # this process may host the store, and the others still read it
        except RuntimeError:
            return _LOST
        return gone(missing)

    def meet(self, only_first: bool = False) -> str:
        """Write that this rank is here, and wait until all ranks are, or only the first.

        Returns why that will never happen, or nothing. Polls the store, because its own wait has a
        time limit.
        """
        _MEETINGS[self._prefix] += 1  # the same on all ranks
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
    """Return which ranks have died; empty if none."""
    names = ", ".join(map(str, ranks))
    return names and (f"rank {names} is gone" if len(ranks) == 1 else f"ranks {names} are gone")
