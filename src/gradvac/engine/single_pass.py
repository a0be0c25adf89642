"""Exact per-task gradients of a mixed batch from one forward and one backward pass.

The samples of different tasks are independent, so the gradient of a parameter splits by the rows of
the batch. The engine follows the samples through the forward pass. For each use of a parameter with
samples, its gradient is computed once per task from that task's rows. The K gradients of a
parameter group are combined and freed as soon as the backward pass has finished the group.

Operations that mix samples are refused by name. Everything that a forward pass does for the first
time is also checked against autograd, see :mod:`gradvac.engine.comparison`, so the split is exact
for any model. If gradients cannot be split, each task gets its own backward pass through the same
graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from gradvac.engine.backward_passes import BackwardPasses
from gradvac.engine.checks import Checks
from gradvac.engine.comparison import CHECKS
from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.guards import say_if_summed
from gradvac.engine.hidden import refuse_hidden
from gradvac.engine.local_collector import LocalCollector
from gradvac.engine.planning.planner import Planner
from gradvac.engine.ranks.collector import RankCollector
from gradvac.engine.ranks.passes import Passes, agree_on_passes
from gradvac.engine.ranks.shards import Shards
from gradvac.engine.repeats import Repeats
from gradvac.engine.report import StepReport
from gradvac.engine.samples.calls import as_written, leaves
from gradvac.engine.samples.crossed import Grid
from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Place
from gradvac.engine.samples.segments import LEAK, Segments
from gradvac.engine.setup import Setup
from gradvac.engine.step import Shares
from gradvac.engine.strategy import Gradients, Strategy
from gradvac.engine.task_names import TaskOfSample, names_and_index, tasks_of_tokens
from gradvac.engine.tracing.batch import TracedBatch
from gradvac.engine.tracing.parameter_use import BackwardState, PassKind
from gradvac.engine.tracing.tensor_info import Refusal
from gradvac.engine.tracing.trace import Trace
from gradvac.errors import GradientError

_UNDER_WAY: list[SinglePass] = []
"""The engine whose ``tasks`` block is active."""


class SinglePass(Strategy):
    """Splits one backward pass by tasks and combines the gradients group by group.

    Attributes:
        refused: why every task has its own backward pass; empty while gradients are split.
        accumulated: whether a micro-batch waits for :meth:`combine`.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        options = setup.options
        ranks = setup.ranks
        self.collector = RankCollector(setup, ranks) if ranks else LocalCollector(setup)
        self.checks = Checks(options.verify_steps)
        self._repeats = Repeats(setup.leaves)
        self.refused = ""
        self._splits = options.engine != "per_task"  # until an operation mixes samples
        strict = options.engine == "single_pass"
        self._give_up: Callable[[Refusal], None] | None = None if strict else self._split_no_more
        self.planner = Planner(setup)
        self._batch: TracedBatch | None = None

    @property
    def accumulated(self) -> bool:
        """Whether a micro-batch waits for :meth:`combine`."""
        return self.step.accumulated

    def _split_no_more(self, refusal: Refusal) -> None:
        log = logging.getLogger("gradvac").warning
        if self._batch is not None and self._batch.planned is not None:
            self.planner.stop(refusal.reason)  # later steps are traced, which may see more
            log("one backward pass per task in this step: %s", refusal.reason)
            return
        self._splits = False
        self.refused = refusal.reason
        log("one backward pass per task from now on: %s", refusal.reason)

    # -- the forward pass -----------------------------------------------------------------------

    @contextmanager
    def tasks(
        self,
        tasks: TaskOfSample,
        batch_dim: int,
        inputs: Sequence[Tensor] | None,
        segments: Tensor | None,
    ) -> Iterator[None]:
        """Follow the samples of a batch through the forward pass inside; see `Engine.tasks`."""
        if _UNDER_WAY:
            raise GradientError(
                "`with engine.tasks(...)` inside another one: "
                + ("the same engine's" if self in _UNDER_WAY else "another engine's")
                + "; a forward pass belongs to one engine, end the outer block first"
            )
        if not self.accumulated:
            self.setup.unsettled.check()
        names, index = names_and_index(tasks)
        if segments is not None:
            index, batch_dim = tasks_of_tokens(index, segments), max(batch_dim, segments.ndim - 1)
        self._check_before_forward(names)
        self.let_go()  # a forward pass without a backward pass
        batch = self._batch = self._new_batch(names, index, batch_dim)
        if segments is not None:
            batch.trace.segments = Segments(lambda: batch.trace.repeating)
        # Ranks that gather parameters together also trace a single task, to act like the others.
        follows = batch.only is None or self.setup.shards is not None
        for x in inputs or ():
            batch.declare(x)
        hook = None
        if inputs is None and follows:
            hook = self.setup.module.register_forward_pre_hook(
                batch.declare_inputs, prepend=True, with_kwargs=True
            )
        _UNDER_WAY.append(self)
        self.setup.guard.begin()
        try:
            with self._following(batch) if follows else nullcontext(), self._planning(batch):
                yield
        except BaseException as e:
            try:
                self.tell(e)
            finally:
                self.clear()
            raise
        finally:
            _UNDER_WAY.clear()
            if hook is not None:
                hook.remove()

    def _check_before_forward(self, names: Sequence[str]) -> None:
        setup = self.setup
        setup.guard.check_tasks(names)
        setup.guard.check_parameters()
        if self.collector.device.type == "meta":
            raise GradientError(
                "the model is on the meta device, where tensors hold no numbers; move it to a "
                "device before the first step"
            )
        if setup.shards is not None and setup.ranks is not None:
            setup.ranks.check()  # a forward pass gathers

    def _new_batch(self, names: Sequence[str], index: Tensor, batch_dim: int) -> TracedBatch:
        positions = torch.tensor([self.step.position(name) for name in names], dtype=torch.int64)
        trace = Trace(
            self.setup.module,
            self.collector.slots,
            self.collector.device,
            remember=self.checks.left > 0,
            backward_state=BackwardState(lambda: self.collector.release(self.step)),
            heads=frozenset(id(p) for p in self.setup.heads.leaves),
            splits=self._splits,
            give_up=self._give_up,
            proved=self.checks.proved,
        )
        only = self.step.position(names[0]) if len(names) == 1 else None
        tasks = positions[index]
        owners = Owners.of_samples(tasks.flatten(), len(self.step.names))
        if tasks.ndim > 1:  # of several rows
            return TracedBatch(trace, owners, only, Grid(tasks, owners.n_tasks).place)
        return TracedBatch(trace, owners, only, Place(owners, batch_dim))

    @contextmanager
    def _following(self, batch: TracedBatch) -> Iterator[None]:
        shards = self.setup.shards
        passing_info_on = shards.passing_info_on(batch.trace) if shards else nullcontext()
        with (
            batch.trace.following(),
            as_written(self.setup.module, self.first_step),
            passing_info_on,
        ):
            yield

    def _planning(self, batch: TracedBatch) -> AbstractContextManager[None]:
        """Plan the forward pass, once a step has been traced and checked."""
        known = not self.first_step and self.checks.left <= 0
        if not known or batch.only is not None or batch.trace.segments is not None:
            return nullcontext()
        return self.planner.around(batch)

    # -- the step -------------------------------------------------------------------------------

    def backward(
        self,
        loss: Tensor,
        rows: Tensor | None,
        mask: Tensor | None,
        loss_scale: float | torch.amp.GradScaler,
        number: int | None,
        shares: Shares | None,
    ) -> StepReport:
        """Run the backward pass and end the step; see `Engine.backward`."""
        streams = self.collector.may_stream() and not self.accumulated

        def finish() -> tuple[StepReport, Gradients]:
            self.step.streams = streams
            passes = self._backward(loss, rows, mask, ends=True)
            with passes.batch.trace.paused():  # the call may be in a ``tasks`` block
                found = self._finish()
            self.checks.recheck(passes)
            return found

        return self.end_step(finish, loss_scale, number, shares)

    def accumulate(self, loss: Tensor, rows: Tensor | None, mask: Tensor | None) -> None:
        """Run the backward pass of a micro-batch; its gradients wait for :meth:`combine`.

        Between the micro-batches of a step the K gradients of all parameters are held.
        """
        self.step.streams = False
        try:
            if self.setup.options.passes == 2:
                raise GradientError(
                    "passes=2 holds no gradients from one micro-batch to the next; make the engine "
                    "with passes=1 to accumulate"
                )
            passes = self._backward(loss, rows, mask, ends=False)
            for slot in self.collector.slots.values():
                slot.note_nonzero()
            self.checks.recheck(passes)
        except BaseException as e:
            self.tell(e)
            self.clear()
            raise
        self.step.accumulated = True

    def combine(
        self,
        loss_scale: float | torch.amp.GradScaler,
        number: int | None,
        shares: Shares | None,
    ) -> StepReport:
        """Combine the accumulated gradients and end the step; see `Engine.combine`."""
        self.check_accumulated(self.accumulated)

        def finish() -> tuple[StepReport, Gradients]:
            self._begin_to_combine()
            return self._finish()

        return self.end_step(finish, loss_scale, number, shares)

    def _begin_to_combine(self) -> None:
        self.agree()
        self.collector.begin(self.step)

    def _finish(self) -> tuple[StepReport, Gradients]:
        """Combine the rest and return what to add to ``p.grad`` of every parameter."""
        setup, step = self.setup, self.step
        if setup.ranks is None and step.heads_state is None:
            step.heads_state = setup.heads.state()
        self.collector.finish(step)
        report = self.report()
        if self.first_step:
            say_if_summed(float(report.losses.sum()), step.elements)
        shared = [step.gradients[id(p)] for p in setup.parameters[: setup.n_shared]]
        gradients = [*shared, *self.of_heads()]
        return report, list(zip(setup.parameters, gradients, strict=True))

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        super().clear()
        self.collector.clear()
        self.setup.guard.pending = False
        self.let_go()

    def let_go(self) -> None:
        """Forget the batch."""
        if self._batch is not None and self._batch.planned is not None:
            self._batch.planned.release()
        self._batch = None

    # -- the backward pass ----------------------------------------------------------------------

    def _backward(
        self, loss: Tensor, rows: Tensor | None, mask: Tensor | None, ends: bool
    ) -> BackwardPasses:
        """Run the backward passes of the batch; the last of the step, if this one ``ends`` it."""
        setup, batch = self.setup, self._batch
        if batch is None:
            raise GradientError(
                "backward() needs a forward pass inside `with engine.tasks(...)`: there has been "
                "none since the last one was used"
            )
        setup.guard.pending = False
        self.collector.stream(self.step.streams)
        with torch._C.DisableTorchFunction():
            loss, owners = batch.flat_losses(loss, rows, mask)
            self.step.add_losses_of(loss, owners)
            self.step.elements += loss.numel()
        trace = batch.trace
        if trace.splits and trace.segments is not None and trace.segments.leaks():
            trace.stop(Refusal(LEAK))
        if self.first_step:
            setup.guard.check_leaves(leaves(loss))
        passes = BackwardPasses(setup, self.collector, self.step, batch, loss, owners)
        self._refuse_hidden_functions(passes)
        if setup.shards is not None:
            self._backward_sharded(setup.shards, passes, ends)
        else:
            self._backward_alone(passes, ends)
        if batch.trace.repeated and not self.planner.off:
            self.planner.stop("activation checkpointing repeats parts of it")
        self._batch = None
        return passes

    def _refuse_hidden_functions(self, passes: BackwardPasses) -> None:
        """Refuse parameters that the graph does not show, if the graph may be new."""
        setup, batch, trace = self.setup, passes.batch, passes.batch.trace
        splits = trace.splits and batch.only is None
        if setup.shards is None and (self.first_step or trace.new or not splits):
            with trace.backward_state.running(PassKind.PLAIN), trace.repeats():
                refuse_hidden(passes.loss, setup.module, setup.leaves, setup.name)

    def _backward_alone(self, passes: BackwardPasses, ends: bool) -> None:
        """Run the backward passes that this rank needs."""
        batch = passes.batch
        if self.checks.due(batch):
            self.checks.check(passes)
        if ends:
            self._begin_to_combine()
        if batch.only is not None:
            passes.of_one_task(batch.only)
        elif not batch.trace.splits:
            self._repeats.check(passes.loss, passes.plain)
            passes.one_by_one()
            self.checks.left -= 1
        elif self.setup.options.passes == 2:
            passes.split_in_two(self.checks.may_recheck(passes))
        else:
            passes.split(self.checks.may_recheck(passes))
            passes.pass_on()

    def _backward_sharded(self, shards: Shards, passes: BackwardPasses, ends: bool) -> None:
        """Run the backward passes of a sharded model, as many as any rank needs."""
        batch, trace = passes.batch, passes.batch.trace
        due = self.checks.due(batch)
        joint = self._agree_on_passes(shards, passes, CHECKS if due else 0)
        if joint.checks:
            gather = shards.gathered(joint.units)
            if not due or not self.checks.check(passes, gather):
                passes.idle(joint.checks, retain_graph=True)
                with gather:
                    pass
            joint = self._agree_on_passes(shards, passes, 0)
        own = 1 if trace.splits else len(passes.owners.index.unique())
        self.step.streams = self.step.streams and joint.streams
        self.collector.stream(self.step.streams)
        if ends:
            self._begin_to_combine()
        if trace.splits:
            passes.split(joint.number > 1)
        else:
            passes.one_by_one(joint.number)
            self.checks.left -= 1
        passes.idle(joint.number - own)
        with shards.gathered(joint.units):
            if trace.splits:
                passes.pass_on()

    def _agree_on_passes(self, shards: Shards, passes: BackwardPasses, checks: int) -> Passes:
        """Return how many passes the ranks run, after those of ``checks``."""
        assert self.setup.ranks is not None
        trace = passes.batch.trace
        own = 1 if trace.splits else len(passes.owners.index.unique())
        uses = [store.expected for store in self.collector.stores] if trace.splits else ()
        sources = [slot for derived in trace.derived for slot in derived.sources]
        units = shards.units_of(s.leaf for s in sources if isinstance(s, ParameterSlot))
        return agree_on_passes(self.setup.ranks, own, uses, frozenset(units), checks)
