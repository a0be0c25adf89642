"""The batch whose forward pass is traced, and whose losses are whose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradvac.engine.samples.calls import inner, tensors_within
from gradvac.engine.samples.flow import Place
from gradvac.engine.samples.rows import RowMap
from gradvac.engine.tracing.trace import Trace
from gradvac.errors import GradientError


class TracedBatch:
    """A batch whose forward pass is traced.

    Attributes:
        trace: what watches it.
        rows: the tasks of its samples.
        only: position of its task if all samples belong to one; then nothing is watched.
        declared: whether a tensor that holds the samples has been seen.
        followed: whether the samples were followed to the losses without a gap.
        seen: shapes of the tensors given to the model, for errors.
    """

    def __init__(self, trace: Trace, rows: RowMap, only: int | None, batch_dim: int) -> None:
        self.trace, self.rows, self.only = trace, rows, only
        self.batch_dim = batch_dim
        self.declared = only is not None
        self.followed = False
        self.seen: list[list[int]] = []

    def declare(self, x: Tensor) -> None:
        """Tag an input, unless it is known already: the model may be called twice."""
        if x.shape[self.batch_dim] != len(self.rows):
            raise GradientError(
                f"an input is {list(x.shape)}; its dimension {self.batch_dim} should hold "
                f"{len(self.rows)} samples, one for each task given"
            )
        if self.trace.place(x) is None and x.grad_fn is None and not isinstance(x, nn.Parameter):
            self.trace.tag(x, Place(self.rows, self.batch_dim))
        self.declared = True

    def declare_inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Tag what is given to the model, where it has as many samples; a forward pre-hook."""
        for x in tensors_within((args, kwargs)):
            if x.ndim > self.batch_dim and x.shape[self.batch_dim] == len(self.rows):
                self.declare(x)
            self.seen.append(list(x.shape))

    def owners(
        self, loss: Tensor, rows: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, RowMap]:
        """Return the losses ``[N]`` and their owners."""
        if not self.declared and (self.trace.splits or rows is None):
            raise GradientError(
                f"no tensor with {len(self.rows)} samples was given to the model inside "
                f"`with engine.tasks(...)`, which has {len(self.rows)} task names: "
                + (f"tensors {self.seen} were; give" if self.seen else "it was not called; give")
                + " one name per sample, or name the batch by tasks(..., inputs=[...])"
            )
        known = self.trace.known(loss)
        place = known and known.place
        self.followed = known is not None and place is not None and known.why is None
        if self.only is not None and loss.requires_grad:
            loss = loss.reshape(-1) if mask is None else (loss * mask).reshape(-1)
            return loss, self.rows.taken(0, 1, 1).spread(len(loss), 1)
        if not loss.requires_grad or not loss.ndim:
            raise GradientError(
                f"the loss is {list(loss.shape)} with requires_grad={loss.requires_grad}; it must "
                "hold one value per sample or token, neither averaged nor summed over samples"
            )
        if rows is not None:
            if rows.shape != loss.shape or loss.ndim != 1:
                raise GradientError(
                    f"rows is {list(rows.shape)} and the loss {list(loss.shape)}; both must be [N]"
                )
            owners = self.rows.selected(rows)
            if place is not None and self.followed and not place.rows.same(owners):
                raise GradientError("rows contradicts the samples that the losses were made from")
        elif place is not None:
            owners = place.rows
            loss = loss.movedim(place.dim, 0)
            mask = None if mask is None else mask.movedim(place.dim, 0)
        elif len(loss) == len(self.rows) and not (self._ambiguous(loss) or (known and known.lost)):
            owners = self.rows
        else:
            raise GradientError(
                f"the loss is {list(loss.shape)} and the batch has {len(self.rows)} samples; say "
                "by `rows` which sample each loss belongs to"
            )
        if mask is not None:
            loss = loss * mask
        after = loss[0].numel() if loss.ndim > 1 else 1
        return loss.reshape(-1), owners.spread(1, after)

    def _ambiguous(self, loss: Tensor) -> bool:
        """Whether another dimension of losses that nobody followed may be that of the samples."""
        dim = self.batch_dim
        return 0 < dim < loss.ndim and loss.shape[dim] == len(self.rows)

    def carry_on(self, n_tasks: int) -> None:
        """Carry gradients of what was made of parameters alone on to these parameters."""
        chains = [chain for chain in self.trace.chains if chain.buffer is not None]
        sources = {id(slot): slot for chain in chains for slot in chain.sources}
        slots: list[Any] = list(sources.values())
        parameters = [slot.leaf for slot in slots]
        found: list[list[Tensor]] = [[] for _ in slots]
        for task in range(n_tasks if chains else 0):
            tensors = [chain.tensor for chain in chains]
            outputs = [c.buffer[task].to(c.tensor.dtype) for c in chains if c.buffer is not None]
            with self.trace.repeats():
                gradients = inner(torch.autograd.grad)(tensors, parameters, outputs, True)
            for stack, gradient in zip(found, gradients, strict=True):
                stack.append(gradient)
        for slot, stack in zip(slots, found, strict=True):
            slot.add(torch.stack(stack))
        for chain in chains:
            chain.buffer = None
