"""Watches a forward pass: follows the samples and puts a meeting wherever a parameter joins them.

Three kinds of tensors carry a gradient: *tagged* ones, whose slices along one dimension belong to
one task each; *free* ones, parameters and what is computed from parameters alone; and *unknown*
ones, about which nothing may be assumed. A tagged and a free one may meet, and the gradient of the
free one is then split by tasks. An unknown one may meet neither. A tensor without gradient needs no
tag except where it meets a parameter; if it has none it counts as no sample's, which is never
wrong, only slower. Parameters of a task's own head stand aside, and so do leaves that are no
parameters and what is computed from these alone: their gradients are left to autograd.

Once something mixes samples there is nothing left to split. The forward pass then goes on as it is
written, and the tags only tell which sample each loss belongs to.
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
from torch.utils.hooks import RemovableHandle

from gradvac.engine import again
from gradvac.engine.calls import inner, is_torch, leaves, name_of, template, tensors_in, writes
from gradvac.engine.flow import Call, Mixed, Place
from gradvac.engine.meets import Meeting, Watch
from gradvac.engine.rules import IGNORED, KNOWN, Entry
from gradvac.engine.rules import Meeting as Kind
from gradvac.engine.slots import ChainSlot, ParameterSlot, Slot, ViewSlot
from gradvac.engine.special import COMPOSED, SPECIAL
from gradvac.errors import GradientError

_MARK = "_gradvac"
_VIEWS = frozenset(
    "t T mT transpose permute view reshape unflatten unsqueeze squeeze chunk split unbind select "
    "narrow getitem".split()
)


class Refusal(GradientError):
    """The gradient cannot be split by tasks in one pass; one backward per task can.

    Attributes:
        reason: the operation, its module and what is wrong, without the advice.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}; the gradient cannot be split by tasks in one pass, "
            'Engine(..., engine="per_task") runs one backward per task'
        )
        self.reason = reason


class _Known:
    """What is known of a tensor, valid while it is not written to."""

    __slots__ = ("aside", "base", "place", "slot", "trace", "version", "why")

    def __init__(
        self,
        trace: Trace,
        tensor: Tensor,
        place: Place | None = None,
        slot: Slot | None = None,
        base: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None,
        why: str | None = None,
        aside: bool = False,
    ) -> None:
        self.trace, self.version = trace, tensor._version
        self.place, self.slot, self.base, self.why, self.aside = place, slot, base, why, aside
        setattr(tensor, _MARK, self)


