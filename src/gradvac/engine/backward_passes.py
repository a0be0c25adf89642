"""The backward passes through the graph of one batch's losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.collector import Collector
from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.local_collector import LocalCollector
from gradvac.engine.samples.calls import explained, inner
from gradvac.engine.samples.owners import Owners
from gradvac.engine.setup import Setup
from gradvac.engine.step import Step
from gradvac.engine.tracing.batch import TracedBatch
from gradvac.engine.tracing.parameter_use import PassKind
from gradvac.engine.tracing.tensor_info import Refusal
from gradvac.sending import to_device


class BackwardPasses:
    """Runs backward passes of the losses of a batch.

    Gradients of tasks go to the collector and those of heads to ``setup.heads``; nothing goes to
    ``p.grad``.

    Args:
        setup: parameters and ranks.
        collector: where the gradients of tasks are collected.
        step: the current step.
        batch: the traced forward pass.
        loss: the losses ``[N]``, with their graph.
        owners: the task of each loss.
    """

    def __init__(
        self,
        setup: Setup,
        collector: Collector,
        step: Step,
        batch: TracedBatch,
        loss: Tensor,
        owners: Owners,
    ) -> None:
        self.setup, self.collector, self.step = setup, collector, step
        self.batch, self.loss, self.owners = batch, loss, owners

    def run(
        self,
        factors: Tensor | None,
        inputs: Sequence[Any],
        kind: PassKind,
        retain_graph: bool = False,
        whole: bool = True,
    ) -> Sequence[Tensor | None]:
        """Run a backward pass of the losses times some factors ``[N]``, 1 by default.

        It goes through the whole graph, or if not ``whole`` only as far as the inputs.

        Returns:
            The gradients of ``inputs`` from autograd, None for an input that is not reached.
        """
        setup, trace, loss = self.setup, self.batch.trace, self.loss
        if factors is None:
            factors = torch.ones_like(loss)
        if setup.shards is not None:
            setup.shards.gather_kept_whole()
        planned, collects = self.batch.planned, kind in (PassKind.SPLIT, PassKind.JOINT)
        # Every traced use leads to the anchor: asked for, no use is left out of the pass.
        through: list[Any] = [trace.anchor] if whole else []
        through += planned.edges if planned is not None and collects else []
        with trace.backward_state.running(kind), trace.repeats(), explained(loss, setup.module):
            found = inner(torch.autograd.grad)(
                loss, [*through, *inputs], factors, retain_graph, allow_unused=True
            )
            if planned is not None and collects:
                planned.arrived(found[1 : len(through)])
        if planned is not None and not retain_graph:
            planned.release()
        return found[len(through) :]

    def idle(self, count: int, retain_graph: bool = False) -> None:
        """Run backward passes that other ranks need but this one does not."""
        for n in range(count):
            keep = retain_graph or n + 1 < count
            self.run(torch.zeros_like(self.loss), self.setup.leaves, PassKind.IDLE, keep)

    def split(self, retain_graph: bool = False) -> None:
        """Run the backward pass that splits gradients.

        Raises:
            GradientError: if a gradient reaches a parameter other than through a traced use.
        """
        found, n_shared = self.run_split(retain_graph), self.setup.n_shared
        for leaf, gradient in zip(self.setup.leaves, found[:n_shared], strict=False):
            if gradient is not None and bool(gradient.to_dense().any()):
                refusal = self.unseen(leaf)
                if self.batch.trace.give_up is not None:
                    self.batch.trace.give_up(refusal)
                raise refusal
        self.setup.heads.add(found[n_shared:])

    def run_split(self, retain_graph: bool) -> Sequence[Tensor | None]:
        """Run a backward pass that splits; return the gradients of leaves from autograd itself.

        None for sources of derived tensors, which wait with their graph for the end, and for
        parameters with hooks, because their hooks must not run without a gradient.
        """
        derived, leaves = self.batch.trace.derived, self.setup.leaves
        waiting = {id(s.leaf) for d in derived for s in d.sources if isinstance(s, ParameterSlot)}
        with torch._C.DisableTorchFunction():  # a mode would see every parameter
            waiting |= {id(slot.leaf) for slot in self.collector.slots.values() if slot.hooked}
        if self.batch.planned is not None:
            waiting |= self.batch.planned.covered
        asked = [leaf for leaf in leaves if id(leaf) not in waiting]
        found = iter(self.run(None, asked, PassKind.SPLIT, retain_graph))
        return [None if id(leaf) in waiting else next(found) for leaf in leaves]

    def pass_on(self) -> None:
        """Pass gradients of tensors computed only from parameters on to these parameters."""
        self.batch.pass_on(self.owners.n_tasks)

    def unseen(self, leaf: Tensor) -> Refusal:
        """Return the refusal of a parameter with a use that was not traced."""
        return Refusal(
            f"parameter {self.setup.name(leaf)!r} is used by an operation that the engine cannot "
            "see (a custom autograd function?)"
        )

    def split_in_two(self, retain_graph: bool) -> None:
        """Measure in a first backward pass; run a second of the losses times their weights."""
        collector = self.collector
        assert isinstance(collector, LocalCollector)
        self.split(retain_graph=True)
        self.pass_on()
        self.step.heads_state = self.setup.heads.state()
        weights = collector.weights(self.step)
        with self.batch.trace.backward_state.running(PassKind.JOINT):
            factors = to_device(weights, self.loss.device)[self.owners.on(self.loss.device)]
            self.run(factors.to(self.loss), [], PassKind.JOINT, retain_graph)
            self.batch.pass_on(1)
        collector.take_combined(self.step)

    def one_by_one(self, passes: int = 0) -> None:
        """Run one backward pass per task, which is correct for any model.

        The graph is kept at the end if ``passes`` is larger than the number of tasks.
        """
        self.step.streams = False
        self.collector.stream(False)
        present = self.owners.index.unique().tolist()
        for n, task in enumerate(present):
            own = (self.owners.on(self.loss.device) == task).to(self.loss.dtype)
            self._add(self._plain(own, n + 1 < max(passes, len(present))), task)

    def of_one_task(self, task: int) -> None:
        """Run one backward pass for losses that all belong to one task."""
        self._add(self._plain(None, False), task)

    def plain(self) -> Sequence[Tensor | None]:
        """Return the gradients of plain training; the graph is kept."""
        return self._plain(None, True)

    def _plain(self, factors: Tensor | None, retain_graph: bool) -> Sequence[Tensor | None]:
        return self.run(factors, self.setup.leaves, PassKind.PLAIN, retain_graph)

    def _add(self, gradients: Sequence[Tensor | None], task: int) -> None:
        """Add a task's gradients of the leaves."""
        slots, heads, n_shared = self.collector.slots, self.setup.heads, self.setup.n_shared
        with torch._C.DisableTorchFunction():
            for leaf, gradient in zip(self.setup.leaves, gradients[:n_shared], strict=False):
                if gradient is not None:
                    slot = slots[id(leaf)]
                    slot.wants_sparse = gradient.is_sparse
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    slot.zero(self.owners.n_tasks)[task].add_(dense)
        if self.batch.trace.remember:
            heads.check(self.step.names[task], gradients[n_shared:])
        heads.add(gradients[n_shared:])
