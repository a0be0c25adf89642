"""The backward of projections, embeddings and layer normalisation on samples of several tasks.

For y = x W^T the gradient of W splits by rows, dL_k/dW = dy[rows of k]^T x[rows of k], and the K
products together cost as much as the one of plain training. Each function here computes the same as
the plain operation, returns the gradient of its input, and adds the K gradients of the parameters
to their slots.

Every function takes ``anchor`` first, a number that requires a gradient, so that it has a backward
even if nothing before it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gradvac.engine.gradients.by_task import TaskRows, batched, put_product, put_sums
from gradvac.engine.gradients.on_demand import Lookup, Product
from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.gradients.slots import Slot
from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Place
from gradvac.engine.tracing.parameter_use import ParameterUse


def flat_rows(place: Place, shape: torch.Size, kept: int) -> Owners:
    """Owners of the rows of a tensor flattened to ``[rows, last `kept` dimensions]``."""
    return place.flat(shape[: len(shape) - kept])


def linear_gradients(
    x: Tensor,
    dy: Tensor,
    transposed: bool,
    slots: Sequence[Slot | None],
    owners: Owners,
) -> None:
    """Add ``dy_k^T x_k`` (or its transpose) and the sums of dy_k for each task k to the slots.

    Sums are not computed as a product with zeros and ones, which would spread NaN to all tasks.
    """
    on_w, on_b = slots
    if isinstance(on_w, ParameterSlot) and on_w.takes_factors(owners.n_tasks):
        on_w.add_factors(Product(x.detach(), dy, transposed, owners))
        on_w = None
    w, fresh_w = (None, False) if on_w is None else on_w.collected(owners.n_tasks)
    b, fresh_b = (None, False) if on_b is None else on_b.collected(owners.n_tasks)
    if batched(owners, *((x, dy) if w is not None else (dy,))):
        ys = TaskRows(dy, owners, clear=True)
        if w is not None:
            xs = TaskRows(x, owners)
            left, right = (xs, ys) if transposed else (ys, xs)
            left.product(right, w, fresh_w)
        if b is not None:
            ys.sums(b, fresh_b)
        return
    width = _columns_at_once(dy, owners.n_tasks)
    for first in range(0, dy.shape[1], width):
        columns = slice(first, first + width)
        owns = repeat(None, owners.n_tasks) if w is None else owners.blocks(x)
        parts = owners.blocks(dy[:, columns] if width < dy.shape[1] else dy)
        for k, (own, y) in enumerate(zip(owns, parts, strict=True)):
            if w is not None and own is not None:
                of_w = w[k, :, columns] if transposed else w[k, columns]
                put_product(*((own.T, y) if transposed else (y.T, own)), of_w, fresh_w)
            if b is not None and fresh_b:
                torch.sum(y, 0, dtype=b.dtype, out=b[k, columns])
            elif b is not None and len(y):
                b[k, columns].add_(y.sum(0, dtype=b.dtype))


def _columns_at_once(dy: Tensor, n_tasks: int) -> int:
    """Return how many columns of a task's rows to copy at once; all on accelerators.

    On a CPU the rows of a wide softmax are processed in pieces of about 2 MiB, which stay in the
    cache and reuse memory (chosen here; new pages cost as much as filling them).
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
        use: ParameterUse,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.use, ctx.transposed = use, transposed
        x2, w = x.reshape(-1, x.shape[-1]), w if transposed else w.T
        y = torch.mm(x2, w) if b is None else torch.addmm(b, x2, w)
        # An in-place activation could not write to a view made here.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, w = ctx.saved_tensors
        use: ParameterUse = ctx.use
        with torch._C.DisableTorchFunction():
            dy2 = dy.reshape(-1, dy.shape[-1])  # a copy after attention, made once
            if use.collects(dy):
                owners = flat_rows(use.place, dy.shape, 1)
                x2 = x.reshape(-1, x.shape[-1])
                linear_gradients(x2, dy2, ctx.transposed, use.slots, owners)
                use.finish()
            dx = dw = db = None
            _, on_x, on_w, on_b, *_ = ctx.needs_input_grad
            if on_x:
                dx = torch.mm(dy2, w.T if ctx.transposed else w).view(x.shape)
            if use.plain(on_w):
                x2 = x.reshape(-1, x.shape[-1])
                dw = x2.T @ dy2 if ctx.transposed else dy2.T @ x2
            if use.plain(on_b):
                db = dy2.sum(0)
        return None, dx, dw, db, None, None


