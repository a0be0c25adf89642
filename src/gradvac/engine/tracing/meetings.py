"""The backward of operations in which a parameter meets samples of several tasks.

For y = x W^T the gradient of W splits by rows, dL_k/dW = dy[rows of k]^T x[rows of k], and the K
products cost together what the one of plain training costs. Each function here computes what the
plain operation does, passes the gradient of its input on, and hands the K gradients of the
parameters to their slots. In a pass that splits, autograd gets no gradient of a parameter from
here; in a plain pass it gets the one of plain training.

Every function takes ``anchor`` first, a number that requires a gradient, so that it has a backward
even if nothing before it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gradvac.engine.gradients.by_task import TaskRows, batched, put_product, put_sums
from gradvac.engine.gradients.on_demand import Lookup, Product
from gradvac.engine.gradients.slots import Slot
from gradvac.engine.gradients.stores import ParameterSlot
from gradvac.engine.samples.flow import Place
from gradvac.engine.samples.rows import RowMap
from gradvac.errors import GradientError


class Flow(Enum):
    """What flows backward through the meetings."""

    FOREIGN = auto()  # a backward pass that is not the engine's: nobody may run one
    PLAIN = auto()  # what plain training computes, on to the parameters
    SPLIT = auto()  # gradients of parameters are split by tasks and go to their slots
    JOINT = auto()  # they go to their slots as one
    IDLE = auto()  # nothing: the pass is made because other ranks make one


class Watch:
    """What the meetings of a batch have in common.

    Attributes:
        flow: what the backward pass under way does at the meetings.
        done: called whenever a use has handed its gradients over.
        coarsest: the largest rounding error of the gradients that have flowed, relative.
    """

    def __init__(self, done: Callable[[], None]) -> None:
        self.flow = Flow.FOREIGN
        self.done = done
        self.coarsest = 0.0

    @contextmanager
    def flowing(self, flow: Flow) -> Iterator[None]:
        """Say what the backward pass inside does."""
        before, self.flow = self.flow, flow
        try:
            yield
        finally:
            self.flow = before


class Meeting:
    """One use of parameters in the forward pass.

    Attributes:
        slots: where the gradients of the parameters go, None for one that needs none.
        what: the operation, for error messages.
    """

    _place: Place

    def __init__(self, slots: Sequence[Slot | None], what: str, watch: Watch) -> None:
        self.slots, self.what, self.watch = slots, what, watch

    @property
    def place(self) -> Place:
        """Where the samples lie in the output; known once the output is."""
        if self.watch.flow is Flow.JOINT:
            rows, dim = self._place
            return Place(rows.all_of(0, 1), dim)
        return self._place

    @place.setter
    def place(self, place: Place) -> None:
        self._place = place

    def collects(self, dy: Tensor) -> bool:
        """Whether gradients are to be collected.

        Raises:
            GradientError: if the engine does not run this backward pass.
        """
        flow = self.watch.flow
        if flow is Flow.FOREIGN:
            raise GradientError(
                "a backward pass that engine.backward() does not run goes through what was "
                "computed inside `with engine.tasks(...)`; call engine.backward(loss) in place of "
                "loss.backward(), once for each forward pass"
            )
        self.watch.coarsest = max(self.watch.coarsest, torch.finfo(dy.dtype).eps)
        return flow is Flow.SPLIT or flow is Flow.JOINT

    def plain(self, wanted: bool) -> bool:
        """Whether a parameter's own gradient is to be returned, if it is ``wanted``."""
        return wanted and self.watch.flow is Flow.PLAIN

    def finish(self) -> None:
        """Count the use as done."""
        if self.watch.flow is Flow.JOINT:
            return  # tasks came through here before
        for slot in self.slots:
            if slot is not None:
                slot.arrived()
        self.watch.done()


def meeting_of(node: Any) -> Meeting | None:
    """Return the meeting that a node of autograd's graph is, None if it is something else."""
    meeting = getattr(node, "meeting", None)
    return meeting if isinstance(meeting, Meeting) else None


def _flat_rows(place: Place, shape: torch.Size, kept: int) -> RowMap:
    """Owners of the rows of a tensor flattened to ``[rows, last `kept` dimensions]``."""
    dim = place.dim
    before, after = shape[:dim].numel(), shape[dim + 1 : len(shape) - kept].numel()
    return place.rows.spread(before, after)


