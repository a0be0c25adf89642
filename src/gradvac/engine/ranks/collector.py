"""Training on several ranks: exact gradients of every task, whatever rank its samples are on.

Usage: initialise ``torch.distributed``, build the same model on every rank, and train as on one::

    torch.distributed.init_process_group()
    engine = Engine(model, GradVac(beta=1e-2))
    tokens = ...                                   # of the step, on all ranks together
    optimizer.zero_grad()
    with engine.tasks(task_of_each_sample):        # of this rank's part of the batch
        losses = loss_of_each_token(model(part))
        engine.backward(losses / tokens, rows)     # p.grad is bitwise the same on all ranks
    optimizer.step()

The gradients of a task are added up over the ranks, before anything is measured. So losses have to
be divided by what the joint loss of the *global* batch would be divided by, not by what is on the
rank: a token then counts the same wherever it is. Shares given to ``backward`` are added up too. A
task may be on one rank, on several or on all. Every rank makes every step: one without samples
calls ``engine.combine()`` instead of ``engine.backward``.

How the gradients travel is told in :mod:`gradvac.engine.ranks.exchange`. A wrapper for data
parallelism is neither needed nor allowed. A model sharded by ``fully_shard`` is trained in the same
way, but for what follows from gathering parameters together: :mod:`gradvac.engine.ranks.shards` and
:mod:`gradvac.engine.ranks.passes`. What is not finite on one rank makes all ranks skip the step or
raise, alike. At the first step ranks check that they run the same code on the same parameters; a
rank that fails tells the others why, and one that is gone is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from gradvac.engine.collector import Collector
from gradvac.engine.groups import ParameterGroup
from gradvac.engine.ranks.buckets import Source, buckets_of
from gradvac.engine.ranks.exchange import Exchange
from gradvac.engine.ranks.group import Ranks, Wait, bucket_of, on_host
from gradvac.engine.ranks.shards import Shards
from gradvac.engine.step import Step
from gradvac.errors import GradientError
from gradvac.methods import Method


class RankCollector(Collector):
    """Collects task gradients and sends them on as soon as the backward pass has left a bucket.

    Groups of any size are held in shards: this rank keeps one part in R of the gradients of all
    tasks until their group can be decided.

    Args:
        ranks: who trains.
        groups: parameters that get the same weights.
        passes: must be 1.
        shards: the whole parameters of those that are sharded.

    Raises:
        GradientError: if ``passes`` is 2 or the budget of the ranks is not positive.
    """

    def __init__(
        self,
        ranks: Ranks,
        groups: Sequence[ParameterGroup],
        passes: int,
        shards: Shards | None = None,
    ) -> None:
        if passes != 1:
            raise GradientError(
                f"passes={passes} with {ranks.size} ranks: the gradients of the whole model are "
                f"held in {ranks.size} parts, one on each rank; make the engine with passes=1"
            )
        if ranks.budget <= 0:
            raise GradientError(f"budget is {ranks.budget}; it must be a positive number of bytes")
        self.ranks, self.groups, self.passes = ranks, groups, passes
        self.buckets = buckets_of(groups, ranks.bucket)
        self._collect([piece for bucket in self.buckets for piece in bucket.pieces], ranks.budget)
        self._name_slots(shards)
        stores = iter(self.stores)
        self._stores_of = [[next(stores) for _ in b.pieces] for b in self.buckets]
        self._exchange: Exchange | None = None

    def stream(self, streams: bool) -> None:
        """Keep no rows looked up apart: other ranks look up other rows."""
        super().stream(False)

    def may_stream(self, method: Method) -> bool:
        """Whether gradients can travel before the backward pass has ended: always."""
        return True

    def begin(self, step: Step, method: Method) -> None:
        """Begin to send gradients."""
        self._exchange = Exchange(self.ranks, self.groups, self.buckets, method, step)

    def release(self, step: Step, method: Method) -> None:
        """Send the buckets that are complete, in their order."""
        exchange = self._exchange
        if exchange is None or not step.streams:
            return
        while exchange.launched < len(self.buckets):
            if any(store.expected for store in self._stores_of[exchange.launched]):
                return
            self._launch(exchange, len(step.names))

    def _launch(self, exchange: Exchange, n_tasks: int) -> None:
        stores = self._stores_of[exchange.launched]
        sources = [Source(*found) for store in stores for found in store.columns(n_tasks)]
        used = [not slot.fresh for slot in chain(*(store.slots for store in stores))]
        exchange.launch(sources, used)
        for store in stores:
            store.close()

    def finish(self, step: Step, method: Method) -> None:
        """Send what is left, and wait for the combined gradients."""
        exchange = self._exchange
        assert exchange is not None
        while exchange.launched < len(self.buckets):
            self._launch(exchange, len(step.names))
        step.gradients |= exchange.finish()

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.step.failed_alike:
            exchange.drain()
        super().clear()


class Reduction:
    """Adds ``p.grad`` up over the ranks: plain training, without a method or a wrapper.

    Begins while the backward pass goes on, with the parameters that it comes to first, which are
    taken to be the last ones. A rank without samples has nothing to wait for. A parameter that no
    rank used keeps ``p.grad = None``. Bitwise the same on all ranks.

    Args:
        ranks: all of them make the same steps.
        parameters: those of the model, in the same order on all ranks.
    """

    def __init__(self, ranks: Ranks, parameters: Sequence[nn.Parameter]) -> None:
        self.ranks = ranks
        self.parameters = [p for p in parameters if p.requires_grad]
        given = ranks.bucket
        size = given if isinstance(given, int) else given(_numel(self.parameters))
        self.buckets: list[list[nn.Parameter]] = [[]]
        for p in reversed(self.parameters):
            last = self.buckets[-1]
            alike = not last or (last[0].dtype, last[0].device) == (p.dtype, p.device)
            if _numel(last) >= size or not alike:
                self.buckets.append([])
            self.buckets[-1].append(p)
        self._waits: list[tuple[Tensor, Wait]] = []
        self._missing: list[set[int]] = []

    @contextmanager
    def during(self) -> Iterator[None]:
        """Send what is complete while the last backward pass of the step, inside, goes on."""
        self._missing = [{id(p) for p in bucket} for bucket in self.buckets]
        hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self.parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _arrived(self, p: Tensor) -> None:
        for missing in self._missing:
            missing.discard(id(p))
        while len(self._waits) < len(self.buckets) and not self._missing[len(self._waits)]:
            self._launch()

    def _launch(self) -> None:
        bucket = self.buckets[len(self._waits)]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        self._waits.append((flat, self.ranks.sum(flat)))

    def finish(self) -> None:
        """Send the rest, and put the sums into ``p.grad``."""
        while len(self._waits) < len(self.buckets):
            self._launch()
        waits, self._waits = self._waits, []
        used = torch.tensor([float(p.grad is not None) for p in self.parameters])
        used = self.ranks.on_device(used, self.parameters[0].device)
        found = on_host([(self.ranks.sum(used), used)])[0].tolist()
        anywhere = {id(p) for p, n in zip(self.parameters, found, strict=True) if n}
        for bucket, (flat, wait) in zip(self.buckets, waits, strict=True):
            wait()
            pieces = flat.split([p.numel() for p in bucket])
            for p, piece in zip(bucket, pieces, strict=True):
                p.grad = piece.view(p.shape) if id(p) in anywhere else None


def _numel(parameters: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


PLAIN_BUCKET = 25 * 2**20 // 4
"""Numbers that PyTorch's data parallel training sends at once by default."""