class Trace(TorchFunctionMode):
    """The forward pass of one batch.

    Args:
        slots: where the gradients of each parameter go, by its id.
        model: the model, to name modules in errors.
        device: where the model is.
        remember: whether to note the module of every meeting, which takes time.
        watch: what the meetings report to.
        heads: ids of the parameters that belong to one task's head each.
        splits: whether to split gradients at all.
        give_up: what to tell when the forward pass cannot be split; None to raise.

    Attributes:
        splits: whether gradients are still being split.
        chains: what was made of parameters alone and met samples.
        loose: operations on parameters and samples without gradient whose samples were lost.
    """

    def __init__(
        self,
        slots: dict[int, ParameterSlot],
        model: nn.Module,
        device: torch.device,
        remember: bool,
        watch: Watch,
        heads: frozenset[int] = frozenset(),
        splits: bool = True,
        give_up: Callable[[Refusal], None] | None = None,
    ) -> None:
        super().__init__()
        self.slots, self.heads = slots, heads
        self.model = model
        self.give_up = give_up
        self.splits = self._began = splits
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.remember = remember
        self.chains: list[ChainSlot] = []
        self.loose: list[str] = []
        self.watch = watch
        self.repeating = False
        self._plain_modules: set[int] = set()  # called after splitting ended
        self._noting: RemovableHandle | None = None

    def _note(self, module: nn.Module, args: Any) -> None:
        if not self.repeating:
            self._plain_modules.add(id(module))

    def end(self) -> None:
        """End the forward pass."""
        if self._noting is not None:
            self._noting.remove()
            self._noting = None

    def stop(self, refusal: Refusal) -> None:
        """Go on with the forward pass as it is written, or raise."""
        if self.give_up is None:
            raise refusal
        self.splits = False
        if not self.repeating:
            self.give_up(refusal)

    @contextmanager
    def repeats(self) -> Iterator[None]:
        """Watch the parts of the forward pass that activation checkpointing repeats inside.

        Autograd runs a backward without function modes. The first module of a part puts this one
        back, and autograd takes it off again where it resumes. A part is repeated as it was done:
        split, or not.
        """
        splits = self.splits
        if not self._began:
            yield
            return

        def enter(module: nn.Module, args: Any) -> None:
            if not torch._C._len_torch_function_stack():
                self.splits = splits or id(module) not in self._plain_modules
                self.__enter__()

        hook = register_module_forward_pre_hook(enter)
        self.repeating = True
        try:
            yield
        finally:
            self.repeating, self.splits = False, splits
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
        if self.splits:
            try:
                return self._split(func, name, args, kwargs)
            except Refusal as refusal:
                self.stop(refusal)
                if not self.repeating:
                    self._noting = register_module_forward_pre_hook(self._note)
        return self._plain(func, name, args, kwargs)

    def _split(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Do what was called so that gradients are split; a refusal leaves everything undone."""
        grad = torch.is_grad_enabled()
        tagged: list[tuple[Tensor, Place]] = []
        free: list[Tensor] = []
        unknown: Tensor | None = None
        aside = False
        for x in tensors_in(args, kwargs):
            known = self._known(x)
            if known is not None and known.place is not None:
                if x.requires_grad:
                    tagged.insert(0, (x, known.place))
                else:
                    tagged.append((x, known.place))
            elif grad and x.requires_grad:
                if self._aside(x) if known is None else known.aside:
                    aside = True
                elif x.grad_fn is None or (known is not None and known.why is None):
                    free.append(x)
                else:
                    unknown = x
        if not tagged and not free and unknown is None:
            out = func(*args, **kwargs)
            if aside:
                for x in tensors_in((out,), {}):
                    _Known(self, x, aside=True)
            return out
        if aside and free:
            raise self._error(
                name,
                "a parameter of a task's head, or what is no parameter, meets one that tasks share",
            )
        if unknown is not None:
            if free:
                raise self._error(name, f"it takes a tensor {self._origin(unknown)}")
            why, out = self._origin(unknown), func(*args, **kwargs)
            self._opaque(args[0] if name == "setitem" else out, why)
            return out
        if name in COMPOSED and (free or name not in KNOWN):
            with self:
                return COMPOSED[name](self, func)(*args, **kwargs)
        if not tagged:
            return self._free(func, name, args, kwargs, free)
        entry = KNOWN.get(name) if is_torch(func) else None
        if free:
            return self._meet(func, name, entry, args, kwargs, tagged, free)
        out = func(*args, **kwargs)
        self._follow(Call(func, name, args, kwargs, tagged, out), entry)
        return out

    def _plain(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Do what was called as it is, and follow the samples where that is easy."""
        if name == "multi_head_attention_forward":
            with self:
                return inner(func)(*args, **kwargs)
        tensors = tensors_in(args, kwargs)
        tagged = [(x, place) for x in tensors if (place := self.place(x)) is not None]
        tagged.sort(key=lambda pair: not pair[0].requires_grad)
        lost = any(x.grad_fn is not None and self.place(x) is None for x in tensors)
        out = func(*args, **kwargs)
        entry = KNOWN.get(name) if is_torch(func) else None
        if not tagged or entry is None:
            return out
        call = Call(func, name, args, kwargs, tagged, out)
        try:
            if tagged[0][0].requires_grad or not lost:
                self._tag_output(args[0] if name == "setitem" else out, entry.rule(call))
            elif isinstance(out, Tensor):  # labels and masks beside losses whose samples were lost
                same = [place for x, place in tagged if x.shape == out.shape]
                self._tag_output(out, same[0] if same else None)
        except Exception:  # only a help: the user may say whose losses they are
            pass
        return out

    def _follow(self, call: Call, entry: Entry | None) -> None:
        """Tag the output of an operation without parameters."""
        written = call.args[0] if call.name == "setitem" else call.out
        try:
            if entry is None:
                raise Mixed("gradvac does not know whether it keeps samples apart")
            _refuse(call)
            self._tag_output(written, entry.rule(call))
        except Mixed as reason:
            self._opaque(written, f"made by {call.name!r}: {reason}")
        except Exception:
            if any(out.requires_grad for out in tensors_in((written,), {})):
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

    def _aside(self, x: Tensor) -> bool:
        """Whether a tensor is a leaf whose gradient, if anybody wants it, is left to autograd."""
        return id(x) in self.heads or (x.grad_fn is None and not isinstance(x, nn.Parameter))

    def _check_leaf(self, x: Tensor, name: str) -> None:
        if x.grad_fn is None and id(x) not in self.slots:
            raise GradientError(
                f"{name!r} in {self._module()}: it takes a parameter {list(x.shape)} that is not "
                "in the model the engine was made for; put it there before the engine is made, "
                "or freeze it"
            )

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
            if self.remember:
                self.loose.append(f"{name!r} in {self._module()}: {reason}")
            return self._free(func, name, args, kwargs, free)  # the tags were hints only
        if writes(func):
            out = args[0].copy_(out)
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
        inplace = writes(call.func)
        special = None if inplace else SPECIAL.get(call.name)
        if special is not None and (found := special(self, call, free)) is not None:
            return found
        tensors: list[Tensor] = []
        fill = template(call.args, call.kwargs, tensors)
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

    def _error(self, name: str, reason: str) -> Refusal:
        return Refusal(f"{name!r} in {self._module()}: {reason}")


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
