"""Meetings of samples and parameters in any operation, whose derivative is taken again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gradvac.engine.gradients.by_task import sums
from gradvac.engine.gradients.slots import Slot
from gradvac.engine.samples.flow import Place
from gradvac.engine.tracing.meetings import Flow, Meeting


class Again:
    """An operation to be computed again in the backward, on other tensors.

    Attributes:
        func: the operation; takes the tensors in the order of the attributes below.
        places: where the samples lie in each tensor, None for what holds none.
        free: whether each tensor is one whose gradient is split by tasks.
        slots: for those, where it goes.
        device: type of the device, whose autocast applies again.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        places: Sequence[Place | None],
        slots: Sequence[Slot | None],
        device: str,
    ) -> None:
        self.func, self.places, self.slots = func, places, slots
        self.device = device
        self.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def gradients(
        self, tensors: Sequence[Tensor], wanted: Sequence[bool], dy: Tensor
    ) -> list[Tensor | None]:
        """Gradients of the wanted tensors, None for the others."""
        if not any(wanted):
            return [None] * len(tensors)
        twice = torch.is_grad_enabled()  # they are to be differentiated themselves
        enabled, dtype = self.autocast
        with torch.enable_grad(), torch.autocast(self.device, dtype, enabled):
            if twice:  # views: a gradient of one does not go on to what another was made of
                leaves = [t.view_as(t) for t in tensors]
            else:
                leaves = [
                    t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)
                ]
            y = self.func(*leaves)
        if not y.requires_grad:  # of what is asked for, nothing but the shape was used
            return [None] * len(tensors)
        asked = [t for t, w in zip(leaves, wanted, strict=True) if w]
        found = iter(torch.autograd.grad(y, asked, dy, create_graph=twice, allow_unused=True))
        return [next(found) if w else None for w in wanted]

    def apply(self, tensors: Sequence[Tensor]) -> Tensor:
        """Do the operation; what it returns is its own to write to."""
        y = self.func(*tensors)
        return y.clone() if y._is_view() or any(y is t for t in tensors) else y


def _wanted(
    needs: Sequence[bool], slots: Sequence[Slot | None], meeting: Meeting, free: bool
) -> list[bool]:
    """Which tensors need a gradient: samples, and free ones if ``free`` or in a plain pass."""
    return [
        need if slot is None else free or meeting.plain(need)
        for need, slot in zip(needs, slots, strict=True)
    ]


