"""Checks that the gradients of a forward pass were split correctly.

Two things need no check: samples are separate as far as they are followed, and a gradient that
reaches a parameter other than through a traced use is detected. What is checked:

*Losses whose samples were not followed* (made by a custom function, or by an operation that mixes
samples), in every step. The losses of task k are multiplied by a random number r_k, and the
gradient is computed down to the last uses of parameters. If samples are separate, the gradient at
the rows of task k is r_k times the unweighted one, so one more pass through the end of the model
checks all tasks at once. The r_k are powers of two with signs, so the comparison has no rounding
error.

*What a forward pass does for the first time*: a new operation, another order, a parameter at
another place, samples of several tasks. One pass splits the gradients and gives sum_k r_k g_k of
every parameter; another gives the gradient of sum_k r_k L_k by autograd as in plain training. They
are equal if every gradient of a task came from its own samples and no use of a parameter was lost,
added or counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gradvac.engine.collector import Collector
from gradvac.engine.gradients.precision import at_least_float32
from gradvac.engine.report import combine
from gradvac.engine.samples.calls import nodes
from gradvac.engine.tracing.parameter_use import ParameterUse, use_of

CHECKS = 2
"""Number of backward passes through the whole graph in a check."""

_POWERS = 8  # powers of two, each with both signs: 16 numbers; more tasks share some


def task_weights(n_tasks: int, step: int) -> Tensor:
    """Return a random number r_k for each task, ``[K]``, float64; different in every step."""
    generator = torch.Generator().manual_seed(step)
    n = torch.randperm(max(n_tasks, 2 * _POWERS), generator=generator)[:n_tasks] % (2 * _POWERS)
    return torch.where(n % 2 == 0, 1.0, -1.0).double() * 0.5 ** (n // 2)


def last_uses(
    loss: Tensor, planned: Mapping[Any, ParameterUse]
) -> tuple[dict[Any, ParameterUse], set[int]]:
    """Return the uses of parameters that no other use follows on the way to a loss.

    Args:
        loss: with its graph.
        planned: uses by their node, besides those that are nodes themselves.

    Returns:
        Uses by their node of autograd's graph, and ids of the leaves that no use follows either.
    """
    use_at = lambda node: use_of(node) or planned.get(node)
    found = {node: use_at(node) for node in nodes(loss, end=lambda node: use_at(node) is not None)}
    variables = (getattr(node, "variable", None) for node in found)
    reached = {id(variable) for variable in variables if variable is not None}
    return {node: use for node, use in found.items() if use is not None}, reached


def edges(uses: Iterable[Any]) -> list[GradientEdge]:
    """Return the gradient edges of the outputs of uses."""
    return [GradientEdge(node, 0) for node in uses]


def split_by_task(use: ParameterUse, plain: Tensor, weighted: Tensor, weights: Tensor) -> bool:
    """Whether the gradient at each sample is that of its own task's losses.

    Args:
        use: the use at whose output the gradients are.
        plain: gradient of the sum of all losses.
        weighted: gradient of the losses times the number of their task.
        weights: these numbers, ``[K]``.
    """
    place = use.place
    if plain.ndim > 2 and not place.fits(plain.shape):  # a planned use has rows
        plain, weighted = (x.reshape(len(place.owners), -1) for x in (plain, weighted))
    factor = weights[place.tasks(plain.ndim)].to(plain)
    return same(plain, weighted / factor)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two gradients are equal up to the order of additions."""
    if not one.numel():
        return True
    # NaN of another task spreads by 0 * NaN; its source is found when gradients are split.
    one, other = one.nan_to_num(0.0, 0.0, 0.0), other.nan_to_num(0.0, 0.0, 0.0)
    return bool((one - other).abs().amax() <= _slack_of(one) * one.abs().amax())


def _slack_of(x: Tensor) -> float:
    eps = torch.finfo(x.dtype).eps
    return 2 * eps if eps > 1e-4 else 100 * eps


class Rehearsal:
    """Computes ``sum_k r_k g_k`` of every parameter from the split gradients, instead of a step.

    Args:
        collector: where the split gradients arrive; it is restored afterwards.
        weights: the numbers r_k, ``[K]``.

    Attributes:
        sums: the sums, by the id of the tensor that the forward pass uses; None if unused.
    """

    def __init__(self, collector: Collector, weights: Tensor) -> None:
        self.collector, self.weights = collector, weights
        self.sums: dict[int, Tensor | None] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Process the gradients that arrive inside."""
        stores, ready = self.collector.stores, self.collector.ready
        before = [store.set_aside() for store in stores]
        waiting, ready[:] = list(ready), []
        self.collector.stream(True)
        try:
            yield
        finally:
            for store, state in zip(stores, before, strict=True):
                store.put_back(state)
            ready[:] = waiting

    def release(self) -> None:
        """Process the complete groups."""
        for store in self.collector.ready:
            self._take(store)
        self.collector.ready.clear()

    def finish(self) -> None:
        """Process the remaining groups."""
        self.collector.ready.clear()
        for store in self.collector.stores:
            if id(store.slots[0].leaf) not in self.sums:
                self._take(store)

    def _take(self, store: Any) -> None:
        found = store.task_gradients(len(self.weights))
        found = store.gradients([combine(self.weights, g) for g in found], wide=True)
        for slot, gradient in zip(store.slots, found, strict=True):
            self.sums[id(slot.leaf)] = gradient
        store.close()


def different(
    leaves: Sequence[Tensor],
    split: dict[int, Tensor | None],
    plain: Sequence[Tensor | None],
    coarsest: float,
) -> tuple[list[int], list[int]]:
    """Compare gradients summed from split ones with those of plain training.

    Args:
        leaves: the parameters.
        split: gradients from split ones, by the id of the parameter.
        plain: gradients of plain training.
        coarsest: largest relative rounding error of their inputs.

    Returns:
        Positions of the parameters whose gradients differ, and of used parameters for which both
        are zero, so that nothing was verified.
    """
    norms = torch.zeros(len(leaves), 3, dtype=torch.float64)
    for n, (leaf, g) in enumerate(zip(leaves, plain, strict=True)):
        s = split.get(id(leaf))
        if s is None and g is None:
            continue
        s = torch.zeros_like(g) if s is None and g is not None else s
        assert s is not None
        dense = torch.zeros_like(s) if g is None else (g.to_dense() if g.is_sparse else g)
        wide = at_least_float32(s.dtype)
        s, dense = s.to(wide), dense.to(wide)
        numbers = [torch.linalg.vector_norm(x) for x in (s - dense, s, dense)]
        norms[n] = torch.stack(numbers).double().cpu()
    if not bool(norms.isfinite().all()):
        return [], []  # the step is not finite: reported elsewhere
    error, size = norms[:, 0], norms[:, 1:].amax(1)
    relative, absolute = _slack(coarsest)
    wrong = error > relative * size + absolute * size.square().sum().sqrt()
    used = torch.tensor([split.get(id(leaf)) is not None for leaf in leaves])
    return wrong.nonzero().flatten().tolist(), (used & (size == 0)).nonzero().flatten().tolist()


def _slack(coarsest: float) -> tuple[float, float]:
    """Return by how much two correct gradients may differ, relative to themselves and to all.

    Chosen here: thirty times the largest difference seen in the tests, and far below the effect of
    a lost use of a parameter.
    """
    if coarsest < 1e-10:  # float64
        return 1e-6, 1e-9
    if coarsest < 1e-5:  # float32
        return 1e-2, 1e-5
    return 0.2, 1e-2
