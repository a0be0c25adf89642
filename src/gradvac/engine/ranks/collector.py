"""Training on several ranks: exact gradients of every task, on whichever ranks its samples are.

Usage: initialise ``torch.distributed``, build the same model on every rank, and train as on one::

    torch.distributed.init_process_group()
    engine = Engine(model, GradVac(beta=1e-2))
    tokens = ...                                   # of the step, over all ranks
    optimizer.zero_grad()
    with engine.tasks(task_of_each_sample):        # of this rank's part of the batch
        losses = loss_of_each_token(model(part))
        engine.backward(losses / tokens, rows)     # p.grad is bitwise the same on all ranks
    optimizer.step()

The gradients of a task are summed over the ranks before anything is measured. So divide losses by
the divisor of the joint loss of the *global* batch, not of the rank's part: a token then has the
same weight on every rank. Shares given to ``backward`` are summed too. A task may be on one rank,
on several or on all. Every rank takes part in every step: one without samples calls
``engine.combine()`` instead of ``engine.backward``.

:mod:`gradvac.engine.ranks.exchange` describes how gradients are exchanged. A wrapper for data
parallelism is neither needed nor allowed. A model sharded by ``fully_shard`` is trained in the same
way; for the gathering of parameters see :mod:`gradvac.engine.ranks.shards` and
:mod:`gradvac.engine.ranks.passes`. If a value is not finite on one rank, all ranks skip the step or
raise. At the first step ranks check that they run the same code on the same parameters. A rank that
fails tells the others why, and errors name a rank that has died.
"""

from __future__ import annotations

from itertools import chain

from gradvac.engine.collector import Collector
from gradvac.engine.ranks.buckets import GradientColumns, buckets_of
from gradvac.engine.ranks.exchange import Exchange
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.setup import Setup
from gradvac.engine.step import Step
from gradvac.errors import GradientError


class RankCollector(Collector):
    """Sends task gradients as soon as the backward pass has finished a bucket.

    Groups are held in shards: this rank keeps 1/R of the gradients of all tasks until the weights
    of their group are known.

    Args:
        setup: the parameters, and the method that gives the weights.
        ranks: the ranks that train.

    Raises:
        GradientError: if there are two passes, or another dtype than float32 is asked for.
    """

    def __init__(self, setup: Setup, ranks: Ranks) -> None:
        if setup.options.passes != 1:
            raise GradientError(
                f"passes={setup.options.passes} with {ranks.size} ranks: the gradients of the "
                f"whole model are held in {ranks.size} parts, one on each rank; make the engine "
                "with passes=1"
            )
        if setup.options.storage is not None:
            raise GradientError(
                f"storage={setup.options.storage} with {ranks.size} ranks: the gradients that "
                "they exchange are held in float32; leave it out"
            )
        ranks.budget = setup.options.budget
        self.ranks = ranks
        self.buckets = buckets_of(setup.groups, ranks.bucket)
        pieces = [piece for bucket in self.buckets for piece in bucket.pieces]
        super().__init__(setup, pieces, ranks.budget)
        stores = iter(self.stores)
        self._stores_of = [[next(stores) for _ in b.pieces] for b in self.buckets]
        self._exchange: Exchange | None = None

    def stream(self, streams: bool) -> None:
        """Do not store looked-up rows separately: other ranks look up other rows."""
        super().stream(False)

    def may_stream(self) -> bool:
        """Whether gradients can be sent before the backward pass has ended: always."""
        return True

    def begin(self, step: Step) -> None:
        """Begin to send gradients."""
        setup = self.setup
        self._exchange = Exchange(self.ranks, setup, self.buckets, step)

    def release(self, step: Step) -> None:
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
        sources = [GradientColumns(*found) for store in stores for found in store.columns(n_tasks)]
        used = [not slot.fresh for slot in chain(*(store.slots for store in stores))]
        exchange.launch(sources, used)
        for store in stores:
            store.close()

    def finish(self, step: Step) -> None:
        """Send the rest, and wait for the combined gradients."""
        exchange = self._exchange
        assert exchange is not None
        while exchange.launched < len(self.buckets):
            self._launch(exchange, len(step.names))
        step.gradients |= exchange.finish()

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.step.failed_everywhere:
            exchange.drain()
        super().clear()
