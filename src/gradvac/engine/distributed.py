"""Training on several ranks: exact gradients of every task, whatever rank its samples are on.

Usage: initialise ``torch.distributed``, build the same model on every rank, and train as on one::

    torch.distributed.init_process_group()
    engine = Engine(model, GradVac(beta=1e-2))
    tokens = ...                                   # of the step, on all ranks together
    with engine.tasks(task_of_each_sample):        # of this rank's part of the batch
        losses = loss_of_each_token(model(part))
        engine.backward(losses / tokens, rows)     # p.grad is bitwise the same on all ranks
    optimizer.step()

The gradients of a task are added up over the ranks, before anything is measured. So losses have to
be divided by what the joint loss of the *global* batch would be divided by, not by what is on the
rank: a token then counts the same wherever it is. Shares given to ``backward`` are added up too. A
task may be on one rank, on several or on all. Every rank makes every step: one without samples
calls ``engine.combine()`` instead of ``engine.backward``.

How the gradients travel is told in :mod:`gradvac.engine.exchange`. A wrapper for data parallelism
is neither needed nor allowed. What is not finite on one rank makes all ranks skip the step or
raise, alike. At the first step ranks check that they run the same code on the same parameters; a
rank that fails tells the others why, and one that is gone is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from gradvac.engine.buckets import Source, buckets_of
from gradvac.engine.collect import Collector
from gradvac.engine.exchange import Exchange
from gradvac.engine.groups import ParameterGroup
from gradvac.engine.ranks import Ranks
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

    Raises:
        GradientError: if ``passes`` is 2 or the budget of the ranks is not positive.
    """

    def __init__(self, ranks: Ranks, groups: Sequence[ParameterGroup], passes: int) -> None:
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
