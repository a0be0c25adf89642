"""How a trace handles operations on parameters, alone or together with samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import _StopRecomputationError

from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.gradients.slots import DerivedSlot, Slot, ViewSlot
from gradvac.engine.samples.calls import leaves, template, writes
from gradvac.engine.samples.crossed import places_after
from gradvac.engine.samples.operations import Entry, SplitBy
from gradvac.engine.samples.places import Call, Mixed, Place
from gradvac.engine.tracing.any_operation import Recomputation, pointwise, slices
from gradvac.engine.tracing.formulas import FORMULAS
from gradvac.engine.tracing.parameter_use import BackwardState, ParameterUse
from gradvac.engine.tracing.registered import use_registered
from gradvac.engine.tracing.tensor_info import (
    Refusal,
    TensorInfo,
    TensorPlaces,
    because,
    fits,
    refuse,
)
from gradvac.errors import GradientError

_VIEWS = frozenset(
    "t T mT transpose permute view reshape unflatten unsqueeze squeeze chunk split unbind select "
    "narrow getitem".split()
)


class ParameterTrace(TensorPlaces):
    """Gives every tensor made of parameters a slot, and splits its gradient where it is used.

    Args:
        model: the model, to name modules in errors.
        slots: where the gradients of each parameter go, by its id.
        device: where the model is.
        remember: whether to record the module of every use of parameters, which takes time.
        backward_state: the state that uses of parameters report to.

    Attributes:
        anchor: a number that requires a gradient, so that each use has a backward.
        derived: slots of tensors computed only from parameters and used with samples.
        repeating: whether activation checkpointing repeats a part of the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: dict[int, ParameterSlot],
        device: torch.device,
        remember: bool,
        backward_state: BackwardState,
    ) -> None:
        super().__init__(model)
        self.slots, self.remember, self.backward_state = slots, remember, backward_state
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.derived: list[DerivedSlot] = []
        self.repeating = False

    def slot(self, x: Tensor) -> Slot:
        """Return the slot of a tensor computed only from parameters."""
        if x.grad_fn is None:
            return self.slots[id(x)]
        info = self.info(x)
        assert info is not None
        if info.slot is None:
            if info.base is not None:
                view = ViewSlot(self.slot(info.base[0]), info.base[1])
                info.slot = view if view.probe() is not None else None
            if info.slot is None:
                found = [self.slots[id(p)] for p in leaves(x) if id(p) in self.slots]
                info.slot = DerivedSlot(x, list(found))
                self.derived.append(info.slot)
        return info.slot

    def new_use(self, slots: Sequence[Slot | None], name: str) -> ParameterUse:
        """Return a use in the operation ``name``, with its module if errors may need it."""
        where = f"{name!r} in {self.module()}" if self.remember else repr(name)
        return ParameterUse(slots, where, self.backward_state)

    def do_on_parameters(self, call: Call, parameters: Sequence[Tensor]) -> Any:
        """Run an operation on tensors computed only from parameters."""
        func, name, args, kwargs = call.func, call.name, call.args, call.kwargs
        for x in parameters:
            self._check_leaf(x, name)
        out = func(*args, **kwargs)
        written = args[0] if name == "setitem" else out
        view = name in _VIEWS and len(parameters) == 1 and args and args[0] is parameters[0]
        if isinstance(written, Tensor):
            base = (parameters[0], lambda t: func(t, *args[1:], **kwargs)) if view else None
            TensorInfo(self, written, base=base)
        else:
            for n, piece in enumerate(out if isinstance(out, tuple | list) else ()):
                pick = lambda t, n=n: func(t, *args[1:], **kwargs)[n]
                if isinstance(piece, Tensor):
                    TensorInfo(self, piece, base=(parameters[0], pick) if view else None)
        return out

    def _check_leaf(self, x: Tensor, name: str) -> None:
        if x.grad_fn is None and id(x) not in self.slots:
            raise GradientError(
                f"{name!r} in {self.module()}: it takes a parameter {list(x.shape)} that is not "
                "in the model the engine was made for; put it there before the engine is made, "
                "or freeze it"
            )

    def use_parameters(self, call: Call, entry: Entry | None, parameters: list[Tensor]) -> Any:
        """Run an operation on samples and on tensors made of parameters."""
        for x in parameters:
            self._check_leaf(x, call.name)
        given, written = call, call.args[0] if writes(call.func) else None
        if any(x is written for x in parameters):
            before = call.args[0].clone()  # its sources are lost when it is written to
            TensorInfo(self, before)
            parameters = [before if x is written else x for x in parameters]
            given = replace(call, args=[before, *call.args[1:]])
        try:
            if entry is None or entry.split_by is SplitBy.NONE:
                raise Mixed("gradvac does not know how it splits by samples")
            refuse(given)
            if entry.split_by is SplitBy.REGISTERED:
                out, place, uses = use_registered(self, given, entry, parameters)
            else:
                out, use = self._split_by_samples(given, entry, parameters)
                given.out = out
                place, uses = places_after(entry.rule, given), [use]
                if not isinstance(place, Place) or not fits(out, place):
                    raise Mixed("its output is not a single tensor of as many samples")
                use.place = place
        except (Refusal, _StopRecomputationError):
            raise
        except Exception as error:  # also errors of rules not made for such arguments
            if any(x.requires_grad for x, _ in call.inputs):
                raise self.error(call.name, because(error)) from error
            logging.getLogger("gradvac").debug("%r is not split: %r", call.name, error)
            return self.do_on_parameters(call, parameters)  # the places were hints only
        if written is not None:
            out = written.copy_(out)
        if not self.repeating:  # a recomputation by activation checkpointing counts no use
            for slot in (slot for use in uses for slot in use.slots):
                if slot is not None:
                    slot.expect()
                if isinstance(slot, ParameterSlot) and call.name == "embedding":
                    slot.lookups += 1
        self.set_places(out, place)
        return out

    def _split_by_samples(
        self, call: Call, entry: Entry, parameters: list[Tensor]
    ) -> tuple[Tensor, ParameterUse]:
        """Call the function whose backward splits the gradient."""
        inplace = writes(call.func)
        formula = None if inplace else FORMULAS.get(call.name)
        if formula is not None and (found := formula(self, call, parameters)) is not None:
            return found
        tensors: list[Tensor] = []
        fill = template(call.args, call.kwargs, tensors)
        places = {id(x): place for x, place in call.inputs}
        ids = {id(x) for x in parameters}
        slots = [self.slot(x) if id(x) in ids else None for x in tensors]
        use = self.new_use(slots, call.name)
        given = list(tensors)

        def func(*values: Tensor) -> Tensor:
            values = (values[0].clone(), *values[1:]) if inplace else values
            positional, named = fill(values)
            return call.func(*positional, **named)

        where = [places.get(id(x)) for x in tensors]
        work = Recomputation(func, where, slots, self.anchor.device.type)
        if inplace:
            given[0] = given[0].clone()
        if entry.split_by is SplitBy.POINTWISE:
            return pointwise(self.anchor, work, use, *given), use
        masked = entry.split_by is SplitBy.MASKED
        masked = masked or any(_may_hold_samples(x, call.inputs[0]) for x in parameters)
        return slices(self.anchor, work, masked, use, *given), use


def _may_hold_samples(x: Tensor, sample: tuple[Tensor, Place]) -> bool:
    """Whether a tensor made of parameters may have separate values for each sample."""
    other, (owners, dim) = sample
    d = dim - other.ndim + x.ndim
    return 0 <= d < x.ndim - 2 and x.shape[d] == len(owners) and len(owners) > 1
