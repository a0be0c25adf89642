"""Registered operations that take parameters: the K gradients of these.

The operation runs as written, on views of the parameters that pass no gradient on while gradients
are split. After each of its results stands a use, whose backward computes the gradients of every
task from the rows of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from gradvac.engine.gradients.slots import Slot
from gradvac.engine.samples.calls import template
from gradvac.engine.samples.crossed import places_after
from gradvac.engine.samples.operations import Entry
from gradvac.engine.samples.places import Call, Mixed, Place
from gradvac.engine.tracing.any_operation import Recomputation, split_by_tasks
from gradvac.engine.tracing.parameter_use import ParameterUse
from gradvac.engine.tracing.tensor_info import fits
from gradvac.errors import GradientError

if TYPE_CHECKING:
    from gradvac.engine.tracing.parameter_trace import ParameterTrace

Fill = Callable[[Sequence[Tensor]], tuple[list[Any], dict[str, Any]]]


class _Formula(Recomputation):
    """A registered formula in place of recomputing the operation."""

    def __init__(
        self,
        call: Call,
        formula: Callable[..., Sequence[Tensor | None]],
        fill: Fill,
        places: Sequence[Place | None],
        slots: Sequence[Slot | None],
        device: str,
    ) -> None:
        super().__init__(call.func, places, slots, device)
        self.name, self.formula, self.fill = call.name, formula, fill
        self.arguments = [n for n, x in enumerate(call.args) if isinstance(x, Tensor)]
        if len(self.arguments) < len(slots):
            raise Mixed("gradients=... takes tensors as arguments by position alone")

    def gradients(
        self, tensors: Sequence[Tensor], wanted: Sequence[bool], dy: Tensor
    ) -> list[Tensor | None]:
        """Gradients of the wanted tensors by the formula, None for the others."""
        args, kwargs = self.fill(tensors)
        with torch.no_grad():
            found = list(self.formula(dy, *args, **kwargs))
        if len(found) != len(args):
            raise GradientError(
                f"gradients=... of {self.name!r} returned {len(found)} entries; it must return one "
                f"for each of the {len(args)} arguments, as backward does"
            )
        return [
            self._checked(found[n], n, x) if w else None
            for n, x, w in zip(self.arguments, tensors, wanted, strict=True)
        ]

    def _checked(self, gradient: Tensor | None, n: int, x: Tensor) -> Tensor | None:
        if gradient is not None and gradient.shape != x.shape:
            raise GradientError(
                f"gradients=... of {self.name!r} returned {list(gradient.shape)} for argument {n}, "
                f"which is {list(x.shape)}"
            )
        return gradient


class _Gate(Function):
    """A view of a parameter that passes its gradient on in plain passes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plain: Callable[[bool], bool]) -> Tensor:
        ctx.plain = plain
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        return (gradients[0] if ctx.plain(True) else None), None


class _After(Function):
    """A copy of a result; its backward collects the gradients of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, y: Tensor, operation: Recomputation, use: ParameterUse,
        tensors: Sequence[Tensor],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(*tensors)
        ctx.operation, ctx.use = operation, use
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        use: ParameterUse = ctx.use
        with torch._C.DisableTorchFunction():
            if use.collects(dy):
                tensors = ctx.saved_tensors
                nothing: list[Tensor | None] = [None] * len(tensors)
                split_by_tasks(ctx.operation, use.masked, use.place, tensors, nothing, dy)
                use.finish()
        return None, dy, None, None, None


_gate, _after = _Gate.apply, _After.apply


def use_registered(
    trace: ParameterTrace, call: Call, entry: Entry, parameters: Sequence[Tensor]
) -> tuple[Any, Any, list[ParameterUse]]:
    """Run a registered operation on samples and on tensors made of parameters.

    Returns:
        What it returned, the places of that, and the uses of the parameters.
    """
    tensors: list[Tensor] = []
    fill = template(call.args, call.kwargs, tensors)
    ids = {id(x) for x in parameters}
    slots = [trace.slot(x) if id(x) in ids else None for x in tensors]
    plain = trace.new_use(slots, call.name).plain
    given = [_gate(x, plain) if slot else x for x, slot in zip(tensors, slots, strict=True)]
    args, kwargs = fill(given)
    call.out = out = call.func(*args, **kwargs)
    places = places_after(entry.rule, call)
    outs = [out] if isinstance(out, Tensor) else list(out)
    each = [places] * len(outs) if isinstance(places, Place) else list(places or ())
    with_gradient = [n for n, y in enumerate(outs) if isinstance(y, Tensor) and y.requires_grad]
    if entry.gradients is not None and len(with_gradient) != 1:
        raise Mixed("gradients=... is for operations that return one tensor with a gradient")
    at, kept = [call.place(x) for x in tensors], [x.detach() for x in tensors]
    uses: list[ParameterUse] = []
    for n in with_gradient:
        place, device = each[n], trace.anchor.device.type
        if place is None or not fits(outs[n], place):
            raise Mixed("its output has another size than its samples")
        if entry.gradients is not None:
            operation = _Formula(call, entry.gradients, fill, at, slots, device)
        else:
            operation = Recomputation(_result(call, fill, n), at, slots, device)
        use = trace.new_use(slots, call.name)
        use.place = place
        outs[n] = _after(trace.anchor, outs[n], operation, use, kept)
        uses.append(use)
    return outs[0] if isinstance(out, Tensor) else type(out)(outs), places, uses


def _result(call: Call, fill: Fill, n: int) -> Callable[..., Tensor]:
    """Return a function of the tensors that computes one result."""

    def run(*values: Tensor) -> Tensor:
        args, kwargs = fill(values)
        out = call.func(*args, **kwargs)
        return out if isinstance(out, Tensor) else out[n]

    return run