def lookup_gradients(ids: Tensor, dy: Tensor, padding: int, slot: Slot, owners: Owners) -> None:
    """Add gradients of the rows of a table, from ids ``[...]`` and dy ``[..., d]``."""
    ids, dy = ids.reshape(-1), dy.reshape(-1, dy.shape[-1])
    if padding >= 0:
        dy = dy.masked_fill((ids == padding)[:, None], 0.0)
    lookup = Lookup(ids, dy, owners)
    if isinstance(slot, ParameterSlot) and slot.takes_factors(owners.n_tasks):
        slot.add_factors(lookup)
    else:
        lookup.add_all(slot.zero(owners.n_tasks))


class _Embedding(Function):
    """Rows of a table; slot of the table."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, ids: Tensor, table: Tensor, padding: int, use: ParameterUse
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.use, ctx.height = padding, use, len(table)
        return torch.nn.functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        (ids,) = ctx.saved_tensors
        use: ParameterUse = ctx.use
        dw = None
        with torch._C.DisableTorchFunction():
            if use.plain(ctx.needs_input_grad[2]):
                dw = torch.ops.aten.embedding_dense_backward(
                    dy, ids, ctx.height, ctx.padding, False
                )
            if use.collects(dy):
                (slot,) = use.slots
                assert slot is not None
                owners = flat_rows(use.place, dy.shape, 1)
                lookup_gradients(ids, dy, ctx.padding, slot, owners)
                use.finish()
        return None, None, dw, None, None


def norm_gradients(
    tensors: Sequence[Tensor],
    shape: Sequence[int],
    slots: Sequence[Slot | None],
    owners: Owners,
) -> None:
    """Add gradients of scale and shift, from dy, x ``[..., *shape]``, mean and 1/std of rows."""
    dy, x, mean, rstd = tensors
    of_scale = dy * ((x - mean) * rstd)  # in the precision of the statistics
    for slot, values in zip(slots, (of_scale, dy), strict=True):
        if slot is not None:
            collected, fresh = slot.collected(owners.n_tasks)
            put_sums(values.reshape(-1, *shape), owners, collected, fresh)


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
        use: ParameterUse,
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, w, b, eps)
        ctx.save_for_backward(x, w, b, mean, rstd)
        ctx.shape, ctx.use = shape, use
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, w, b, mean, rstd = ctx.saved_tensors
        use: ParameterUse = ctx.use
        with torch._C.DisableTorchFunction():
            if use.collects(dy):
                owners = flat_rows(use.place, dy.shape, len(ctx.shape))
                norm_gradients((dy, x, mean, rstd), ctx.shape, use.slots, owners)
                use.finish()
            _, on_x, _, on_w, on_b, *_ = ctx.needs_input_grad
            mask = [on_x, use.plain(on_w), use.plain(on_b)]
            dx, dw, db = torch.ops.aten.native_layer_norm_backward(
                dy, x, ctx.shape, mean, rstd, w, b, mask
            )
        own = lambda g, wanted: g if wanted else None
        return None, own(dx, mask[0]), None, own(dw, mask[1]), own(db, mask[2]), None, None


linear = _Linear.apply
"""Takes anchor, x, w, b, transposed and use; ``x @ w^T + b``, or ``x @ w + b`` if transposed."""

embedding = _Embedding.apply
"""Takes anchor, ids, table, padding and use; row ``padding`` gets no gradient; -1: none."""

layer_norm = _LayerNorm.apply
"""Takes anchor, x, shape, w, b, eps and use; normalised over the last dimensions, of ``shape``."""
