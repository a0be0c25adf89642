"""The other ranks of a run: collectives, counts of bytes sent, and errors when a rank dies."""

from __future__ import annotations

import ctypes
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from gradvac.engine.ranks.heartbeats import Signs
from gradvac.errors import RankError

Found = TypeVar("Found")

LATENCY = 2**16
"""Numbers that a rank sends to another one during one latency.

Chosen here: 256 KiB, as 10 microseconds at 25 GB/s.
"""

MODERATE = 2**21
"""Numbers of a bucket whose memory does not matter: 8 MiB for each task, chosen here.

PyTorch's data parallel training uses 25 MiB.
"""

_ROOM = 1024  # initial bytes of a message; a longer one takes two rounds, and raises the size


class Ranks:
    """The collectives of a process group; all ranks must call all of them in the same order.

    Args:
        group: the process group.
        bucket: least numbers of a gradient that are sent together; by default chosen from the size
            of the model and the number of ranks, see :func:`bucket_of`.
        budget: most bytes of the gradients of all tasks that are sent in one round.

    Attributes:
        rank: number of this rank in the group, from 0.
        size: number of ranks R.
        sent: bytes sent by this rank, by kind, for the algorithms that send the least: (R - 1) / R
            of an exchange or a gather, twice that for a sum.
        attachment: data to send with the next message.
        attachments: the data that ranks sent with each such message, in the order of the ranks.
        broken: why nothing more can be exchanged; empty without a failure.
        same: whether all ranks were checked to run the same.
        known: the last failure of this rank that the others know.
    """

    def __init__(
        self, group: dist.ProcessGroup, bucket: int | None = None, budget: int = 2**31
    ) -> None:
        self.group, self.budget = group, budget
        self.bucket: int | Callable[[int], int] = bucket or self.bucket_of
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RankError("this process is not a member of the process group given to the engine")
        self._control = _control(group)
        self._room = _ROOM
        self.attachment: dict[str, Any] | None = None
        self.attachments: list[list[dict[str, Any]]] = []
        self.sent = {"exchange": 0, "gather": 0, "sum": 0, "messages": 0}
        self.broken = ""
        self.same = False
        self.known: BaseException | None = None
        self.signs = Signs(dist.get_process_group_ranks(group), self.rank)
        on_gpu = "nccl" in dist.get_backend(group)
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None

    @classmethod
    def of(cls, group: dist.ProcessGroup | Ranks | None, alone: bool = False) -> Ranks | None:
        """Return the ranks of a group, of the default group for None.

        None if there is only one rank, unless ``alone``.
        """
        if isinstance(group, Ranks):
            return group
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        if group is None or (dist.get_world_size(group) == 1 and not alone):
            return None
        return cls(group)

    # -- collectives ----------------------------------------------------------------------------

    def exchange(self, slices: Tensor, counts: Sequence[int], columns: int) -> tuple[Tensor, Wait]:
        """Send ``slices[r]`` to rank r; start receiving ``[sum(counts), columns]``.

        Args:
            slices: ``[R, own tasks, columns]``, not to be changed until the wait is over.
            counts: how many tasks each rank sends.
            columns: how many numbers it sends for each.
        """
        received = slices.new_empty(sum(counts), columns)
        sizes = [count * columns for count in counts]
        own = [slices.shape[1] * columns] * self.size
        self._count("exchange", slices, (self.size - 1) / self.size)
        with self.watched():
            work = dist.all_to_all_single(
                received.view(-1), slices.view(-1), sizes, own, self.group, async_op=True
            )
        return received, Wait(self, work, slices)

    def gather(self, piece: Tensor) -> tuple[Tensor, Wait]:
        """Start receiving the pieces ``[c]`` of all ranks, ``[R * c]``."""
        whole = piece.new_empty(self.size * len(piece))
        self._count("gather", piece, self.size - 1)
        with self.watched():
            work = _all_gather(whole, piece, group=self.group, async_op=True)
        return whole, Wait(self, work, piece)

    def sum(self, values: Tensor) -> Wait:
        """Start the sum of ``values`` over the ranks, in place; bitwise the same on all ranks."""
        self._count("sum", values, 2 * (self.size - 1) / self.size)
        with self.watched():
            work = dist.all_reduce(values, group=self.group, async_op=True)
        return Wait(self, work, values)

    def messages(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """Exchange JSON messages; returns those of all ranks, in the order of the ranks.

        They are sent between hosts, on whatever device the gradients are.
        """
        attachment, self.attachment = self.attachment, None
        data = json.dumps([message, attachment]).encode()
        turn = self._bytes((len(data).to_bytes(8, "little") + data)[: self._room])
        lengths = [int.from_bytes(each[:8], "little") for each in turn]
        found = [each[8 : 8 + n] for each, n in zip(turn, lengths, strict=True)]
        if max(lengths) > self._room - 8:
            self._room = max(lengths) + 8
            found = [each[:n] for each, n in zip(self._bytes(data), lengths, strict=True)]
        said = [json.loads(each) for each in found]
        if all(each[1] is not None for each in said):
            self.attachments.append([each[1] for each in said])
        return [each[0] for each in said]

    def _bytes(self, data: bytes) -> list[bytes]:
        own = torch.frombuffer(bytearray(data.ljust(self._room, b"\0")), dtype=torch.uint8)
        whole = own.new_empty(self.size * self._room)
        self.sent["messages"] += (self.size - 1) * self._room
        with self.watched():
            _all_gather(whole, own, group=self._control)
        found = ctypes.string_at(whole.data_ptr(), len(whole))
        return [found[r * self._room : (r + 1) * self._room] for r in range(self.size)]

    def bucket_of(self, parameters: int) -> int:
        """Return how many numbers a bucket has for a model of that many parameters."""
        return bucket_of(parameters, self.size)

    def _count(self, kind: str, values: Tensor, times: float) -> None:
        self.sent[kind] += round(values.numel() * values.element_size() * times)

    # -- what goes wrong ------------------------------------------------------------------------

    def check(self) -> None:
        """Raise RankError if nothing more can be exchanged."""
        if self.broken:
            raise RankError(
                f"rank {self.rank} can exchange nothing more with the others: {self.broken}; "
                "start all ranks again from the last checkpoint"
            )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the failure of a collective into an error that names the ranks that have died."""
        self.check()
        try:
            yield
        except RuntimeError as e:  # what gloo and NCCL raise for a closed connection or a timeout
            raise self.lost(e) from e

    def lost(self, error: BaseException) -> RankError:
        """Return an error that names the rank that caused the failure of a collective.

        The message of the back end goes to the log of ``gradvac``.
        """
        logging.getLogger("gradvac").info("rank %d: a collective failed: %s", self.rank, error)
        self.broken = self.signs.missing() or (
            "a rank did not answer in time, though all ranks are there: "
            + (str(error).splitlines() or [type(error).__name__])[0]
        )
        return RankError(
            f"{self.broken} (seen by rank {self.rank}); start all ranks again from the last "
            "checkpoint"
        )

    def leave(self, reason: str) -> None:
        """Write to the store why this rank gives up; the others read it once it has died."""
        self.broken = reason
        self.signs.leave(reason)

    def first(self, act: Callable[[], Found]) -> Found | None:
        """Run ``act`` on rank 0 while the others wait, without a time limit; None on the others.

        Raises:
            RankError: on the others, if rank 0 fails or has died.
        """
        self.check()
        found = None
        if self.rank == 0:
            try:
                found = act()
            except BaseException as e:
                self.leave(f"{type(e).__name__}: {e}")
                raise
        self._met(self.signs.meet(only_first=True))
        return found

    def meet(self) -> None:
        """Wait for all ranks, without a time limit.

        Raises:
            RankError: if one of them fails or has died.
        """
        self.check()
        self._met(self.signs.meet())

    def _met(self, reason: str) -> None:
        if reason:
            self.broken = reason
            raise RankError(f"{reason} (seen by rank {self.rank})")


class Wait:
    """A running collective; a call waits until it is over."""

    def __init__(self, ranks: Ranks, work: Any, alive: Tensor) -> None:
        self._ranks, self._work, self._alive = ranks, work, alive

    def __call__(self) -> None:
        """Wait, and release what was sent.

        Raises:
            RankError: if the collective failed; it names the ranks that have died.
        """
        if self._work is None:
            return
        work, self._work = self._work, None
        with self._ranks.watched():
            work.wait()
        self._alive = torch.empty(0)


def on_host(found: Sequence[tuple[Wait | None, Tensor]]) -> list[Tensor]:
    """Wait once for several collectives; return their results on the host.

    Later work on the GPU is not waited for.
    """
    device = found[0][1].device
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    with torch.cuda.stream(stream):  # None: nothing is changed
        for wait, _ in found:
            if wait is not None:
                wait()
        if device.type == "cpu":
            return [values for _, values in found]
        whole = torch.cat([values.reshape(-1) for _, values in found]).cpu()
    pieces = whole.split([values.numel() for _, values in found])
    return [p.view(values.shape) for p, (_, values) in zip(pieces, found, strict=True)]


def bucket_of(parameters: int, ranks: int) -> int:
    """Return how many numbers a bucket has for P parameters on R ranks.

    Buckets of B numbers cost P / B latencies of R messages each, and the last bucket overlaps with
    nothing: the sum is least at B = sqrt(P times the numbers sent in R latencies). To save memory,
    at most a sixteenth of a large model.
    """
    return min(round(math.sqrt(parameters * ranks * LATENCY)), max(MODERATE, parameters // 16))


_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)

_CONTROL: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


def _control(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Return the group for messages between hosts: itself, or a gloo group of the same ranks.

    Collectives of NCCL neither take host tensors nor raise when a rank dies; its watchdog ends the
    process some time later, without naming that rank.
    """
    if "cpu:" in dist.get_backend_config(group):
        return group
    if group not in _CONTROL:
        members = dist.get_process_group_ranks(group)
        made = dist.new_group(members, backend="gloo", use_local_synchronization=True)
        assert isinstance(made, dist.ProcessGroup)
        _CONTROL[group] = made
    return _CONTROL[group]