def _linear_gradients(
    x: Tensor,
    dy: Tensor,
    transposed: bool,
    slots: Sequence[Slot | None],
    rows: RowMap,
) -> None:
    """Hand over ``dy_k^T x_k`` (or its transpose) and the sums of dy_k of the rows of each task k.

    Sums are not a product with zeros and ones, in which one task's NaN would reach all.
    """
    on_w, on_b = slots
    if isinstance(on_w, ParameterSlot) and on_w.holds(rows.n_tasks):
        on_w.add_made_of(Product(x.detach(), dy, transposed, rows))
        on_w = None
    w, fresh_w = (None, False) if on_w is None else on_w.collected(rows.n_tasks)
    b, fresh_b = (None, False) if on_b is None else on_b.collected(rows.n_tasks)
    if batched(rows, *((x, dy) if w is not None else (dy,))):
        ys = TaskRows(dy, rows, clear=True)
        if w is not None:
            xs = TaskRows(x, rows)
            left, right = (xs, ys) if transposed else (ys, xs)
            left.product(right, w, fresh_w)
        if b is not None:
            ys.sums(b, fresh_b)
        return
    width = _columns_at_once(dy, rows.n_tasks)
    for first in range(0, dy.shape[1], width):
        columns = slice(first, first + width)
        owns = repeat(None, rows.n_tasks) if w is None else rows.blocks(x)
        ys = rows.blocks(dy[:, columns] if width < dy.shape[1] else dy)
        for k, (own, y) in enumerate(zip(owns, ys, strict=True)):
            if w is not None and own is not None:
                of_w = w[k, :, columns] if transposed else w[k, columns]
                put_product(*((own.T, y) if transposed else (y.T, own)), of_w, fresh_w)
            if b is not None and fresh_b:
                torch.sum(y, 0, dtype=b.dtype, out=b[k, columns])
            elif b is not None and len(y):
                b[k, columns].add_(y.sum(0, dtype=b.dtype))


