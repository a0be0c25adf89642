"""The backward of any operation on samples and parameters, by recomputing the operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gradvac.engine.gradients.by_task import sums
from gradvac.engine.gradients.precision import at_least_float32
from gradvac.engine.gradients.slots import Slot
from gradvac.engine.samples.places import Place
from gradvac.engine.tracing.parameter_use import ParameterUse


class Recomputation:
    """An operation to recompute in the backward, on other tensors.

    Attributes:
        func: the operation; takes the tensors in the order of the attributes below.
        places: where the samples lie in each tensor, None for a tensor without samples.
        slots: slots of the tensors whose gradients are split by tasks, None for the others.
        device: type of the device; its autocast is applied again.
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
        twice = torch.is_grad_enabled()  # the gradients must be differentiable themselves
        enabled, dtype = self.autocast
        with torch.enable_grad(), torch.autocast(self.device, dtype, enabled):
            if twice:  # views, so a gradient of one does not reach sources of another
                leaves = [t.view_as(t) for t in tensors]
            else:
                leaves = [
                    t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)
                ]
            y = self.func(*leaves)
        if not y.requires_grad:  # only the shape of the wanted tensors was used
            return [None] * len(tensors)
        asked = [t for t, w in zip(leaves, wanted, strict=True) if w]
        found = iter(torch.autograd.grad(y, asked, dy, create_graph=twice, allow_unused=True))
        return [next(found) if w else None for w in wanted]

    def apply(self, tensors: Sequence[Tensor]) -> Tensor:
        """Run the operation; its result may be written to."""
        y = self.func(*tensors)
        return y.clone() if y._is_view() or any(y is t for t in tensors) else y


def _wanted(
    needs: Sequence[bool], slots: Sequence[Slot | None], use: ParameterUse, split: bool
) -> list[bool]:
    """Which tensors need a gradient: samples, and in some passes those with a slot."""
    return [
        need if slot is None else split or use.plain(need)
        for need, slot in zip(needs, slots, strict=True)
    ]


class _Pointwise(Function):
    """An elementwise operation: one derivative for all tasks, then sums over the rows of each."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, operation: Recomputation, use: ParameterUse, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.operation, ctx.use = operation, use
        return operation.apply(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        tensors = ctx.saved_tensors
        use: ParameterUse = ctx.use
        operation: Recomputation = ctx.operation
        with torch._C.DisableTorchFunction():
            collect = use.collects(dy)
            has_slot = [slot is not None and collect for slot in operation.slots]
            wanted = _wanted(ctx.needs_input_grad[3:], operation.slots, use, collect)
            wide = [t.expand(dy.shape) if f else t for t, f in zip(tensors, has_slot, strict=True)]
            found = operation.gradients(wide, wanted, dy)
            for n, slot in enumerate(operation.slots):
                if collect and slot is not None:
                    g = found[n]
                    slot.add(_reduce(dy.new_zeros(dy.shape) if g is None else g,
                                     tensors[n].shape, use.place))  # fmt: skip
                    found[n] = None
            if collect:
                use.finish()
        return None, None, None, *found


def _reduce(g: Tensor, shape: torch.Size, place: Place) -> Tensor:
    """Sum what was broadcast from ``shape`` for each task: ``[K, *shape]``."""
    dims, n_tasks = place.dims, place.n_tasks
    g = g.to(at_least_float32(g.dtype))
    own = [1] * (g.ndim - len(shape)) + list(shape)
    others = [d for d in range(g.ndim) if own[d] == 1 and g.shape[d] != 1 and d not in dims]
    if others:
        g = g.sum(others, keepdim=True)
    if all(own[d] == 1 for d in dims):
        rows = g.movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)
        return sums(rows, place.along()).reshape(n_tasks, *shape)
    # The tensor has separate values for each sample: they go to the owner, 0 to others.
    if not place.separable:
        tasks = torch.arange(n_tasks).view(-1, *[1] * g.ndim)
        whole = torch.where((place.tasks(g.ndim) == tasks).to(g.device), g, 0.0)
        shared = [d + 1 for d in dims if own[d] == 1]
        return (whole.sum(shared) if shared else whole).reshape(n_tasks, *shape)
    owners, dim = place
    whole = g.new_zeros(n_tasks, *g.shape)
    samples = torch.arange(len(owners), device=g.device)
    whole.movedim(dim + 1, 1).index_put_((owners.on(g.device), samples), g.movedim(dim, 0))
    return whole.reshape(n_tasks, *shape)


class _Slices(Function):
    """Any operation, recomputed per task: on its rows only, or in full with other rows masked."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        operation: Recomputation,
        masked: bool,
        use: ParameterUse,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.operation, ctx.masked, ctx.use = operation, masked, use
        return operation.apply(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        tensors = ctx.saved_tensors
        use: ParameterUse = ctx.use
        operation: Recomputation = ctx.operation
        with torch._C.DisableTorchFunction():
            collects = use.collects(dy)
            needs = _wanted(ctx.needs_input_grad[4:], operation.slots, use, False)
            found: list[Tensor | None] = [None] * len(tensors)
            masked = ctx.masked or use.masked
            if masked or not collects:
                found = operation.gradients(tensors, needs, dy)
            else:  # joined from those of the rows of each task
                found = [
                    torch.zeros_like(t) if n else None for t, n in zip(tensors, needs, strict=True)
                ]
            if collects:
                split_by_tasks(operation, masked, use.place, tensors, found, dy)
                use.finish()
        return None, None, None, None, *found


def split_by_tasks(
    operation: Recomputation,
    masked: bool,
    out: Place,
    tensors: Sequence[Tensor],
    found: list[Tensor | None],
    dy: Tensor,
) -> None:
    """Add the gradients of each task to the slots; put those of the samples in ``found``.

    The samples of the output lie at ``out``, which may have other rows than the inputs.
    """
    has_slot = [slot is not None for slot in operation.slots]
    wanted = (
        has_slot if masked else [f or x is not None for f, x in zip(has_slot, found, strict=True)]
    )
    stacks: list[list[Tensor]] = [[] for _ in tensors]
    for task in range(out.n_tasks):
        own = out.tasks(dy.ndim) == task
        gradients: Sequence[Tensor | None] = [None] * len(tensors)
        if not bool(own.any()):  # not every operation takes an empty batch
            pass
        elif masked:
            part = torch.where(own.to(dy.device), dy, 0.0)
            gradients = operation.gradients(tensors, wanted, part)
        else:
            taken = out.owners.positions(task, dy.device)
            where = [
                None if place is None else (place.dim, place.owners.positions(task, t.device))
                for place, t in zip(operation.places, tensors, strict=True)
            ]
            parts = [
                t if at is None else t.index_select(*at)
                for t, at in zip(tensors, where, strict=True)
            ]
            gradients = operation.gradients(parts, wanted, dy.index_select(out.dim, taken))
            for x, g, at in zip(found, gradients, where, strict=True):
                if x is not None and g is not None and at is not None:
                    x.index_copy_(*at, g)
        for tensor, stack, g, f in zip(tensors, stacks, gradients, has_slot, strict=True):
            if f:
                stack.append(torch.zeros_like(tensor) if g is None else g)
    for slot, stack in zip(operation.slots, stacks, strict=True):
        if slot is not None:
            slot.add(torch.stack(stack))


pointwise = _Pointwise.apply
"""Takes anchor, operation, use and the tensors; does an elementwise operation."""

slices = _Slices.apply
"""Takes anchor, operation, masked, use and the tensors; does any operation.

``masked`` if its samples cannot be processed one task at a time.
"""
