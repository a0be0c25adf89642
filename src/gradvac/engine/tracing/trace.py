"""Watches a forward pass: follows the samples and puts a meeting wherever a parameter joins them.

Three kinds of tensors carry a gradient: *tagged* ones, whose slices along one dimension belong to
one task each; *free* ones, parameters and what is computed from parameters alone; and *unknown*
ones, about which nothing may be assumed. A tagged and a free one may meet, and the gradient of the
free one is then split by tasks. An unknown one may meet neither. A tensor without gradient needs no
tag except where it meets a parameter; if it has none it counts as no sample's, which is never
wrong, only slower. Parameters of a task's own head stand aside, and so do leaves that are no
parameters and what is computed from these alone: their gradients are left to autograd.

Once an unknown one meets a parameter there is nothing left to split. The forward pass then goes on
as it is written, and the tags only tell which sample each loss belongs to. What is done with an
operation depends on its arguments alone, so that activation checkpointing repeats it in the same
way whatever happened in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import _StopRecomputationError

from gradvac.engine.gradients.slots import ChainSlot, Slot, ViewSlot
from gradvac.engine.gradients.stores import ParameterSlot
from gradvac.engine.samples.calls import inner, leaves, name_of, template, tensors_in, writes
from gradvac.engine.samples.declared import entry_of
from gradvac.engine.samples.flow import Call, Mixed, Place, same_place
from gradvac.engine.samples.rules import IGNORED, KNOWN, Entry
from gradvac.engine.samples.rules import Meeting as Kind
from gradvac.engine.tracing import any_operation as again
from gradvac.engine.tracing.formulas import COMPOSED, SPECIAL
from gradvac.engine.tracing.known import Known, Refusal, Tags, because, fits, refuse
from gradvac.engine.tracing.meetings import Flow, Meeting, Watch
from gradvac.errors import GradientError

_VIEWS = frozenset(
    "t T mT transpose permute view reshape unflatten unsqueeze squeeze chunk split unbind select "
    "narrow getitem".split()
)
_BACKWARD = "backward", "grad"


class Trace(Tags):
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
        proved: what forward passes did that were checked already; None if nothing is to be.

    Attributes:
        splits: whether gradients are still being split.
        chains: what was made of parameters alone and met samples.
        new: what this forward pass does that is not among ``proved``.
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
        proved: set[Any] | None = None,
    ) -> None:
        super().__init__(model)
        self.slots, self.heads = slots, heads
        self.give_up = give_up
        self.splits = self._began = splits
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.remember = remember
        self.chains: list[ChainSlot] = []
        self.watch = watch
        self.repeating = False
        self.new: set[Any] = set()
        self._proved = proved
        self._last = ""

    def stop(self, refusal: Refusal) -> None:
        """Go on with the forward pass as it is written, or raise."""
        if self.repeating:  # it was said when the forward pass was done
            return
        if self.give_up is None:
            raise refusal
        if self.splits:
            self.splits = False
            self.give_up(refusal)

    @contextmanager
    def repeats(self) -> Iterator[None]:
        """Watch the parts of the forward pass that activation checkpointing repeats inside.

        A backward pass runs with the function modes of whoever started it.
        """
        if not self._began:
            yield
            return
        before, self.repeating = self.repeating, True
        watching = any(mode is self for mode in _get_current_function_mode_stack())
        try:
            with nullcontext() if watching else self:
                yield
        finally:
            self.repeating = before

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
        if name in _BACKWARD:
            return self._backward(func, name, args, kwargs)
        if name in IGNORED:
            return func(*args, **kwargs)
        if not self._began:
            return self._whole(func, name, args, kwargs)
        try:
            return self._split(func, name, args, kwargs)
        except Refusal as refusal:
            out = self._unknown(func, name, args, kwargs, refusal.reason)
            self.stop(refusal)
            return out

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
            known = self.known(x)
            if known is not None and known.place is not None and known.why is None:
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
                    Known(self, x, aside=True)
            return out
        self._note(name, tagged, free, unknown, aside)
        if aside and free:
            raise self.error(
                name,
                "a parameter of a task's head, or what is no parameter, meets one that tasks share",
            )
        if unknown is not None:
            if free:
                raise self.error(name, f"it takes a tensor {self.origin(unknown)}")
            return self._unknown(func, name, args, kwargs, self.origin(unknown))
        if name in COMPOSED and (free or name not in KNOWN):
            with self:
                return COMPOSED[name](self, func)(*args, **kwargs)
        if not tagged:
            return self._free(func, name, args, kwargs, free)
        entry = entry_of(func, name)
        if free:
            return self._meet(func, name, entry, args, kwargs, tagged, free)
        if name == "setitem":
            return self._assign(Call(func, name, args, kwargs, tagged, None), entry)
        if name == "copy" and args[0]._is_view():
            return self._copy_into(Call(func, name, args, kwargs, tagged, args[0]), entry)
        out = func(*args, **kwargs)
        self.follow(Call(func, name, args, kwargs, tagged, out), entry)
        return out

    def _assign(self, call: Call, entry: Entry | None) -> None:
        """Do ``x[index] = value``, of which the rule is to see what was there before."""
        places, why = None, ""
        try:
            assert entry is not None
            places = entry.rule(call)
        except Exception as error:
            why = f"made by {call.name!r}: {because(error)}"
        call.func(*call.args)
        if why:
            self.opaque(call, None, why)
        else:
            self.tag_output(call.args[0], places)

    def _copy_into(self, call: Call, entry: Entry | None) -> Any:
        """Copy samples into a part of a buffer, which then holds them where the part does."""
        view, base = call.args[0], call.args[0]._base
        before = self.place(base)
        empty = self.known(base) is None and not base.requires_grad
        out = call.func(*call.args, **call.kwargs)
        self.follow(call, entry)
        place = self.place(view)
        if place is not None:
            size, stride = view.shape[place.dim], view.stride(place.dim)
            fitting = [d for d, n in enumerate(base.shape) if (n, base.stride(d)) == (size, stride)]
            whole = Place(place.rows, fitting[0]) if len(fitting) == 1 else None
            if whole is not None and (empty or (before is not None and same_place(before, whole))):
                Known(self, base, whole)
        return out

    def _note(
        self,
        name: str,
        tagged: Sequence[tuple[Tensor, Place]],
        free: Sequence[Tensor],
        unknown: Tensor | None,
        aside: bool,
    ) -> None:
        """Note what the forward pass does next, unless it has been checked already."""
        if self.repeating or self._proved is None:
            return
        places = tuple(place.dim for _, place in tagged)
        joined = tuple(id(x) if x.grad_fn is None else 0 for x in free)
        done = self._last, name, places, joined, unknown is not None, aside
        self._last = name
        if done not in self._proved:
            self.new.add(done)

    def _unknown(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        why: str,
    ) -> Any:
        """Do an operation that cannot be followed."""
        inputs, lost = self._whose_inputs(args, kwargs)
        out = func(*args, **kwargs)  # an error of the user's own comes from here
        entry = entry_of(func, name)
        self.opaque(Call(func, name, args, kwargs, inputs, out), entry, why, lost)
        return out

    def _whole(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Do what was called as it is, and follow the samples where that is easy."""
        if name == "multi_head_attention_forward":
            with self:
                return inner(func)(*args, **kwargs)
        tagged, lost = self._whose_inputs(args, kwargs)
        out = func(*args, **kwargs)
        call = Call(func, name, args, kwargs, tagged, out)
        written = args[0] if name == "setitem" else out
        entry = entry_of(func, name)
        hidden = any(
            x.grad_fn is not None and self._soft(x) is None for x in tensors_in(args, kwargs)
        )
        if tagged and hidden and not tagged[0][0].requires_grad:
            # Labels and masks beside losses whose samples were lost.
            same = [place for x, place in tagged if x.shape == getattr(out, "shape", None)]
            self.tag_output(out, same[0] if same else None)
        elif isinstance(written, Tensor) and written.requires_grad:
            self.opaque(call, entry, "", lost)
        elif tagged and entry is not None:
            with suppress(Exception):  # only a help: the user may say whose losses they are
                self.tag_output(written, entry.rule(call))
        return out

    def _whose_inputs(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[list[tuple[Tensor, Place]], bool]:
        """Return the arguments whose samples are known, for certain or not, those with a gradient
        first; and whether any argument has lost them.
        """
        known = [(x, k) for x in tensors_in(args, kwargs) if (k := self.known(x))]
        inputs = [(x, k.place) for x, k in known if k.place is not None]
        inputs.sort(key=lambda pair: not pair[0].requires_grad)
        return inputs, any(k.lost for _, k in known)

    def _soft(self, x: Tensor) -> Place | None:
        known = self.known(x)
        return known and known.place

    def _backward(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Run a backward pass of the user's inside the forward pass, as it is written.

        Raises:
            GradientError: for ``loss.backward()`` that reaches the parameters of the engine.
        """
        if self.watch.flow is not Flow.FOREIGN:  # inside the backward of a custom function
            return inner(func)(*args, **kwargs)
        if name == "backward":
            reached = {id(leaf) for x in tensors_in(args, {}) for leaf in leaves(x)}
            if not reached.isdisjoint(self.slots):
                raise GradientError(
                    "loss.backward() inside `with engine.tasks(...)` fills p.grad with the "
                    "gradient of all tasks together, without the method; call "
                    "engine.backward(loss) instead (torch.autograd.grad may be used)"
                )
        with self.watch.flowing(Flow.PLAIN), self.repeats():
            out = inner(func)(*args, **kwargs)
        if name == "grad":
            inputs = tensors_in(args[1:2], {k: v for k, v in kwargs.items() if k == "inputs"})
            for x, g in zip(inputs, out, strict=False):
                place = self._soft(x)
                if isinstance(g, Tensor) and not g.requires_grad and place is not None:
                    self.tag(g, place)
                elif isinstance(g, Tensor) and g.requires_grad:
                    Known(self, g, place, why="made by torch.autograd.grad, which goes through "
                          "samples and parameters out of sight")  # fmt: skip
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
        written = args[0] if name == "setitem" else out
        view = name in _VIEWS and len(free) == 1 and args and args[0] is free[0]
        if isinstance(written, Tensor):
            base = (free[0], lambda t: func(t, *args[1:], **kwargs)) if view else None
            Known(self, written, base=base)
        else:
            for n, piece in enumerate(out if isinstance(out, tuple | list) else ()):
                pick = lambda t, n=n: func(t, *args[1:], **kwargs)[n]
                if isinstance(piece, Tensor):
                    Known(self, piece, base=(free[0], pick) if view else None)
        return out

    def _aside(self, x: Tensor) -> bool:
        """Whether a tensor is a leaf whose gradient, if anybody wants it, is left to autograd."""
        return id(x) in self.heads or (x.grad_fn is None and not isinstance(x, nn.Parameter))

    def _check_leaf(self, x: Tensor, name: str) -> None:
        if x.grad_fn is None and id(x) not in self.slots:
            raise GradientError(
                f"{name!r} in {self.module()}: it takes a parameter {list(x.shape)} that is not "
                "in the model the engine was made for; put it there before the engine is made, "
                "or freeze it"
            )

    def slot(self, x: Tensor) -> Slot:
        """Return where the gradients of a free tensor go."""
        if x.grad_fn is None:
            return self.slots[id(x)]
        known = self.known(x)
        assert known is not None
        if known.slot is None:
            if known.base is not None:
                view = ViewSlot(self.slot(known.base[0]), known.base[1])
                known.slot = view if view.probe() is not None else None
            if known.slot is None:
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
        given = args
        if writes(func) and any(x is args[0] for x in free):
            before = args[0].clone()  # what it was made of is lost when it is written to
            Known(self, before)
            free = [before if x is args[0] else x for x in free]
            given = [before, *args[1:]]
        try:
            if entry is None or entry.meeting is Kind.NONE:
                raise Mixed("gradvac does not know how it splits by samples")
            call = Call(func, name, given, kwargs, tagged, None)
            refuse(call)
            out, meeting = self._do(call, entry, free)
            place = entry.rule(call._replace(out=out))
            if not isinstance(place, Place) or not fits(out, place):
                raise Mixed("its output is not a single tensor of as many samples")
        except (Refusal, _StopRecomputationError):
            raise
        except Exception as error:  # of a rule that was not made for such arguments, too
            if any(x.requires_grad for x, _ in tagged):
                raise self.error(name, because(error)) from error
            logging.getLogger("gradvac").debug("%r is not split: %r", name, error)
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
        Known(self, out, place)
        return out

    def meeting(self, slots: Sequence[Slot | None], name: str) -> Meeting:
        """Return a meeting in the operation ``name``, with its module if errors may need it."""
        where = f"{name!r} in {self.module()}" if self.remember else repr(name)
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
        given = list(tensors)

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


def _spans(x: Tensor, sample: tuple[Tensor, Place]) -> bool:
    """Whether a free tensor may have values of its own for each sample."""
    other, (rows, dim) = sample
    d = dim - other.ndim + x.ndim
    return 0 <= d < x.ndim - 2 and x.shape[d] == len(rows) and len(rows) > 1