@dataclass(frozen=True)
class Cost:
    """What one rank sends and holds in a step, in bytes.

    Attributes:
        exchanged: slices of its tasks' gradients, to the ranks that add them up.
        gathered: its slice of the combined gradient, to all the others; of a sharded model, its
            rows of the parameters, before the forward and the backward pass.
        small: Gram matrices and what the ranks tell each other before a step, about.
        plain: what plain data parallel training sends, for comparison.
        held: the slices of the gradients of all tasks that it keeps until they can be combined,
            and the gradients of its own tasks that are under way.
        messages: how many it sends, one after the other, a collective being a round of R - 1, and
            of 2 (R - 1) where numbers are summed.
        plain_messages: how many plain data parallel training sends.
        waits: how often the host waits for the device, to decide groups; at most.
    """

    exchanged: float
    gathered: float
    small: float
    plain: float
    held: float
    messages: int
    plain_messages: int
    waits: int

    @property
    def sent(self) -> float:
        """All of what is sent."""
        return self.exchanged + self.gathered + self.small


def cost(
    parameters: int,
    ranks: int,
    tasks: int,
    tasks_per_rank: float,
    groups: int,
    largest_group: int | None = None,
    itemsize: int = 4,
    sharded: bool = False,
    bucket: int | None = None,
) -> Cost:
    """Return what one rank sends in a step and holds for it.

    A rank with k of the K tasks sends (k + 1) P (R - 1) / R numbers, P being the parameters and R
    the ranks: the gradients of its tasks, and its slice of the combined one to everybody. Where
    each rank has one task that is 2 P, as in plain training; where all have all, (K + 1) P. Of a
    sharded model the combined gradient stays where it is, and parameters travel twice: (k + 2) P,
    3 P in plain training.

    Args:
        parameters: P.
        ranks: R.
        tasks: K, on all ranks together.
        tasks_per_rank: k, a mean.
        groups: parameter groups.
        largest_group: parameters of the largest; that of one of equal size by default.
        itemsize: bytes of a number; gradients of tasks are float32 at least.
        sharded: whether parameters are, by ``fully_shard``; they are taken to travel as wide.
        bucket: numbers of a bucket; by default those the engine chooses.
    """
    slice_ = parameters * (ranks - 1) / ranks * itemsize
    largest = largest_group or parameters / groups
    small = 2 * (ranks - 1) / ranks * groups * tasks * (tasks + 1) * 8 + (ranks - 1) * 1024
    size = min(bucket or bucket_of(parameters, ranks), parameters)
    held = (tasks * largest / ranks + tasks_per_rank * (largest + 2 * size)) * itemsize
    gathered = 2 * slice_ if sharded else slice_
    buckets, plain = math.ceil(parameters / size), math.ceil(parameters / PLAIN_BUCKET)
    # Exchanged, summed and gathered, or the parameters gathered twice; one message of the hosts.
    messages = (buckets * (5 if sharded else 4) + 1) * (ranks - 1)
    return Cost(
        exchanged=tasks_per_rank * slice_,
        gathered=gathered,
        small=small,
        plain=gathered + slice_,
        held=held,
        messages=messages,
        plain_messages=plain * (3 if sharded else 2) * (ranks - 1),
        waits=min(groups, buckets),
    )