def _columns_at_once(dy: Tensor, n_tasks: int) -> int:
    """Return how many columns of a task's rows to copy at once; all on accelerators.

    On a CPU the rows of a wide softmax are taken in pieces of about 2 MiB, which stay in the cache
    and in memory that is there already (chosen here; pages anew cost as much as filling them).
    """
    if dy.device.type != "cpu":
        return max(1, dy.shape[1])
    return max(256, 2**21 * n_tasks // max(1, dy.element_size() * len(dy)))


class _Linear(Function):
    """``x @ w^T + b``, or ``x @ w + b`` if ``transposed``; slots of w and b."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        transposed: bool,
        meeting: Meeting,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.meeting, ctx.transposed = meeting, transposed
        x2, w = x.reshape(-1, x.shape[-1]), w if transposed else w.T
        y = torch.mm(x2, w) if b is None else torch.addmm(b, x2, w)
        # A view made here could not be written to by an activation that works in place.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, w = ctx.saved_tensors
        meeting: Meeting = ctx.meeting
        with torch._C.DisableTorchFunction():
            dy2 = dy.reshape(-1, dy.shape[-1])  # a copy after attention: made once
            if meeting.collects(dy):
                rows = _flat_rows(meeting.place, dy.shape, 1)
                x2 = x.reshape(-1, x.shape[-1])
                _linear_gradients(x2, dy2, ctx.transposed, meeting.slots, rows)
                meeting.finish()
            dx = dw = db = None
            _, on_x, on_w, on_b, *_ = ctx.needs_input_grad
            if on_x:
                dx = torch.mm(dy2, w.T if ctx.transposed else w).view(x.shape)
            if meeting.plain(on_w):
                x2 = x.reshape(-1, x.shape[-1])
                dw = x2.T @ dy2 if ctx.transposed else dy2.T @ x2
            if meeting.plain(on_b):
                db = dy2.sum(0)
        return None, dx, dw, db, None, None


class _Embedding(Function):
    """Rows of a table; slot of the table."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, ids: Tensor, table: Tensor, padding: int, meeting: Meeting
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.meeting, ctx.height = padding, meeting, len(table)
        return torch.nn.functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        (ids,) = ctx.saved_tensors
        meeting: Meeting = ctx.meeting
        dw = None
        with torch._C.DisableTorchFunction():
            if meeting.plain(ctx.needs_input_grad[2]):
                dw = torch.ops.aten.embedding_dense_backward(
                    dy, ids, ctx.height, ctx.padding, False
                )
            if meeting.collects(dy):
                rows = _flat_rows(meeting.place, dy.shape, 1)
                (slot,) = meeting.slots
                assert slot is not None
                ids, dy = ids.reshape(-1), dy.reshape(-1, dy.shape[-1])
                if ctx.padding >= 0:
                    dy = dy.masked_fill((ids == ctx.padding)[:, None], 0.0)
                use = Lookup(ids, dy, rows)
                if isinstance(slot, ParameterSlot) and slot.holds(rows.n_tasks):
                    slot.add_made_of(use)
                else:
                    use.add_to(slot.zero(rows.n_tasks), 0)
                meeting.finish()
        return None, None, dw, None, None


def _norm_gradients(
    tensors: Sequence[Tensor],
    shape: Sequence[int],
    slots: Sequence[Slot | None],
    rows: RowMap,
) -> None:
    """Hand over gradients of scale and shift from dy, x ``[N, d]``, mean and 1/std ``[N, 1]``."""
    dy, x, mean, rstd = tensors
    of_scale = dy * ((x - mean) * rstd)  # in the precision of the statistics
    for slot, rows_of in zip(slots, (of_scale, dy), strict=True):
        if slot is not None:
            collected, fresh = slot.collected(rows.n_tasks)
            put_sums(rows_of.unflatten(1, shape), rows, collected, fresh)


class _LayerNorm(Function):
    """Layer normalisation; slots of scale and shift."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        shape: Sequence[int],
        w: Tensor | None,
        b: Tensor | None,
        eps: float,
        meeting: Meeting,
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, w, b, eps)
        ctx.save_for_backward(x, w, b, mean, rstd)
        ctx.shape, ctx.meeting = shape, meeting
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, w, b, mean, rstd = ctx.saved_tensors
        meeting: Meeting = ctx.meeting
        with torch._C.DisableTorchFunction():
            if meeting.collects(dy):
                rows = _flat_rows(meeting.place, dy.shape, len(ctx.shape))
                tensors = [t.reshape(len(rows), -1) for t in (dy, x, mean, rstd)]
                _norm_gradients(tensors, ctx.shape, meeting.slots, rows)
                meeting.finish()
            _, on_x, _, on_w, on_b, *_ = ctx.needs_input_grad
            mask = [on_x, meeting.plain(on_w), meeting.plain(on_b)]
            dx, dw, db = torch.ops.aten.native_layer_norm_backward(
                dy, x, ctx.shape, mean, rstd, w, b, mask
            )
        own = lambda g, wanted: g if wanted else None
        return None, own(dx, mask[0]), None, own(dw, mask[1]), own(db, mask[2]), None, None


def linear(
    anchor: Tensor, x: Tensor, w: Tensor, b: Tensor | None, transposed: bool, meeting: Meeting
) -> Tensor:
    """Return ``x @ w^T + b``, or ``x @ w + b`` if ``transposed``."""
    return _call(_Linear, anchor, x, w, b, transposed, meeting)


def embedding(anchor: Tensor, ids: Tensor, table: Tensor, padding: int, meeting: Meeting) -> Tensor:
    """Return the rows ``ids`` of a table; row ``padding`` gets no gradient, -1 for none such."""
    return _call(_Embedding, anchor, ids, table, padding, meeting)


def layer_norm(
    anchor: Tensor,
    x: Tensor,
    shape: Sequence[int],
    w: Tensor | None,
    b: Tensor | None,
    eps: float,
    meeting: Meeting,
) -> Tensor:
    """Return ``x`` normalised over its last dimensions, scaled and shifted."""
    return _call(_LayerNorm, anchor, x, shape, w, b, eps, meeting)


def _call(function: type[Function], *args: Any) -> Tensor:
    out = function.apply(*args)
    assert isinstance(out, Tensor)
    return out
