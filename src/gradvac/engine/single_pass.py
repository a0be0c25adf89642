"""Exact per-task gradients of a mixed batch from one forward and one backward pass.

Usage, in place of ``loss.backward()``::

    engine = SinglePassEngine(model, GradVac(), granularity="all_layer")
    optimizer.zero_grad()
    with engine.tasks(task_of_each_sample):          # one name per sample, in any order
        losses = loss_of_each_token(model(batch))    # an ordinary forward pass, nothing averaged
        report = engine.backward(losses / tokens, rows)      # adds to p.grad
    optimizer.step()

The samples of different tasks are independent, so the gradient of a parameter splits by the rows
of the batch. The engine follows the samples through the forward pass, and where a parameter meets
them its gradient is formed once for each task from that task's rows. The K gradients of a
parameter group are combined and freed as soon as the backward has passed the group.

Whatever mixes samples is refused by name. On top of that everything that a forward pass does for
the first time is checked against autograd, see :mod:`gradvac.engine.check`, which makes the split
exact whatever the model did.

For results comparable with plain training, divide the losses by what the joint loss would be
divided by; they are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from gradvac.engine.base import End, TaskEngine
from gradvac.engine.check import (
    CHECKS,
    Rehearsal,
    apart,
    different,
    edges,
    last_meetings,
    same,
    task_weights,
)
from gradvac.engine.collector import BUDGET, Collector
from gradvac.engine.gradients.stores import ParameterSlot
from gradvac.engine.groups import Grouping, Heads
from gradvac.engine.hidden import refuse_hidden, without_hooks
from gradvac.engine.nonfinite import NonFinite
from gradvac.engine.ranks.collector import RankCollector
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.passes import NO_SAMPLES, Passes, agree_on_passes
from gradvac.engine.ranks.shards import Shards
from gradvac.engine.report import StepReport
from gradvac.engine.samples.calls import as_written, explained, inner, leaves, tensors_within
from gradvac.engine.samples.rows import RowMap
from gradvac.engine.step import Batch
from gradvac.engine.task_names import TaskOfSample, names_and_index
from gradvac.engine.tracing.known import Refusal, because
from gradvac.engine.tracing.meetings import Flow, Watch, meeting_of
from gradvac.engine.tracing.trace import Trace
from gradvac.errors import GradientError
from gradvac.methods import Method

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_UNDER_WAY: list[SinglePassEngine] = []
"""The engine whose block the program is in."""


class SinglePassEngine(TaskEngine):
    """Splits one backward pass by tasks and combines the gradients by a method.

    Holds K x P_g numbers for K tasks and the parameters P_g of the groups that the backward is
    passing, in float32 (float64 for float64 parameters).

    Args:
        model: the model; it is not changed.
        method: turns the geometry of a step into weights.
        granularity: how parameters are grouped; see :mod:`gradvac.engine.groups`.
        verify_steps: how many steps with several tasks to check by two more backward passes.
            A step that does something new is checked too, unless this is 0.
        heads: modules or parameters of one task alone, by task; see
            :func:`gradvac.engine.groups.task_heads`. They get their plain gradient.
        nonfinite: "raise" an error if a loss or gradient is not finite, or "skip" the step:
            ``p.grad`` is then None, so that optimizers do nothing, and the report says why.
        task_names: the tasks there are: a task of another name is then an error, not a new task.
        passes: 2 to run a second backward pass, of the losses times their weights, in place of
            holding K gradients of the whole model; for granularity "whole_model".
        budget: bytes; the K gradients of a parameter that would take more are formed in chunks of
            rows, once to measure and once to combine them.
        process_group: the ranks to train with; by default all of ``torch.distributed``, if that is
            initialised.

    Raises:
        GradientError: if the model is wrapped for data parallelism or has nothing to train, or if
            ``passes`` does not suit the granularity.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        granularity: Grouping = "all_layer",
        verify_steps: int = 1,
        heads: Heads | None = None,
        nonfinite: NonFinite = "raise",
        task_names: Collection[str] | None = None,
        passes: int = 1,
        budget: int = BUDGET,
        process_group: ProcessGroup | Ranks | None = None,
    ) -> None:
        super().__init__(model, method, granularity, nonfinite, heads, task_names, process_group)
        self.model: nn.Module = model
        if self._ranks is None:
            self._collector = Collector(model, self.groups, self._heads.heads, passes, budget)
        else:
            self._ranks.budget = budget
            self._collector = RankCollector(self._ranks, self.groups, passes, self._shards)
        self._slots = self._collector.slots
        self._checks_left = verify_steps  # from this process's first step, resumed or not
        self._proved: set[Any] | None = set() if verify_steps > 0 else None
        self._batch: Batch | None = None
        self._splits = True  # until something mixes samples and there is another way
        self._give_up: Callable[[Refusal], None] | None = None

    @contextmanager
    def tasks(
        self,
        tasks: TaskOfSample,
        batch_dim: int = 0,
        inputs: Sequence[Tensor] | None = None,
    ) -> Iterator[Self]:
        """Follow the samples of a batch through the forward pass inside.

        Where samples of several tasks meet, or cannot be followed, an :class:`gradvac.Engine` goes
        on with the forward pass as it is written and runs one backward pass per task; its
        ``refused`` says why. With ``engine="single_pass"`` it raises an error.

        Args:
            tasks: the task of each of the B samples: B names, in anything that can be gone through,
                integers meaning their digits; or ``(positions, names)``, B integers and what they
                stand for.
            batch_dim: the dimension of the inputs that holds the samples.
            inputs: the tensors the samples come in. By default the tensors given to the model
                whose size along ``batch_dim`` is B.

        Raises:
            GradientError: if a sample has no task or an unknown one, if this is inside another such
                block, if the parameters are not those the engine was made for, or if the samples
                cannot be followed and there is no other way.
        """
        if _UNDER_WAY:
            raise GradientError(
                "`with engine.tasks(...)` inside another one: "
                + ("the same engine's" if self in _UNDER_WAY else "another engine's")
                + "; a forward pass belongs to one engine, end the outer block first"
            )
        names, index = names_and_index(tasks)
        self._guard.check_tasks(names)
        self._guard.check_parameters()
        if self._collector.device.type == "meta":
            raise GradientError(
                "the model is on the meta device, where tensors hold no numbers; move it to a "
                "device before the first step"
            )
        if self._shards is not None and self._ranks is not None:
            self._ranks.check()  # a forward pass gathers
        positions = torch.tensor([self._step.position(name) for name in names], dtype=torch.int64)
        rows = RowMap(positions[index], len(self._step.names))
        watch = Watch(lambda: self._collector.release(self._step, self.method))
        device = self._collector.device
        remember = self._checks_left > 0
        heads = frozenset(id(p) for p in self._heads.leaves)
        splits, give_up = self._splits, self._give_up
        trace = Trace(
            self._slots, self.model, device, remember, watch, heads, splits, give_up, self._proved
        )
        only = self._step.position(names[0]) if len(names) == 1 else None
        batch = self._batch = Batch(trace, rows, only, batch_dim)
        # Ranks that gather parameters together follow one task too, to do what the others do.
        follows = only is None or self._shards is not None
        for x in inputs or ():
            batch.declare(x, batch_dim)

        def declare(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for x in tensors_within((args, kwargs)):
                if x.ndim > batch_dim and x.shape[batch_dim] == len(rows):
                    batch.declare(x, batch_dim)
                batch.seen.append(list(x.shape))

        hook = None
        if inputs is None and follows:
            hook = self.model.register_forward_pre_hook(declare, prepend=True, with_kwargs=True)
        _UNDER_WAY.append(self)
        self._guard.begin()
        try:
            if follows:
                carrying = self._shards.carrying(trace) if self._shards else nullcontext()
                with trace, as_written(self.model), carrying:
                    yield self
            else:
                yield self
        except BaseException as e:
            try:
                self._tell(e)
            finally:
                self.clear()
            raise
        finally:
            _UNDER_WAY.clear()
            if hook is not None:
                hook.remove()

    def backward(
        self,
        loss: Tensor,
        rows: Tensor | None = None,
        mask: Tensor | None = None,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> StepReport:
        """Run the backward pass, add the combined gradients to ``p.grad``, begin the next step.

        Args:
            loss: losses of samples, tokens or the like, ``[B, ...]`` or, with ``rows``, ``[N]``.
            rows: the sample that each loss belongs to, ``[N]``.
            mask: weights of the losses, such as 0 for padding; of the shape of ``loss``.
            loss_scale: factor the losses were multiplied by, divided out before the Gram; or the
                GradScaler that did, for which it is put back into ``p.grad``.
            step: number of this step; by default one more than the last.
            shares: by task, what its mean loss was multiplied by (its share of the step's
                tokens), for methods that read losses.

        Raises:
            GradientError: if the gradients cannot be split or are not finite (NotFiniteError).
                ``p.grad``, the method and the step counter are then unchanged and the gradients are
                dropped.
        """
        streams = self._collector.may_stream(self.method) and not self._step.accumulated
        with self._ending(loss_scale, step, shares) as end:
            self._step.streams = streams
            pending = self._backward(loss, rows, mask, ends=True)
            self._finish(end)
            self._check_woken(*pending)
        return end.report

    def accumulate(
        self, loss: Tensor, rows: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Run the backward pass of a micro-batch; its gradients wait for :meth:`combine`.

        Between the micro-batches of a step the K gradients of all parameters are held.
        """
        self._step.streams = False
        try:
            if self._collector.passes == 2:
                raise GradientError(
                    "passes=2 holds no gradients from one micro-batch to the next; make the engine "
                    "with passes=1 to accumulate"
                )
            pending = self._backward(loss, rows, mask, ends=False)
            for slot in self._slots.values():
                slot.stir()
            self._check_woken(*pending)
        except BaseException as e:
            self._tell(e)
            self.clear()
            raise
        self._step.accumulated = True

    def combine(
        self,
        loss_scale: float | torch.amp.GradScaler = 1.0,
        step: int | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> StepReport:
        """Combine the accumulated gradients, add them to ``p.grad`` and begin the next step.

        A rank without samples of its own calls this, where others run a backward pass.

        Raises:
            GradientError: as :meth:`backward`, and if nothing was accumulated, on any rank.
        """
        if not self._step.accumulated and self._ranks is None:
            raise GradientError("combine() needs at least one accumulate() since the last step")
        if not self._step.accumulated and self._shards is not None:
            raise GradientError(NO_SAMPLES)
        with self._ending(loss_scale, step, shares) as end:
            self._agree()
            self._collector.begin(self._step, self.method)
            self._finish(end)
        return end.report

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        super().clear()
        self._collector.clear()
        self._guard.pending = False
        self._batch = None

    # -- the backward pass ----------------------------------------------------------------------

    def _backward(
        self, loss: Tensor, rows: Tensor | None, mask: Tensor | None, ends: bool
    ) -> tuple[Batch, Tensor, RowMap]:
        batch = self._batch
        if batch is None:
            raise GradientError(
                "backward() needs a forward pass inside `with engine.tasks(...)`: there has been "
                "none since the last one was used"
            )
        self._guard.pending = False
        self._collector.stream(self._step.streams)
        with torch._C.DisableTorchFunction():
            loss, owners = batch.owners(loss, rows, mask)
            total = torch.zeros(owners.n_tasks, dtype=torch.float64, device=loss.device)
            place, value = owners.index.to(loss.device), loss.detach().double()
            total.index_add_(0, place, value)
            counted = torch.zeros_like(total).index_add_(0, place, (value != 0).double())
            self._step.add_losses(total, counted > 0)
        if self._guard.fresh:
            self._guard.check_leaves(leaves(loss))
        self._refuse_hidden_functions(batch, loss)
        if self._shards is not None:
            self._backward_alike(self._shards, loss, owners, ends)
            self._batch = None
            return batch, loss, owners
        if self._due(batch):
            self._check(loss, owners)
        if ends:
            self._agree()
            self._collector.begin(self._step, self.method)
        if batch.only is not None:
            self._add(self._run(loss, None, self._leaves, Flow.PLAIN), batch.only, owners.n_tasks)
        elif not batch.trace.splits:
            self._one_by_one(loss, owners)
        elif self._collector.passes == 2:
            self._in_two_passes(loss, owners)
        else:
            self._split(loss, retain_graph=self._may_wake)
            batch.carry_on(owners.n_tasks)
        self._batch = None
        return batch, loss, owners

    @property
    def _may_wake(self) -> bool:
        """Whether a gradient may turn out not to be zero, so that the graph is needed once more."""
        return any(slot.asleep for slot in self._slots.values())

    def _check_woken(self, batch: Batch, loss: Tensor, owners: RowMap) -> None:
        """Check again where gradients that were zero in the check no longer are.

        Raises:
            Refusal: if one would be wrong; it is too late then for a backward pass per task.
        """
        woken = [slot for slot in self._slots.values() if slot.woken]
        if not woken or not batch.trace.splits or batch.only is not None:
            return
        self._batch = batch
        try:
            self._rehearse(loss, owners, nullcontext())
        except Refusal as refusal:
            batch.trace.stop(refusal)
            raise
        finally:
            self._batch = None

    def _refuse_hidden_functions(self, batch: Batch, loss: Tensor) -> None:
        """Refuse parameters that the graph does not show, where the graph may be another one."""
        splits = batch.trace.splits and batch.only is None
        if self._shards is None and (self._guard.fresh or batch.trace.new or not splits):
            with batch.trace.watch.flowing(Flow.PLAIN), batch.trace.repeats():
                refuse_hidden(loss, self.model, self._leaves, self._name)

    def _due(self, batch: Batch) -> bool:
        """Whether something about a batch is to be checked before its gradients are split."""
        if batch.only is not None or not batch.trace.splits:
            return False
        return not batch.followed or self._does_something_new(batch)

    def _does_something_new(self, batch: Batch) -> bool:
        """Whether a batch, or one of its kind, has not been checked yet."""
        return self._checks_left > 0 or bool(batch.trace.new)

    def _backward_alike(self, shards: Shards, loss: Tensor, owners: RowMap, ends: bool) -> None:
        """Make the backward passes of a sharded model, as many as any rank needs."""
        assert self._batch is not None and self._ranks is not None
        batch, trace, n_tasks = self._batch, self._batch.trace, owners.n_tasks
        splits = trace.splits and batch.only is None
        passes = self._agree_on_passes(shards, owners, CHECKS if splits and self._due(batch) else 0)
        if passes.checks:
            gather = shards.gathered(passes.units)
            if not (splits and self._due(batch)) or not self._check(loss, owners, gather):
                self._idle(loss, passes.checks, retain_graph=True)
                with gather:
                    pass
            passes = self._agree_on_passes(shards, owners, 0)
        own = 1 if trace.splits else len(owners.index.unique())
        self._step.streams = self._step.streams and passes.streams
        self._collector.stream(self._step.streams)
        if ends:
            self._agree()
            self._collector.begin(self._step, self.method)
        if trace.splits:
            self._split(loss, passes.number > 1)
        else:
            self._one_by_one(loss, owners, passes.number)
        self._idle(loss, passes.number - own)
        with shards.gathered(passes.units):
            if trace.splits:
                batch.carry_on(n_tasks)

    def _agree_on_passes(self, shards: Shards, owners: RowMap, checks: int) -> Passes:
        """Hear how many passes the ranks make, with those of checks that are to come before."""
        assert self._batch is not None and self._ranks is not None
        trace = self._batch.trace
        own = 1 if trace.splits else len(owners.index.unique())
        uses = [store.expected for store in self._collector.stores] if trace.splits else ()
        sources = [slot for chain in trace.chains for slot in chain.sources]
        units = shards.units_of(s.leaf for s in sources if isinstance(s, ParameterSlot))
        return agree_on_passes(self._ranks, own, uses, frozenset(units), checks)

    def _idle(self, loss: Tensor, count: int, retain_graph: bool = False) -> None:
        """Run backward passes that other ranks need and this one does not."""
        for n in range(count):
            keep = retain_graph or n + 1 < count
            self._run(loss, torch.zeros_like(loss), self._leaves, Flow.IDLE, keep)

    def _split(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Run the backward pass that splits gradients.

        Raises:
            GradientError: if a gradient reaches a parameter past all meetings.
        """
        found = self._run_split(loss, retain_graph)
        self._refuse_hidden(found[: len(self._slots)])
        self._heads.add(found[len(self._slots) :])

    def _run_split(self, loss: Tensor, retain_graph: bool) -> Sequence[Tensor | None]:
        """Run a backward pass that splits; return what autograd found of :attr:`_leaves` itself.

        None for what other tensors are made of, which wait with their graph for the end, and for
        parameters with hooks, which are not made for nothing to come.
        """
        assert self._batch is not None
        chains = self._batch.trace.chains
        waiting = {id(s.leaf) for c in chains for s in c.sources if isinstance(s, ParameterSlot)}
        waiting |= {id(slot.leaf) for slot in self._slots.values() if slot.hooked}
        asked = [leaf for leaf in self._leaves if id(leaf) not in waiting]
        found = iter(self._run(loss, None, asked, Flow.SPLIT, retain_graph))
        return [None if id(leaf) in waiting else next(found) for leaf in self._leaves]

    def _refuse_hidden(self, found: Sequence[Tensor | None]) -> None:
        """Refuse gradients of parameters that autograd found where all should have been split."""
        for leaf, gradient in zip(self._leaves, found, strict=False):
            if gradient is not None and bool(gradient.to_dense().any()):
                refusal = self._unseen(leaf)
                if self._give_up is not None:
                    self._give_up(refusal)
                raise refusal

    def _unseen(self, leaf: Tensor) -> Refusal:
        return Refusal(
            f"parameter {self._name(leaf)!r} is used by an operation that the engine cannot see (a "
            "custom autograd function?)"
        )

    def _check(
        self, loss: Tensor, owners: RowMap, gather: AbstractContextManager[Any] | None = None
    ) -> bool:
        """Check the batch; go on without splitting gradients if they cannot be split.

        Returns:
            Whether backward passes through the whole graph were made, as many as ``CHECKS``.
        """
        assert self._batch is not None
        batch = self._batch
        rehearses = False
        try:
            if not batch.followed:
                self._check_end(loss, owners)
            rehearses = self._does_something_new(batch)
            if rehearses:
                self._rehearse(loss, owners, gather or nullcontext())
                if self._proved is not None:
                    self._proved |= batch.trace.new
                self._checks_left -= 1
        except Refusal as refusal:
            batch.trace.stop(refusal)
        return rehearses

    def _check_end(self, loss: Tensor, owners: RowMap) -> None:
        """Check that losses whose samples were not followed are made of their own samples.

        Raises:
            Refusal: if they are not, or if a parameter is used out of sight.
        """
        if self._shards is not None:  # what follows a sharded module gathers, with all ranks
            raise Refusal("the samples were not followed to the losses of a sharded model")
        nodes, reached = last_meetings(loss)
        for leaf in self._leaves[: len(self._slots)]:
            if id(leaf) in reached:
                raise self._unseen(leaf)
        weights = task_weights(owners.n_tasks, self.step)
        scaled = weights[owners.index].to(loss)
        plain, weighted, again = (
            self._run(loss, factors, edges(nodes), Flow.PLAIN, True)
            for factors in (None, scaled, None)
        )
        for n, node in enumerate(nodes):
            meeting = meeting_of(node)
            dy, dy_weighted, dy_again = plain[n], weighted[n], again[n]
            if meeting is None or dy is None or dy_weighted is None or dy_again is None:
                continue
            if not same(dy, dy_again):
                raise GradientError(
                    f"the backward pass that follows {meeting.what} gives another gradient when it "
                    "is run a second time: a custom autograd function that can be used once alone; "
                    "gradients of tasks cannot be told apart"
                )
            if not apart(meeting, dy, dy_weighted, weights):
                raise Refusal(
                    f"losses have a gradient at samples of other tasks, seen at {meeting.what}: "
                    "what follows it mixes samples"
                )

    def _rehearse(self, loss: Tensor, owners: RowMap, gather: AbstractContextManager[Any]) -> None:
        """Check what is split against autograd, without touching what the step has collected.

        Args:
            loss: with its graph, which is kept.
            owners: whose losses these are.
            gather: holds sharded parameters whole, for what was made of parameters alone.

        Raises:
            Refusal: if a parameter's gradient would be wrong.
            GradientError: if a head gets a gradient from another task.
        """
        assert self._batch is not None
        batch, watch = self._batch, self._batch.trace.watch
        weights = task_weights(owners.n_tasks, self.step)
        rehearsal = Rehearsal(self._collector, weights)
        before, watch.done = watch.done, rehearsal.release
        scaled = weights[owners.index].to(loss)
        try:
            with rehearsal.running(), without_hooks(self._leaves):
                found = self._run_split(loss, retain_graph=True)
                plain = self._run(loss, scaled, self._leaves, Flow.PLAIN, True)
                with gather:
                    batch.carry_on(owners.n_tasks)
                rehearsal.finish()
        except (GradientError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise Refusal(f"an operation could not be split: {because(error)}") from error
        finally:
            watch.done = before
        shared = len(self._slots)
        leaves = self._leaves[:shared]
        wrong, silent = different(leaves, rehearsal.sums, plain[:shared], watch.coarsest)
        for n, leaf in enumerate(leaves):
            slot = self._slots[id(leaf)]
            slot.asleep, slot.woken = n in silent and self._shards is None, False
        if wrong:
            leaf, hidden = leaves[wrong[0]], found[wrong[0]]
            if hidden is not None and bool(hidden.to_dense().any()):
                raise self._unseen(leaf)
            raise Refusal(
                f"parameter {self._name(leaf)!r} has a gradient that does not split by tasks as "
                "the engine followed it"
            )
        self._check_heads(loss, owners, found[shared:], plain[shared:], weights)

    def _check_heads(
        self,
        loss: Tensor,
        owners: RowMap,
        joint: Sequence[Tensor | None],
        weighted: Sequence[Tensor | None],
        weights: Tensor,
    ) -> None:
        """Check that the heads of tasks get a gradient from their own task alone."""
        factor = dict(zip(self._step.names, weights.tolist(), strict=False))
        if self._heads.apart(joint, weighted, factor):
            return
        for task in range(owners.n_tasks):  # say which
            own = (owners.index == task).to(loss.device, loss.dtype)
            found = self._run(loss, own, self._heads.leaves, Flow.PLAIN, True)
            self._heads.check(self._step.names[task], found)

    def _in_two_passes(self, loss: Tensor, owners: RowMap) -> None:
        """Measure in a first backward pass; run a second of the losses times their weights."""
        assert self._batch is not None
        batch, collector, step = self._batch, self._collector, self._step
        self._split(loss, retain_graph=True)
        batch.carry_on(owners.n_tasks)
        weights = collector.weights(step, self.method)
        with batch.trace.watch.flowing(Flow.JOINT):
            self._run(loss, weights[owners.index].to(loss), [], Flow.JOINT, self._may_wake)
            batch.carry_on(1)
        collector.joint(step)

    def _one_by_one(self, loss: Tensor, owners: RowMap, passes: int = 0) -> None:
        """Run one backward pass per task, which is right whatever the model does with samples.

        The graph is kept if there are to be more ``passes`` than that.
        """
        self._step.streams = False
        self._collector.stream(False)
        present = owners.index.unique().tolist()
        for n, task in enumerate(present):
            own = (owners.index == task).to(loss.device, loss.dtype)
            keep = n + 1 < max(passes, len(present))
            found = self._run(loss, own, self._leaves, Flow.PLAIN, keep)
            self._add(found, task, owners.n_tasks)

    def _add(self, gradients: Sequence[Tensor | None], task: int, n_tasks: int) -> None:
        """Add a task's gradients of :attr:`_leaves`."""
        with torch._C.DisableTorchFunction():
            for p, gradient in zip(self._leaves, gradients, strict=True):
                if gradient is not None and id(p) in self._slots:
                    slot = self._slots[id(p)]
                    slot.wants_sparse = gradient.is_sparse
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    slot.zero(n_tasks)[task].add_(dense)
        own = gradients[len(self._slots) :]
        if self._checks_left > 0:
            self._heads.check(self._step.names[task], own)
        self._heads.add(own)

    def _run(
        self,
        loss: Tensor,
        gradient: Tensor | None,
        inputs: Sequence[Any],
        flow: Flow,
        retain_graph: bool = False,
    ) -> Sequence[Tensor | None]:
        """Run a backward pass, of the sum of the losses if no ``gradient`` is given.

        Returns:
            The gradients of ``inputs`` that autograd found, None for what is not reached.
        """
        assert self._batch is not None
        trace = self._batch.trace
        if gradient is None:
            gradient = torch.ones_like(loss)
        if self._shards is not None:
            self._shards.stand()
        with trace.watch.flowing(flow), trace.repeats(), explained(loss, self.model):
            return inner(torch.autograd.grad)(
                loss, [trace.anchor, *inputs], gradient, retain_graph, allow_unused=True
            )[1:]

    def _finish(self, end: End) -> None:
        """Combine what is left and say what is to be added to ``p.grad`` of every parameter."""
        step = self._step
        self._collector.finish(step, self.method)
        if self._ranks is not None:
            self._heads.add_ranks(self._ranks)
        end.report = step.report(tuple(group.name for group in self.groups))
        own = self._heads.finished(step.loss_scale)
        shared = [slot.parameter for slot in self._slots.values()]
        end.gradients = [
            *((p, step.gradients[id(p)]) for p in shared),
            *zip(self._heads.parameters, own, strict=True),
        ]
