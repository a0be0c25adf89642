"""The batch whose forward pass is traced, and the owners of its losses."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradvac.engine.gradients.slots import DerivedSlot
from gradvac.engine.samples.calls import inner, tensors_within
from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Place
from gradvac.engine.tracing.trace import Trace
from gradvac.errors import GradientError

if TYPE_CHECKING:
    from gradvac.engine.planning.plan import PlannedPass


class TracedBatch:
    """A batch whose forward pass is traced.

    Attributes:
        trace: the trace of the forward pass.
        owners: the tasks of its samples.
        place: where they lie in the inputs.
        only: position of its task if all samples belong to one task; then nothing is followed.
        declared: whether a tensor that holds the samples has been seen.
        followed: whether the samples were followed to the losses without a gap.
        seen: shapes of the tensors given to the model, for errors.
        planned: the uses of parameters in a forward pass that was planned; None if it was traced.
    """

    def __init__(self, trace: Trace, owners: Owners, only: int | None, place: Place) -> None:
        self.trace, self.owners, self.only = trace, owners, only
        self.place = place
        self.declared = only is not None
        self.followed = False
        self.seen: list[list[int]] = []
        self.planned: PlannedPass | None = None

    def declare(self, x: Tensor) -> None:
        """Record where an input holds the samples, unless it is already known."""
        if not self.place.fits(x.shape):
            dims = " and ".join(map(str, self.place.dims))
            raise GradientError(
                f"an input is {list(x.shape)}; its dimension {dims} should hold "
                f"{len(self.owners)} samples, one for each task given"
            )
        if self.trace.place(x) is None and x.grad_fn is None and not isinstance(x, nn.Parameter):
            self.trace.set_place(x, self.place)
        self.declared = True

    def declare_inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Declare the model inputs that have as many samples; a forward pre-hook."""
        for x in tensors_within((args, kwargs)):
            if self.place.fits(x.shape):
                self.declare(x)
            self.seen.append(list(x.shape))

    def flat_losses(
        self, loss: Tensor, rows: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Owners]:
        """Return the losses ``[N]``, times the mask, and their owners.

        Raises:
            GradientError: if it is not clear which sample each loss belongs to.
        """
        if not self.declared and (self.trace.splits or rows is None):
            raise GradientError(
                f"no tensor with {len(self.owners)} samples was given to the model inside "
                f"`with engine.tasks(...)`, which has {len(self.owners)} task names: "
                + (f"tensors {self.seen} were; give" if self.seen else "it was not called; give")
                + " one name per sample, or name the batch by tasks(..., inputs=[...])"
            )
        info = self.trace.info(loss)
        place = info and info.place
        self.followed = info is not None and place is not None and info.why is None
        if self.only is not None and loss.requires_grad:
            loss = loss.reshape(-1) if mask is None else (loss * mask).reshape(-1)
            return loss, self.owners.taken(0, 1, 1).spread(len(loss), 1)
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
            owners = self.owners.selected(rows)
            if place is not None and self.followed and not place.flat(loss.shape).same(owners):
                raise GradientError("rows contradicts the samples that the losses were made from")
        elif place is not None and not place.separable:
            loss = loss if mask is None else loss * mask
            return loss.reshape(-1), place.flat(loss.shape)
        elif place is not None:
            owners = place.owners
            loss = loss.movedim(place.dim, 0)
            mask = None if mask is None else mask.movedim(place.dim, 0)
        elif len(loss) == len(self.owners) and not (self._ambiguous(loss) or (info and info.lost)):
            owners = self.owners
        else:
            raise GradientError(
                f"the loss is {list(loss.shape)} and the batch has {len(self.owners)} samples; say "
                "by `rows` which sample each loss belongs to"
            )
        if mask is not None:
            loss = loss * mask
        after = loss[0].numel() if loss.ndim > 1 else 1
        return loss.reshape(-1), owners.spread(1, after)

    def _ambiguous(self, loss: Tensor) -> bool:
        """Whether another dimension of untraced losses may be that of the samples."""
        dim = self.place.dim
        return 0 < dim < loss.ndim and loss.shape[dim] == len(self.owners)

    def pass_on(self, n_tasks: int) -> None:
        """Pass gradients of tensors computed only from parameters on to these parameters."""
        derived = [
            d for d in self.trace.derived if d.buffer is not None and not self._pass_on_lookup(d)
        ]
        sources = {id(slot): slot for d in derived for slot in d.sources}
        slots: list[Any] = list(sources.values())
        parameters = [slot.leaf for slot in slots]
        tensors = [d.tensor for d in derived]
        outputs = [d.buffer.to(d.tensor.dtype) for d in derived if d.buffer is not None]
        with self.trace.repeats():
            found = _gradients_of_each(tensors, parameters, outputs) if derived else []
        for slot, gradients in zip(slots, found, strict=True):
            slot.add(gradients)
        for d in derived:
            d.buffer = None

    def _pass_on_lookup(self, derived: DerivedSlot) -> bool:
        """Pass on the gradients of rows of a table, all tasks at once, as a planned step adds."""
        found = _looked_up(derived.tensor)
        if found is None or derived.buffer is None:
            return False
        table, rows = found
        slot = next(s for s in derived.sources if getattr(s, "leaf", None) is table)
        of_table = slot.zero(len(derived.buffer))
        of_rows = derived.buffer.view(len(derived.buffer), -1, table.shape[1])
        of_table.index_add_(1, rows.flatten(), of_rows.to(of_table))
        derived.buffer = None
        return True


def _gradients_of_each(
    tensors: list[Tensor], parameters: list[Tensor], outputs: list[Tensor]
) -> list[Tensor]:
    """Return ``[K, *shape]`` for each parameter, of K gradients of each tensor ``[K, *shape]``.

    On an accelerator all K at once where the operations allow it.
    """
    grad = inner(torch.autograd.grad)
    if outputs[0].device.type != "cpu":
        with suppress(RuntimeError):  # an operation that cannot be batched
            return list(grad(tensors, parameters, outputs, True, is_grads_batched=True))
    each = [grad(tensors, parameters, list(own), True) for own in zip(*outputs, strict=True)]
    return [torch.stack(stack) for stack in zip(*each, strict=True)]


def _looked_up(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the table and the rows if a tensor was looked up in a leaf; else None."""
    node: Any = tensor.grad_fn
    if type(node).__name__ != "EmbeddingBackward0" or node._saved_scale_grad_by_freq:
        return None
    table = getattr(node.next_functions[0][0], "variable", None)
    skipped = node._saved_padding_idx % (1 << 64) < node._saved_weight_sym_argsize_0
    return None if table is None or skipped else (table, node._saved_indices)
