"""The parameter groups of a single pass, from task gradients that arrive to combined ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from gradvac.engine.gradients.gram import gram
from gradvac.engine.gradients.on_demand import Held, Rows
from gradvac.engine.gradients.stores import GroupStore, Pool
from gradvac.engine.groups import ParameterGroup, parameter_groups
from gradvac.engine.ranks.shards import Shards
from gradvac.engine.report import combine, decide_present
from gradvac.engine.step import Step
from gradvac.errors import GradientError
from gradvac.methods import Method

BUDGET = 2**31
"""Bytes that the task gradients of one parameter may take by default: 2 GiB, chosen here.

The 64k-token softmax of Transformer-Big passes it from K = 9 on.
"""


class Collector:
    """Collects task gradients, combines a group as soon as it is complete, and frees it.

    With two passes the groups are parameters, of which the first pass measures the Gram matrix
    alone. Its sum decides, and the second pass brings gradients that are combined already.

    Args:
        model: whose parameters.
        groups: parameters that get the same weights.
        heads: parameters of single tasks, which are in no group.
        passes: 1, or 2 for one group of all parameters in memory flat in K.
        budget: bytes; a parameter whose K gradients are larger is treated in chunks of rows.

    Raises:
        GradientError: if ``passes`` does not suit the granularity, or the budget is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParameterGroup],
        heads: Sequence[ParameterGroup],
        passes: int,
        budget: int,
    ) -> None:
        if budget <= 0:
            raise GradientError(f"budget is {budget}; it must be a positive number of bytes")
        self.groups = groups
        self.passes = passes
        if passes not in (1, 2):
            raise GradientError(f"passes is {passes}; it must be 1 or 2")
        if passes == 2 and len(self.groups) > 1:
            raise GradientError(
                f"passes=2 with {len(self.groups)} parameter groups: a second backward pass gives "
                "each task one weight for all parameters; it needs granularity='whole_model'"
            )
        pieces = groups if passes == 1 else parameter_groups(model, "all_matrix", heads)
        self._collect(pieces, budget)

    def _collect(self, pieces: Sequence[ParameterGroup], budget: int) -> None:
        """Make the stores for parameters that arrive together."""
        self.pool = Pool()
        self.ready: list[GroupStore] = []
        self.stores = [GroupStore(group, self.pool, self.ready, budget) for group in pieces]
        self._name_slots(None)
        self.device = self.stores[0].device

    def _name_slots(self, shards: Shards | None) -> None:
        """Find slots by what a forward pass uses."""
        slots = [slot for store in self.stores for slot in store.slots]
        for slot in slots:
            slot.leaf = shards.whole(slot.parameter) if shards else slot.parameter
        self.slots = {id(slot.leaf): slot for slot in slots}

    def stream(self, streams: bool) -> None:
        """Say whether the backward pass to come is the only one of the step."""
        for store in self.stores:
            store.streams = streams

    def may_stream(self, method: Method) -> bool:
        """Whether anything can be done with a group before the backward pass has ended."""
        return self.passes == 2 or not method.needs_all_groups

    def begin(self, step: Step, method: Method) -> None:
        """Begin the backward pass that ends the step, or the end of the step after the last one."""

    def release(self, step: Step, method: Method) -> None:
        """Combine groups that are complete, several at once, and free their gradients."""
        if not step.streams or len(self.ready) == step.waiting:
            return
        step.waiting = len(self.ready)
        if self.passes == 2:
            self.measure(self.ready, step)
        elif sum(store.size for store in self.ready) >= self._at_once(step):
            self._combine(self.ready, step, method)
        else:
            return
        self.ready.clear()
        step.waiting = 0

    def _at_once(self, step: Step) -> int:
        """Return how many numbers a task's gradients have that are worth waiting for.

        Methods take all groups at once. On an accelerator every call of one waits for the device,
        so groups are held while they fit into a quarter of the memory that is free (chosen here).
        On a CPU they fill a quarter of what the largest needs anyway (chosen here: a half and more
        held more memory and saved no time, an eighth cost time under all_matrix).
        """
        if step.at_once is None:
            step.at_once = max(store.size for store in self.stores) // 4
            if self.device.type != "cpu":
                each = len(step.names) * self.stores[0].dtype.itemsize
                step.at_once = max(step.at_once, _free(self.device) // 4 // each)
        return step.at_once

    def measure(self, stores: Sequence[GroupStore], step: Step) -> None:
        """Add to the Gram matrix of the whole model and free the gradients."""
        rows = _rows(stores, step, len(step.names))
        if rows:
            step.gram = step.gram + gram([list(chain(*rows))])
        for store in stores:
            store.close()

    def weights(self, step: Step, method: Method) -> Tensor:
        """Return the weights ``[K]`` that the Gram matrix of the first of two passes leads to."""
        self.measure([store for store in self.stores if store.used], step)
        self.ready.clear()
        return self._decide(step, method, step.gram, self.groups)[0]

    def joint(self, step: Step) -> None:
        """Take over the gradients of the second of two passes."""
        one = torch.ones(1)
        rows = _rows(self.stores, step, 1)
        self._assign(step, self.stores, rows, [one] * len(self.stores))

    def finish(self, step: Step, method: Method) -> None:
        """Combine what is left."""
        left = [s for s in self.stores if id(s.slots[0].parameter) not in step.gradients]
        if left and self.passes == 1:
            self._combine(left, step, method)
        elif left:  # of two passes one was enough: it brought all gradients of each task
            rows = _rows(left, step, len(step.names))
            inner = gram([list(chain(*rows))], step.fetch)
            weights = self._decide(step, method, inner, self.groups)
            self._assign(step, left, rows, [weights[0]] * len(left))

    def _combine(self, stores: Sequence[GroupStore], step: Step, method: Method) -> None:
        rows = _rows(stores, step, len(step.names))
        inner = gram(rows, step.fetch)
        weights = self._decide(step, method, inner, [store.group for store in stores])
        self._assign(step, stores, rows, weights)

    def _decide(
        self, step: Step, method: Method, inner: Tensor, groups: Sequence[ParameterGroup]
    ) -> Tensor:
        losses = step.losses(len(step.names)) / step.loss_scale
        names = tuple(group.name for group in groups)
        tasks, here = tuple(step.names), step.present()
        report, weights = decide_present(
            method, inner, losses, tasks, here, names, step.number, step.shares
        )
        step.reports.append(report)
        return weights

    def _assign(
        self,
        step: Step,
        stores: Sequence[GroupStore],
        rows: Sequence[Sequence[Rows]],
        weights: Iterable[Tensor],
    ) -> None:
        """Note the combined gradients of the parameters and free those of the tasks."""
        there = torch.stack(list(weights)).to(self.device)  # sent once
        for store, matrices, w in zip(stores, rows, there, strict=True):
            gradients = store.gradients([combine(w, matrix) for matrix in matrices])
            for slot, gradient in zip(store.slots, gradients, strict=True):
                step.gradients[id(slot.parameter)] = gradient
            store.close()

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        for store in self.stores:
            store.close()
        self.ready.clear()


def _free(device: torch.device) -> int:
    """Return how many bytes an accelerator has left; :data:`BUDGET` if it does not say."""
    if device.type != "cuda":
        return BUDGET
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _rows(stores: Sequence[GroupStore], step: Step, n_tasks: int) -> list[list[Rows]]:
    """Return the task gradients, without the loss scale."""
    found = [store.rows(n_tasks) for store in stores]
    if step.loss_scale != 1.0:
        for rows in chain(*found):
            if isinstance(rows, Held):
                rows.scale = 1 / step.loss_scale
            else:
                rows.mul_(1 / step.loss_scale)
    return found
