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

from itertools import chain

from gradvac.engine.collector import Collector
from gradvac.engine.ranks.buckets import GradientColumns, buckets_of
from gradvac.engine.ranks.exchange import Exchange
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.setup import Setup
from gradvac.engine.step import Step
from gradvac.errors import GradientError


class RankCollector(Collector):
    """Sends task gradients on as soon as the backward pass has left a bucket.

    Groups of any size are held in shards: this rank keeps one part in R of the gradients of all
    tasks until their group can be decided.

    Args:
        setup: the parameters, and the method that decides.
        ranks: who trains.

    Raises:
        GradientError: if there are two passes.
    """

    def __init__(self, setup: Setup, ranks: Ranks) -> None:
        if setup.options.passes != 1:
            raise GradientError(
                f"passes={setup.options.passes} with {ranks.size} ranks: the gradients of the "
                f"whole model are held in {ranks.size} parts, one on each rank; make the engine "
                "with passes=1"
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
        """Keep no rows looked up apart: other ranks look up other rows."""
        super().stream(False)

    def may_stream(self) -> bool:
        """Whether gradients can travel before the backward pass has ended: always."""
        return True

    def begin(self, step: Step) -> None:
        """Begin to send gradients."""
        setup = self.setup
        self._exchange = Exchange(self.ranks, setup.groups, self.buckets, setup.method, step)

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
        """Send what is left, and wait for the combined gradients."""
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
