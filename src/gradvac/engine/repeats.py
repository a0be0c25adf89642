"""Whether a graph can be run backward more than once.

A custom autograd function may write to what it saved, as fused kernels do to save memory. Its first
backward pass is right and every further one is wrong, without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradvac.engine.comparison import different
from gradvac.engine.hidden import custom_functions
from gradvac.errors import GradientError


class Repeats:
    """Checks graphs with custom autograd functions, once for every function.

    Args:
        leaves: the parameters.
    """

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self._leaves = leaves
        self._proved: set[str] = set()

    def check(self, loss: Tensor, run: Callable[[], Sequence[Tensor | None]]) -> None:
        """Check that a graph with a new custom function gives the same gradients twice.

        Args:
            loss: with its graph.
            run: runs a backward pass that keeps the graph; returns the gradients of the leaves.

        Raises:
            GradientError: if the gradients differ.
        """
        new = {f.__name__ for f in custom_functions(loss)} - self._proved
        if not new:
            return
        first = [None if g is None else g.clone() for g in run()]
        again = run()
        split = {id(leaf): g for leaf, g in zip(self._leaves, again, strict=True)}
        coarsest = max(torch.finfo(leaf.dtype).eps for leaf in self._leaves)
        if different(self._leaves, split, first, coarsest)[0]:
            raise GradientError(
                "the backward pass gives other gradients when it is run a second time: a custom "
                f"autograd function ({', '.join(sorted(new))}) writes to what it saved, so that "
                "tasks cannot have a backward pass each in one graph; give each task a forward "
                "pass of its own, engine.accumulate({task: loss}), or a function that can be "
                "differentiated twice"
            )
        self._proved |= new
