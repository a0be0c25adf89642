"""Checks of a batch before its gradients are split; see `comparison`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.backward_passes import BackwardPasses
from gradvac.engine.comparison import (
    Rehearsal,
    different,
    edges,
    last_uses,
    same,
    split_by_task,
    task_weights,
)
from gradvac.engine.hidden import without_hooks
from gradvac.engine.tracing.batch import TracedBatch
from gradvac.engine.tracing.parameter_use import PassKind
from gradvac.engine.tracing.tensor_info import Refusal, because
from gradvac.errors import GradientError

Gather = AbstractContextManager[Any]
"""Gathers sharded parameters, for tensors computed only from parameters."""
_MANY = 20
"""Checked steps after which the log says what they cost; chosen here."""


class Checks:
    """Checks split gradients against those of autograd.

    Args:
        verify_steps: how many first steps with several tasks are always checked. New operations are
            checked too, unless this is 0.

    Attributes:
        left: how many of them remain.
        proved: operations of forward passes that were checked; None if nothing is checked.
    """

    def __init__(self, verify_steps: int) -> None:
        self.left = verify_steps  # from this process's first step, resumed or not
        self.proved: set[Any] | None = set() if verify_steps > 0 else None
        self._checked = 0

    def due(self, batch: TracedBatch) -> bool:
        """Whether to check a batch before its gradients are split."""
        if batch.only is not None or not batch.trace.splits:
            return False
        return not batch.followed or self._does_something_new(batch)

    def _does_something_new(self, batch: TracedBatch) -> bool:
        """Whether a batch of this kind has not been checked yet."""
        return self.left > 0 or bool(batch.trace.new)

    def check(self, passes: BackwardPasses, gather: Gather | None = None) -> bool:
        """Check a batch; if its gradients cannot be split, stop splitting from here on.

        Returns:
            Whether ``CHECKS`` backward passes through the whole graph were run.
        """
        batch = passes.batch
        rehearses = False
        try:
            if not batch.followed:
                self._check_end(passes)
            rehearses = self._does_something_new(batch)
            if rehearses:
                self.rehearse(passes, gather or nullcontext())
                self._count(batch)
                if self.proved is not None:
                    self.proved |= batch.trace.new
                self.left -= 1
        except Refusal as refusal:
            batch.trace.stop(refusal)
        return rehearses

    def _count(self, batch: TracedBatch) -> None:
        """Say it once if the forward pass goes on to do something new."""
        self._checked += 1
        if self._checked == _MANY:
            new = sorted({f"{x[1]!r} after {x[0]!r}" for x in batch.trace.new if x[0] != "plan"})
            shown = ", ".join(new[:3]) + (f" and {len(new) - 3} more" if len(new) > 3 else "")
            logging.getLogger("gradvac").warning(
                "the forward pass did something new in %d steps, and each was checked by two more "
                "backward passes%s; verify_steps=0 would not check them",
                _MANY,
                f"; new in this one: {shown}" if new else "",
            )

    def may_recheck(self, passes: BackwardPasses) -> bool:
        """Whether a gradient may become nonzero, so that the graph is needed again."""
        return any(slot.zero_when_checked for slot in passes.collector.slots.values())

    def recheck(self, passes: BackwardPasses) -> None:
        """Check again if gradients that were zero in the check are now nonzero.

        Raises:
            Refusal: if one would be wrong; it is then too late for a backward pass per task.
        """
        batch = passes.batch
        nonzero_since = any(slot.nonzero_since for slot in passes.collector.slots.values())
        if not nonzero_since or not batch.trace.splits or batch.only is not None:
            return
        try:
            self.rehearse(passes, nullcontext())
        except Refusal as refusal:
            batch.trace.stop(refusal)
            raise

    def _check_end(self, passes: BackwardPasses) -> None:
        """Check that losses whose samples were not followed depend only on their own samples.

        Raises:
            Refusal: if they do not, or if a parameter has a use that was not traced.
        """
        setup, loss, owners = passes.setup, passes.loss, passes.owners
        if setup.shards is not None:  # code after a sharded module gathers, on all ranks
            raise Refusal("the samples were not followed to the losses of a sharded model")
        planned = passes.batch.planned
        uses, reached = last_uses(loss, {} if planned is None else planned.uses)
        for leaf in setup.leaves[: setup.n_shared]:
            if id(leaf) in reached:
                raise passes.unseen(leaf)
        weights = task_weights(owners.n_tasks, setup.next_step)
        scaled = weights[owners.index].to(loss)
        plain, weighted, again = (
            passes.run(factors, edges(uses), PassKind.PLAIN, retain_graph=True, whole=False)
            for factors in (None, scaled, None)
        )
        found = zip(uses.values(), plain, weighted, again, strict=True)
        for use, dy, dy_weighted, dy_again in found:
            if dy is None or dy_weighted is None or dy_again is None:
                continue
            if not same(dy, dy_again):
                raise GradientError(
                    f"the backward pass that follows {use.what} gives another gradient when it "
                    "is run a second time: a custom autograd function that can be used once alone; "
                    "gradients of tasks cannot be told apart"
                )
            if not split_by_task(use, dy, dy_weighted, weights):
                raise Refusal(
                    f"losses have a gradient at samples of other tasks, seen at {use.what}: "
                    "what follows it mixes samples"
                )

    def rehearse(self, passes: BackwardPasses, gather: Gather) -> None:
        """Check split gradients against autograd, without changing what the step has collected.

        The graph is kept.

        Raises:
            Refusal: if a parameter's gradient would be wrong.
            GradientError: if a head gets a gradient from another task.
        """
        setup, backward_state = passes.setup, passes.batch.trace.backward_state
        weights = task_weights(passes.owners.n_tasks, setup.next_step)
        rehearsal = Rehearsal(passes.collector, weights)
        if setup.options.storage is not None:
            backward_state.saw(setup.options.storage)
        before, backward_state.use_done = backward_state.use_done, rehearsal.release
        scaled = weights[passes.owners.index].to(passes.loss)
        try:
            with rehearsal.running(), without_hooks(setup.leaves):
                found = passes.run_split(retain_graph=True)
                plain = passes.run(scaled, setup.leaves, PassKind.PLAIN, retain_graph=True)
                with gather:
                    passes.pass_on()
                rehearsal.finish()
        except (GradientError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise Refusal(f"an operation could not be split: {because(error)}") from error
        finally:
            backward_state.use_done = before
        self._compare(passes, rehearsal, found, plain)
        shared = setup.n_shared
        self._check_heads(passes, found[shared:], plain[shared:], weights)

    def _compare(
        self,
        passes: BackwardPasses,
        rehearsal: Rehearsal,
        found: Sequence[Tensor | None],
        plain: Sequence[Tensor | None],
    ) -> None:
        """Compare the split gradients with those of plain training."""
        setup = passes.setup
        leaves, coarsest = (
            setup.leaves[: setup.n_shared],
            passes.batch.trace.backward_state.coarsest,
        )
        wrong, silent = different(leaves, rehearsal.sums, plain[: setup.n_shared], coarsest)
        for n, leaf in enumerate(leaves):
            slot = passes.collector.slots[id(leaf)]
            slot.zero_when_checked, slot.nonzero_since = n in silent and setup.shards is None, False
        if wrong:
            leaf, hidden = leaves[wrong[0]], found[wrong[0]]
            if hidden is not None and bool(hidden.to_dense().any()):
                raise passes.unseen(leaf)
            raise Refusal(
                f"parameter {setup.name(leaf)!r} has a gradient that does not split by tasks as "
                "the engine followed it"
            )

    def _check_heads(
        self,
        passes: BackwardPasses,
        joint: Sequence[Tensor | None],
        weighted: Sequence[Tensor | None],
        weights: Tensor,
    ) -> None:
        """Check that the heads of tasks get gradients only from their own task."""
        heads, names = passes.setup.heads, passes.step.names
        factor = dict(zip(names, weights.tolist(), strict=False))
        if heads.from_own_task(joint, weighted, factor):
            return
        for task in range(passes.owners.n_tasks):  # say which
            own = (passes.owners.index == task).to(passes.loss.device, passes.loss.dtype)
            heads.check(
                names[task], passes.run(own, heads.leaves, PassKind.PLAIN, retain_graph=True)
            )
