"""Watches a forward pass: follows the samples and puts a meeting wherever a parameter joins them.

Three kinds of tensors carry a gradient: *tagged* ones, whose slices along one dimension belong to
one task each; *free* ones, parameters and what is computed from parameters alone; and *unknown*
ones, about which nothing may be assumed. A tagged and a free one may meet, and the gradient of the
free one is then split by tasks. An unknown one may meet neither. A tensor without gradient needs no
tag except where it meets a parameter; if it has none it counts as no sample's, which is never
wrong, only slower.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from gradvac.engine import again
from gradvac.engine.calls import is_torch, leaves, name_of, template, tensors_in, writes
from gradvac.engine.flow import Call, Mixed, Place
from gradvac.engine.meets import Meeting, Watch
from gradvac.engine.rules import IGNORED, KNOWN, Entry
from gradvac.engine.rules import Meeting as Kind
from gradvac.engine.slots import ChainSlot, ParameterSlot, Slot, ViewSlot
from gradvac.engine.special import COMPOSED, SPECIAL
from gradvac.errors import GradientError

_MARK = "_gradvac"
_INSTEAD = "use PerTaskEngine for this model"
_VIEWS = frozenset(
    "t T mT transpose permute view reshape unflatten unsqueeze squeeze chunk split unbind select "
    "narrow getitem".split()
)


class _Known:
    """What is known of a tensor, valid while it is not written to."""

    __slots__ = ("base", "place", "slot", "trace", "version", "why")

    def __init__(
        self,
        trace: Trace,
        tensor: Tensor,
        place: Place | None = None,
        slot: Slot | None = None,
        base: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None,
        why: str | None = None,
    ) -> None:
        self.trace, self.version = trace, tensor._version
        self.place, self.slot, self.base, self.why = place, slot, base, why
        setattr(tensor, _MARK, self)


class Trace(TorchFunctionMode):
    """The forward pass of one batch.

    Args:
        slots: where the gradients of each parameter go, by its id.
        model: the model, to name modules in errors.
        device: where the model is.
        remember: whether to note the module of every meeting, which takes time.
        watch: what the meetings report to.
    """

    def __init__(
        self,
        slots: dict[int, ParameterSlot],
        model: nn.Module,
        device: torch.device,
        remember: bool,
        watch: Watch,
    ) -> None:
        super().__init__()
        self.slots = slots
        self.model = model
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.remember = remember
        self.chains: list[ChainSlot] = []
        self.watch = watch
        self.repeating = False

    @contextmanager
    def repeats(self) -> Iterator[None]:
        """Watch the parts of the forward pass that activation checkpointing repeats inside.

        Autograd runs a backward without function modes. The first module of a part puts this one
        back, and autograd takes it off again where it resumes.
        """

        def enter(module: nn.Module, args: Any) -> None:
            if not torch._C._len_torch_function_stack():
                self.__enter__()

        hook = register_module_forward_pre_hook(enter)
        self.repeating = True
        try:
            yield
        finally:
            self.repeating = False
            hook.remove()

    def tag(self, tensor: Tensor, place: Place) -> None:
        """Declare where the samples lie in a tensor."""
        _Known(self, tensor, place)

    def place(self, tensor: Tensor) -> Place | None:
        """Return where the samples lie in a tensor, None if that is not known."""
        known = self._known(tensor)
        return known and known.place

    def _known(self, tensor: Tensor) -> _Known | None:
        known: _Known | None = getattr(tensor, _MARK, None)
        if known is None or known.trace is not self or known.version != tensor._version:
            return None
        return known

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Do what was called, and follow samples and parameters through it."""
        kwargs = kwargs or {}
        name = name_of(func)
        if name in IGNORED:
            return func(*args, **kwargs)
        grad = torch.is_grad_enabled()
        tagged: list[tuple[Tensor, Place]] = []
        free: list[Tensor] = []
        unknown: Tensor | None = None
        for x in tensors_in(args, kwargs):
            known = self._known(x)
            if known is not None and known.place is not None:
                if x.requires_grad:
                    tagged.insert(0, (x, known.place))
                else:
                    tagged.append((x, known.place))
            elif grad and x.requires_grad:
                if x.grad_fn is None or (known is not None and known.why is None):
                    free.append(x)
                else:
                    unknown = x
        if not tagged and not free and unknown is None:
            return func(*args, **kwargs)
        if unknown is not None:
            if free:
                raise self._error(name, f"it takes a tensor {self._origin(unknown)}")
            return self._opaque(func(*args, **kwargs), self._origin(unknown))
        if free and name in COMPOSED:
            with self:
                return COMPOSED[name](func)(*args, **kwargs)
        if not tagged:
            return self._free(func, name, args, kwargs, free)
        entry = KNOWN.get(name) if is_torch(func) else None
        if free:
            return self._meet(func, name, entry, args, kwargs, tagged, free)
        out = func(*args, **kwargs)
        self._follow(Call(func, name, args, kwargs, tagged, out), entry)
        return out

    def _follow(self, call: Call, entry: Entry | None) -> None:
        """Tag the output of an operation without parameters."""
        try:
            if entry is None:
                raise Mixed("gradvac does not know whether it keeps samples apart")
            _refuse(call)
            written = call.args[0] if call.name == "setitem" else call.out
            self._tag_output(written, entry.rule(call))
        except Mixed as reason:
            self._opaque(call.out, f"made by {call.name!r}: {reason}")
        except Exception:
            if any(out.requires_grad for out in tensors_in((call.out,), {})):
                raise

    def _tag_output(self, out: Any, places: Any) -> None:
        if isinstance(out, Tensor):
            if places is not None:
                _Known(self, out, places)
        elif isinstance(out, tuple | list):
            each = [places] * len(out) if isinstance(places, Place) or places is None else places
            for piece, place in zip(out, each, strict=True):
                self._tag_output(piece, place)

    def _opaque(self, out: Any, why: str) -> Any:
        """Mark tensors that carry a gradient as unknown, with the reason."""
        for x in tensors_in((out,), {}):
            if x.requires_grad:
                _Known(self, x, why=why)
        return out

    def _free(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        free: list[Tensor],
    ) -> Any:
        """Do an operation on parameters alone."""
        for x in free:
            self._check_leaf(x, name)
        out = func(*args, **kwargs)
        view = name in _VIEWS and len(free) == 1 and args and args[0] is free[0]
        if isinstance(out, Tensor):
            base = (free[0], lambda t: func(t, *args[1:], **kwargs)) if view else None
            _Known(self, out, base=base)
        else:
            for n, piece in enumerate(out if isinstance(out, tuple | list) else ()):
                pick = lambda t, n=n: func(t, *args[1:], **kwargs)[n]
                if isinstance(piece, Tensor):
                    _Known(self, piece, base=(free[0], pick) if view else None)
        return out

    def _check_leaf(self, x: Tensor, name: str) -> None:
        if x.grad_fn is None and id(x) not in self.slots and x is not self.anchor:
            raise self._error(
                name, f"it takes a tensor {list(x.shape)} that requires a gradient but is not a "
                "parameter of the model"
            )  # fmt: skip

    def slot(self, x: Tensor) -> Slot:
        """Return where the gradients of a free tensor go."""
        if x.grad_fn is None:
            return self.slots[id(x)]
        known = self._known(x)
        assert known is not None
        if known.slot is None:
            if known.base is not None:
                known.slot = ViewSlot(self.slot(known.base[0]), known.base[1])
            else:
                found = [self.slots[id(p)] for p in leaves(x) if id(p) in self.slots]
                known.slot = ChainSlot(x, list(found))
                self.chains.append(known.slot)
        return known.slot

    def _meet(
        self,
        func: Callable[..., Any],
        name: str,
        entry: Entry | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tagged: list[tuple[Tensor, Place]],
        free: list[Tensor],
    ) -> Any:
        """Do an operation in which parameters meet samples."""
        for x in free:
            self._check_leaf(x, name)
        meeting: Meeting | None = None
        try:
            if entry is None or entry.meeting is Kind.NONE:
                raise Mixed("gradvac does not know how it splits by samples")
            call = Call(func, name, args, kwargs, tagged, None)
            _refuse(call)
            out, meeting = self._do(call, entry, free)
            place = entry.rule(call._replace(out=out))
            if not isinstance(place, Place):
                raise Mixed("its output is not a single tensor")
        except Mixed as reason:
            if any(x.requires_grad for x, _ in tagged):
                raise self._error(name, str(reason)) from None
            return self._free(func, name, args, kwargs, free)  # the tags were hints only
        meeting.place = place
        if not self.repeating:  # a recomputation by activation checkpointing counts no use
            for slot in meeting.slots:
                if slot is not None:
                    slot.expect()
                if isinstance(slot, ParameterSlot) and name == "embedding":
                    slot.lookups += 1
        _Known(self, out, place)
        return out

    def meeting(self, slots: Sequence[Slot | None], name: str) -> Meeting:
        """Return a meeting in the operation ``name``, with its module if errors may need it."""
        where = f"{name!r} in {self._module()}" if self.remember else repr(name)
        return Meeting(slots, where, self.watch)

    def _do(self, call: Call, entry: Entry, free: list[Tensor]) -> tuple[Tensor, Meeting]:
        """Call the function whose backward splits the gradient."""
        special = SPECIAL.get(call.name)
        if special is not None and (found := special(self, call, free)) is not None:
            return found
        tensors: list[Tensor] = []
        fill = template(call.args, call.kwargs, tensors)
        inplace = writes(call.func)
        places = {id(x): place for x, place in call.inputs}
        ids = {id(x) for x in free}
        slots = [self.slot(x) if id(x) in ids else None for x in tensors]
        meeting = self.meeting(slots, call.name)
        given = [x.detach() if id(x) in ids else x for x in tensors]

        def func(*values: Tensor) -> Tensor:
            values = (values[0].clone(), *values[1:]) if inplace else values
            positional, named = fill(values)
            return call.func(*positional, **named)

        where = [places.get(id(x)) for x in tensors]
        work = again.Again(func, where, slots, self.anchor.device.type)
        if inplace:
            given[0] = given[0].clone()
        if entry.meeting is Kind.POINTWISE:
            out = again.pointwise(self.anchor, work, meeting, given)
        else:
            masked = entry.meeting is Kind.MASKED or any(_spans(x, call.inputs[0]) for x in free)
            out = again.slices(self.anchor, work, masked, meeting, given)
        if inplace:
            out = call.args[0].copy_(out)
        return out, meeting

    def _origin(self, x: Tensor) -> str:
        known = self._known(x)
        if known is not None and known.why is not None:
            return known.why
        made = type(x.grad_fn).__name__
        return (
            f"made by {made}, out of sight (by a custom autograd function, in place through a "
            "view, or before `with engine.tasks`; of activation checkpointing, use_reentrant=False "
            "works)"
        )

    def _module(self) -> str:
        names = {id(module): name for name, module in self.model.named_modules()}
        frame = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in names:
                return f"module {names[id(owner)] or 'the model'!r} ({type(owner).__name__})"
            frame = frame.f_back
        return "no module"

    def _error(self, name: str, reason: str) -> GradientError:
        return GradientError(
            f"{name!r} in {self._module()}: {reason}; the gradient cannot be split by tasks in one "
            f"pass, {_INSTEAD}"
        )


def _refuse(call: Call) -> None:
    """Refuse operations that mix samples whatever their shapes."""
    if call.name == "batch_norm" and call.argument(5, "training", False):
        raise Mixed(
            "batch normalisation in training mode mixes samples; put it in eval mode or use "
            "GroupNorm or LayerNorm"
        )
    if call.name == "instance_norm" and call.argument(1, "running_mean") is not None:
        raise Mixed("it keeps running statistics over samples; set track_running_stats=False")
    if call.kwargs.get("out") is not None:
        raise Mixed("it writes to out=")


def _spans(x: Tensor, sample: tuple[Tensor, Place]) -> bool:
    """Whether a free tensor may have values of its own for each sample."""
    other, (rows, dim) = sample
    d = dim - other.ndim + x.ndim
    return 0 <= d < x.ndim - 2 and x.shape[d] == len(rows) and len(rows) > 1
