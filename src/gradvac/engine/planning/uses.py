"""Gradients of tasks at the nodes that plain operations leave in autograd's graph.

In a planned step the forward pass runs as written. The nodes of autograd's graph hold what the
gradients of tasks are made of: a projection holds its input, a lookup its ids, a normalisation its
statistics. A hook of the node gets the gradient of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradvac.engine.gradients.by_task import put_sums, sums
from gradvac.engine.gradients.slots import Slot
from gradvac.engine.samples.owners import Owners
from gradvac.engine.tracing.layer_functions import (
    linear_gradients,
    lookup_gradients,
    norm_gradients,
)

Rule = Callable[[Any, Tensor, Sequence[Slot | None], Owners], None]
"""Adds the gradients of a node's parameters: of node, gradient, slots and owners of the rows."""


@dataclass(frozen=True)
class Projection:
    """``x @ w.T + b``, or ``x @ w + b`` if ``transposed``; slots of w and b."""

    transposed: bool
    biased: bool

    def __call__(self, node: Any, dy: Tensor, slots: Sequence[Slot | None], owners: Owners) -> None:
        """Add the gradients."""
        x = node._saved_mat1 if self.biased else node._saved_self
        linear_gradients(x, dy, self.transposed, slots, owners)


@dataclass(frozen=True)
class Sum:
    """A term that is broadcast over rows; slot of the term, of which the last dimensions count."""

    kept: int

    def __call__(self, node: Any, dy: Tensor, slots: Sequence[Slot | None], owners: Owners) -> None:
        """Add the gradients."""
        _add_sums(dy, self.kept, slots, owners)


@dataclass(frozen=True)
class Factor:
    """A factor that is broadcast over rows; slot of the factor.

    ``first`` if it is the first of the two factors.
    """

    kept: int
    first: bool

    def __call__(self, node: Any, dy: Tensor, slots: Sequence[Slot | None], owners: Owners) -> None:
        """Add the gradients."""
        other = node._saved_other if self.first else node._saved_self
        _add_sums(dy * other, self.kept, slots, owners)


def _add_sums(values: Tensor, kept: int, slots: Sequence[Slot | None], owners: Owners) -> None:
    (slot,) = slots
    assert slot is not None
    shape = values.shape[values.ndim - kept :]
    collected, fresh = slot.collected(owners.n_tasks)
    rows = values.reshape(len(owners), *shape)
    put_sums(rows, owners, collected.view(owners.n_tasks, *shape), fresh)


@dataclass(frozen=True)
class TermLookedUp:
    """A term that was looked up in a table and is broadcast over rows; slot of the table.

    Attributes:
        kept: number of its last dimensions that are not broadcast.
        operand: which operand of the sum it is.
    """

    kept: int
    operand: int

    def __call__(self, node: Any, dy: Tensor, slots: Sequence[Slot | None], owners: Owners) -> None:
        """Add the gradients."""
        (slot,) = slots
        assert slot is not None
        embedding = node.next_functions[self.operand][0]
        ids, shape = embedding._saved_indices.flatten(), dy.shape[dy.ndim - self.kept :]
        rows = sums(dy.reshape(len(owners), *shape), owners).flatten(1, -2)
        padding = signed(embedding._saved_padding_idx)
        if padding >= 0:
            rows.masked_fill_((ids == padding)[:, None], 0.0)
        table = slot.zero(owners.n_tasks)
        table.index_add_(1, ids, rows.to(table.dtype))


@dataclass(frozen=True)
class Lookup:
    """Rows of a table, one for each row of the samples; slot of the table.

    Attributes:
        operand: which operand of a sum was looked up; None if the node is the lookup.
    """

    operand: int | None = None

    def embedding(self, node: Any) -> Any:
        """Return the node of the lookup."""
        return node if self.operand is None else node.next_functions[self.operand][0]

    def __call__(self, node: Any, dy: Tensor, slots: Sequence[Slot | None], owners: Owners) -> None:
        """Add the gradients."""
        (slot,) = slots
        assert slot is not None
        embedding = self.embedding(node)
        padding = signed(embedding._saved_padding_idx)
        lookup_gradients(embedding._saved_indices, dy, padding, slot, owners)


def normalisation(node: Any, dy: Tensor, slots: Sequence[Slot | None], owners: Owners) -> None:
    """Layer normalisation; slots of scale and shift."""
    found = dy, node._saved_input, node._saved_result1, node._saved_result2
    norm_gradients(found, node._saved_normalized_shape, slots, owners)


def signed(number: int) -> int:
    """A number that a node keeps as unsigned."""
    return number - 2**64 if number >= 2**63 else number