class _Pointwise(Function):
    """An elementwise operation: one derivative for all tasks, then sums over the rows of each."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, again: Again, meeting: Meeting, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.again, ctx.meeting = again, meeting
        return again.apply(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        tensors = ctx.saved_tensors
        meeting: Meeting = ctx.meeting
        again: Again = ctx.again
        with torch._C.DisableTorchFunction():
            collect = meeting.collects(dy)
            free = [slot is not None and collect for slot in again.slots]
            wanted = _wanted(ctx.needs_input_grad[3:], again.slots, meeting, collect)
            wide = [t.expand(dy.shape) if f else t for t, f in zip(tensors, free, strict=True)]
            found = again.gradients(wide, wanted, dy)
            for n, slot in enumerate(again.slots):
                if collect and slot is not None:
                    g = found[n]
                    slot.add(_reduce(dy.new_zeros(dy.shape) if g is None else g,
                                     tensors[n].shape, meeting.place))  # fmt: skip
                    found[n] = None
            if collect:
                meeting.finish()
        return None, None, None, *found


def _reduce(g: Tensor, shape: torch.Size, place: Place) -> Tensor:
    """Sum what was broadcast from ``shape`` for each task: ``[K, *shape]``."""
    rows, dim = place
    g = g.to(torch.promote_types(torch.float32, g.dtype))
    own = [1] * (g.ndim - len(shape)) + list(shape)
    others = [d for d in range(g.ndim) if own[d] == 1 and g.shape[d] != 1 and d != dim]
    if others:
        g = g.sum(others, keepdim=True)
    if own[dim] == 1:
        return sums(g.movedim(dim, 0), rows).reshape(rows.n_tasks, *shape)
    # The tensor has values of its own for each sample: theirs for the owner, 0 for others.
    whole = g.new_zeros(rows.n_tasks, *g.shape)
    owners, samples = rows.owners(g.device), torch.arange(len(rows), device=g.device)
    whole.movedim(dim + 1, 1).index_put_((owners, samples), g.movedim(dim, 0))
    return whole.reshape(rows.n_tasks, *shape)


class _Slices(Function):
    """Any operation, again for each task: on its rows alone, or in full with others' masked."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, again: Again, masked: bool, meeting: Meeting, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.again, ctx.masked, ctx.meeting = again, masked, meeting
        return again.apply(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        tensors = ctx.saved_tensors
        meeting: Meeting = ctx.meeting
        again: Again = ctx.again
        with torch._C.DisableTorchFunction():
            collects = meeting.collects(dy)
            needs = _wanted(ctx.needs_input_grad[4:], again.slots, meeting, False)
            found: list[Tensor | None] = [None] * len(tensors)
            masked = ctx.masked or meeting.watch.flow is Flow.JOINT
            if masked or not collects:
                found = again.gradients(tensors, needs, dy)
            else:  # put together from those of the rows of each task
                found = [
                    torch.zeros_like(t) if n else None for t, n in zip(tensors, needs, strict=True)
                ]
            if collects:
                _split(again, masked, meeting.place, tensors, found, dy)
                meeting.finish()
        return None, None, None, None, *found


def _split(
    again: Again,
    masked: bool,
    out: Place,
    tensors: Sequence[Tensor],
    found: list[Tensor | None],
    dy: Tensor,
) -> None:
    """Hand over the gradients of each task; put those of the samples in ``found``.

    The samples of the output lie at ``out``, with rows of its own: an operation may have more.
    """
    free = [slot is not None for slot in again.slots]
    wanted = free if masked else [f or x is not None for f, x in zip(free, found, strict=True)]
    stacks: list[list[Tensor]] = [[] for _ in tensors]
    for task in range(out.rows.n_tasks):
        own = out.rows.positions(task, dy.device)
        gradients: Sequence[Tensor | None] = [None] * len(tensors)
        if len(own) and masked:  # not every operation takes an empty batch
            part = torch.zeros_like(dy).index_copy_(out.dim, own, dy.index_select(out.dim, own))
            gradients = again.gradients(tensors, wanted, part)
        elif len(own):
            where = [
                None if place is None else (place.dim, place.rows.positions(task, t.device))
                for place, t in zip(again.places, tensors, strict=True)
            ]
            parts = [
                t if at is None else t.index_select(*at)
                for t, at in zip(tensors, where, strict=True)
            ]
            gradients = again.gradients(parts, wanted, dy.index_select(out.dim, own))
            for x, g, at in zip(found, gradients, where, strict=True):
                if x is not None and g is not None and at is not None:
                    x.index_copy_(*at, g)
        for tensor, stack, g, f in zip(tensors, stacks, gradients, free, strict=True):
            if f:
                stack.append(torch.zeros_like(tensor) if g is None else g)
    for slot, stack in zip(again.slots, stacks, strict=True):
        if slot is not None:
            slot.add(torch.stack(stack))


def pointwise(anchor: Tensor, again: Again, meeting: Meeting, tensors: Sequence[Tensor]) -> Tensor:
    """Do an elementwise operation."""
    out = _Pointwise.apply(anchor, again, meeting, *tensors)
    assert isinstance(out, Tensor)
    return out


def slices(
    anchor: Tensor, again: Again, masked: bool, meeting: Meeting, tensors: Sequence[Tensor]
) -> Tensor:
    """Do any operation; ``masked`` if its samples cannot be taken one task at a time."""
    out = _Slices.apply(anchor, again, masked, meeting, *tensors)
    assert isinstance(out, Tensor)
    return out
