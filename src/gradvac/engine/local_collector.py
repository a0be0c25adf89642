"""Combines the task gradients of parameter groups as they arrive in a single pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from gradvac.engine.collector import Collector
from gradvac.engine.gradients.gram import full_precision, gram, gram_there
from gradvac.engine.gradients.on_demand import OnDemand, TaskGradients
from gradvac.engine.gradients.pool import free_bytes
from gradvac.engine.gradients.stores import GroupStore
from gradvac.engine.groups import ParameterGroup, parameter_groups
from gradvac.engine.lazy import decide_unread
from gradvac.engine.options import BUDGET
from gradvac.engine.report import decide_present, weighted_sum
from gradvac.engine.setup import Setup
from gradvac.engine.step import Step
from gradvac.errors import GradientError
from gradvac.sending import to_device

HELD = 2**24
"""Bytes of task gradients held on a CPU before the method is called: 16 MiB, chosen here."""


class LocalCollector(Collector):
    """Combines a group of parameters as soon as it is complete, and frees its task gradients.

    With two passes the pieces are parameters, and the first pass only measures their Gram matrices.
    Their sum gives the weights, and the second pass computes combined gradients.

    Raises:
        GradientError: if there are two passes and several groups.
    """

    def __init__(self, setup: Setup) -> None:
        pieces = setup.groups
        self._two_passes = setup.options.passes == 2
        if self._two_passes:
            if len(pieces) > 1:
                raise GradientError(
                    f"passes=2 with {len(pieces)} parameter groups: a second backward pass gives "
                    "each task one weight for all parameters; it needs granularity='whole_model'"
                )
            pieces = parameter_groups(setup.model, "all_matrix", setup.heads.heads)
        super().__init__(setup, pieces, setup.options.budget)

    def may_stream(self) -> bool:
        """Whether a group can be processed before the backward pass has ended."""
        return self._two_passes or not self.setup.method.needs_all_groups

    def release(self, step: Step) -> None:
        """Combine groups that are complete, several at once, and free their gradients."""
        if not step.streams or len(self.ready) == step.waiting:
            return
        step.waiting = len(self.ready)
        if self._two_passes:
            self._measure(self.ready, step)
        elif sum(store.size for store in self.ready) >= self._at_once(step):
            self._combine(self.ready, step)
        else:
            return
        self.ready.clear()
        step.waiting = 0

    def _at_once(self, step: Step) -> int:
        """Return how many numbers of a task's gradient to collect before a call of the method.

        A method takes several groups in one call. On an accelerator every call waits for the
        device, so groups are held while they fit into a quarter of the free memory (chosen here).
        On a CPU they fill 16 MiB, or a quarter of what the largest group needs (chosen here: a half
        or more used more memory and saved no time, an eighth cost time with all_matrix).
        """
        if step.at_once is None:
            free = free_bytes(self.device) or BUDGET
            held = HELD if self.device.type == "cpu" else free // 4
            each = len(step.names) * self.stores[0].dtype.itemsize
            step.at_once = max(max(store.size for store in self.stores) // 4, held // each)
        return step.at_once

    def weights(self, step: Step) -> Tensor:
        """Return the weights ``[K]`` from the Gram matrix of the first of two passes."""
        self._measure([store for store in self.stores if store.used], step)
        self.ready.clear()
        inner = torch.zeros(1, dtype=torch.float64) if step.gram is None else step.gram
        inner = inner if self.setup.lazy else step.fetch(inner)
        return self._decide(step, inner, self.setup.groups)[0]

    def _measure(self, stores: Sequence[GroupStore], step: Step) -> None:
        """Add to the Gram matrix of the whole model and free the gradients."""
        gradients = _task_gradients(stores, step, len(step.names))
        if gradients:
            part = self._gram_of_a_part(list(chain(*gradients)))
            step.gram = part if step.gram is None else step.gram + part
        for store in stores:
            store.close()

    def _gram_of_a_part(self, gradients: Sequence[TaskGradients]) -> Tensor:
        """Gram matrix ``[1, K, K]`` of some parameters.

        On an accelerator fully in float64, so that the host need not ask whether float32 will do.
        """
        if self.device.type == "cpu" and not self.setup.lazy:
            return gram([gradients])
        return gram_there([gradients])

    def take_combined(self, step: Step) -> None:
        """Take over the gradients of the second of two passes."""
        one = torch.ones(1)
        gradients = _task_gradients(self.stores, step, 1)
        self._assign(step, self.stores, gradients, [one] * len(self.stores))

    def finish(self, step: Step) -> None:
        """Combine the remaining groups."""
        left = [s for s in self.stores if id(s.slots[0].parameter) not in step.gradients]
        if left and not self._two_passes:
            self._combine(left, step)
        elif left:  # one of the two passes was enough: it gave all gradients of each task
            gradients = _task_gradients(left, step, len(step.names))
            inner = self._gram([list(chain(*gradients))], step)
            weights = self._decide(step, inner, self.setup.groups)
            self._assign(step, left, gradients, [weights[0]] * len(left))

    def _combine(self, stores: Sequence[GroupStore], step: Step) -> None:
        gradients = _task_gradients(stores, step, len(step.names))
        weights = self._decide(step, self._gram(gradients, step), [store.group for store in stores])
        self._assign(step, stores, gradients, weights)

    def _gram(self, gradients: Sequence[Sequence[TaskGradients]], step: Step) -> Tensor:
        """Return the Gram matrices ``[groups, K, K]``, where the method computes."""
        return gram_there(gradients) if self.setup.lazy else gram(gradients, step.fetch)

    def _decide(self, step: Step, inner: Tensor, groups: Sequence[ParameterGroup]) -> Tensor:
        """Return the method's weights ``[groups, K]``, and record its report."""
        names = tuple(group.name for group in groups)
        if self.setup.lazy:
            return decide_unread(step, self.setup.method, inner, names)
        report, weights = decide_present(
            self.setup.method,
            inner,
            step.task_losses,
            step.tasks,
            step.present(),
            names,
            step.number,
            step.shares,
        )
        step.reports.append(report)
        return weights

    def _assign(
        self,
        step: Step,
        stores: Sequence[GroupStore],
        found: Sequence[Sequence[TaskGradients]],
        weights: Iterable[Tensor],
    ) -> None:
        """Record the combined gradients of the parameters and free those of the tasks."""
        there = to_device(torch.stack(list(weights)), self.device)  # once
        with full_precision(self.device.type):
            combined = [
                [weighted_sum(w, matrix) for matrix in matrices]
                for matrices, w in zip(found, there, strict=True)
            ]
        for store, sums in zip(stores, combined, strict=True):
            gradients = store.gradients(sums)
            for slot, gradient in zip(store.slots, gradients, strict=True):
                step.gradients[id(slot.parameter)] = gradient
            store.close()


def _task_gradients(
    stores: Sequence[GroupStore], step: Step, n_tasks: int
) -> list[list[TaskGradients]]:
    """Return the task gradients, without the loss scale."""
    found = [store.task_gradients(n_tasks) for store in stores]
    if step.loss_scale != 1.0:
        for gradients in chain(*found):
            if isinstance(gradients, OnDemand):
                gradients.scale = 1 / step.loss_scale
            else:
                gradients.mul_(1 / step.loss_scale)
    return found
