"""Traces a forward pass: follows the samples, and splits gradients where parameters are used.

Three kinds of tensors carry a gradient. Those *with samples*: each slice along one dimension
belongs to one task. Those *made of parameters* only, including the parameters themselves. And
*unknown* ones, about which nothing may be assumed. If a tensor with samples and one made of
parameters are used together, the gradient of the latter is split by tasks. An unknown one may be
used with neither. A tensor without gradient and with unknown place counts as owned by no sample,
which is never wrong, only slower. Parameters of a task's own head, leaves that are not parameters
and tensors computed only from these are left to autograd.

Once an unknown tensor is used with parameters, splitting stops. The forward pass then continues
unchanged, and places only give the sample of each loss. The handling of an operation depends only
on its arguments, so that activation checkpointing always repeats it in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.samples.calls import inner, leaves, name_of, tensors_in
from gradvac.engine.samples.crossed import places_after
from gradvac.engine.samples.custom_functions import custom_functions_seen
from gradvac.engine.samples.declared import entry_of, entry_of_function
from gradvac.engine.samples.operations import IGNORED, OPERATIONS, Entry
from gradvac.engine.samples.places import Call, Place, same_place
from gradvac.engine.tracing.formulas import COMPOSED
from gradvac.engine.tracing.parameter_trace import ParameterTrace
from gradvac.engine.tracing.parameter_use import BackwardState, PassKind
from gradvac.engine.tracing.tensor_info import Refusal, TensorInfo, because
from gradvac.errors import GradientError

_BACKWARD = "backward", "grad"
_VALUES_OF_FIRST = "to", "type_as"
"""Operations that take nothing but a dtype and a device from what follows their first argument."""


class Trace(ParameterTrace):
    """The forward pass of one batch.

    Args:
        model, slots, device, remember, backward_state: see :class:`ParameterTrace`.
        heads: ids of the parameters that belong to one task's head each.
        splits: whether to split gradients at all.
        give_up: called when the forward pass cannot be split; None to raise.
        proved: operations of forward passes that were checked; None if nothing is checked.

    Attributes:
        splits: whether gradients are still being split.
        new: operations of this forward pass that are not in ``proved``.
        last: the name of the last operation.
        repeated: whether activation checkpointing has repeated a part of the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: dict[int, ParameterSlot],
        device: torch.device,
        remember: bool,
        backward_state: BackwardState,
        heads: frozenset[int],
        splits: bool,
        give_up: Callable[[Refusal], None] | None,
        proved: set[Any] | None,
    ) -> None:
        super().__init__(model, slots, device, remember, backward_state)
        self.heads = heads
        self.give_up = give_up
        self.splits = self._began = splits
        self.new: set[Any] = set()
        self.proved = proved
        self.last = ""
        self.repeated = False

    def stop(self, refusal: Refusal) -> None:
        """Continue the forward pass unchanged, or raise."""
        if self.repeating:  # already reported in the forward pass
            return
        if self.give_up is None:
            raise refusal
        if self.splits:
            self.splits = False
            self.give_up(refusal)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow what runs inside, custom autograd functions included."""
        has_samples = lambda x: self._possible_place(x) is not None
        with custom_functions_seen(entry_of_function, has_samples), self:
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See nothing of what runs inside."""
        modes = _get_current_function_mode_stack()
        if not modes or modes[-1] is not self:
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    @contextmanager
    def repeats(self) -> Iterator[None]:
        """Trace the parts of the forward pass that activation checkpointing repeats inside.

        A backward pass runs with the function modes of its caller.
        """
        if not self._began:
            yield
            return
        before, self.repeating = self.repeating, True
        tracing = any(mode is self for mode in _get_current_function_mode_stack())
        try:
            with nullcontext() if tracing else self.following():
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
        """Run a call, and follow samples and parameters through it."""
        kwargs = kwargs or {}
        if self.recording is not None and self.recording.failed:
            return func(*args, **kwargs)  # the model is called again, and traced
        name = name_of(func)
        if name in _BACKWARD:
            return self._backward(Call(func, name, args, kwargs, []))
        if name in IGNORED:
            return func(*args, **kwargs)
        call = Call(func, name, args, kwargs, [], segments=self.segments)
        if not self._began:
            return self._do_as_written(call)
        try:
            return self._split(call)
        except Refusal as refusal:
            if self.recording is not None:
                self.recording.fail(refusal.reason)
                return func(*args, **kwargs)
            out = self._do_unknown(call, refusal.reason)
            self.stop(refusal)
            return out

    def _split(self, call: Call) -> Any:
        """Run a call so that gradients are split; a refusal has no effect on the state."""
        with_samples, of_parameters, unknown, left_to_autograd = self._arguments(call)
        if not with_samples and not of_parameters and unknown is None:
            out = call.func(*call.args, **call.kwargs)
            if left_to_autograd:
                for x in tensors_in((out,), {}):
                    TensorInfo(self, x, left_to_autograd=True)
            return out
        self._note(call.name, with_samples, of_parameters, unknown, left_to_autograd)
        if left_to_autograd and of_parameters:
            raise self.error(
                call.name,
                "a parameter of a task's head, or what is no parameter, meets one that tasks share",
            )
        if unknown is not None:
            if of_parameters:
                raise self.error(call.name, f"it takes a tensor {self.origin(unknown)}")
            return self._do_unknown(call, self.origin(unknown))
        if call.name in COMPOSED and (of_parameters or call.name not in OPERATIONS):
            if self.recording is not None:
                self.recording.check_composed(call.name)
            with self:
                return COMPOSED[call.name](self, call.func)(*call.args, **call.kwargs)
        if not with_samples:
            return self.do_on_parameters(call, of_parameters)
        entry = entry_of(call.func, call.name)
        call.inputs = with_samples
        if of_parameters and self.recording is not None:
            return self.recording.use(self, call, entry, of_parameters)
        if of_parameters:
            return self.use_parameters(call, entry, of_parameters)
        if call.name == "setitem":
            return self._assign(call, entry)
        if call.name == "copy" and call.args[0]._is_view():
            return self._copy_into_view(call, entry)
        call.out = call.func(*call.args, **call.kwargs)
        self.follow(call, entry)
        return call.out

    def _arguments(
        self, call: Call
    ) -> tuple[list[tuple[Tensor, Place]], list[Tensor], Tensor | None, bool]:
        """Return the arguments that are tensors and matter for gradients.

        Returns:
            Those with samples and their places, those with a gradient first; those made of
            parameters only; one that is unknown; and whether there are leaves whose gradient is
            left to autograd.
        """
        grad = torch.is_grad_enabled()
        with_samples: list[tuple[Tensor, Place]] = []
        of_parameters: list[Tensor] = []
        unknown: Tensor | None = None
        left_to_autograd = False
        args = call.args[:1] if call.name in _VALUES_OF_FIRST else call.args
        for x in tensors_in(args, call.kwargs):
            info = self.info(x)
            if info is not None and info.place is not None and info.why is None:
                if x.requires_grad:
                    with_samples.insert(0, (x, info.place))
                else:
                    with_samples.append((x, info.place))
            elif grad and x.requires_grad and not self._is_frozen(x):
                if self._is_left_to_autograd(x) if info is None else info.left_to_autograd:
                    left_to_autograd = True
                elif x.grad_fn is None or (info is not None and info.why is None):
                    of_parameters.append(x)
                else:
                    unknown = x
        return with_samples, of_parameters, unknown, left_to_autograd

    def _is_frozen(self, x: Tensor) -> bool:
        """Whether a parameter made in the forward pass is a view of a frozen one of the model.

        PEFT wraps transposed base weights in this way. Nobody reads the gradient of such a view.
        """
        if x.grad_fn is not None or not isinstance(x, nn.Parameter):
            return False
        if id(x) in self.slots or id(x) in self.heads:
            return False
        at = x.untyped_storage().data_ptr()
        return any(
            p.untyped_storage().data_ptr() == at
            for p in self.model.parameters()
            if not p.requires_grad
        )

    def _is_left_to_autograd(self, x: Tensor) -> bool:
        """Whether a tensor is a leaf whose gradient, if any, is left to autograd."""
        return id(x) in self.heads or (x.grad_fn is None and not isinstance(x, nn.Parameter))

    def _note(
        self,
        name: str,
        with_samples: Sequence[tuple[Tensor, Place]],
        of_parameters: Sequence[Tensor],
        unknown: Tensor | None,
        left_to_autograd: bool,
    ) -> None:
        """Record the next operation of the forward pass, unless it was checked already."""
        if self.repeating:
            # Without gradients it is what the backward pass of a custom function computes.
            self.repeated = self.repeated or torch.is_grad_enabled()
            return
        if self.proved is None:
            return
        places = tuple(place.dims for _, place in with_samples)
        if len(places) > 3:  # a stack of what a loop over positions has made
            places = tuple(dict.fromkeys(places))
        joined = tuple(id(x) if x.grad_fn is None else 0 for x in of_parameters)
        done = self.last, name, places, joined, unknown is not None, left_to_autograd
        self.last = name
        if done not in self.proved:
            self.new.add(done)

    def _assign(self, call: Call, entry: Entry | None) -> None:
        """Run ``x[index] = value``; its rule needs the previous state of ``x``."""
        places, why = None, ""
        try:
            assert entry is not None
            places = places_after(entry.rule, call)
        except Exception as error:
            why = f"made by {call.name!r}: {because(error)}"
        call.func(*call.args)
        if why:
            self.mark_unknown(call, None, why)
        else:
            self.set_places(call.args[0], places)

    def _copy_into_view(self, call: Call, entry: Entry | None) -> Any:
        """Copy samples into a part of a buffer, which then has them at the same place."""
        view, base = call.args[0], call.args[0]._base
        before = self.place(base)
        empty = self.info(base) is None and not base.requires_grad
        out = call.func(*call.args, **call.kwargs)
        call.out = view
        self.follow(call, entry)
        place = self.place(view)
        if place is not None and place.separable:
            size, stride = view.shape[place.dim], view.stride(place.dim)
            fitting = [d for d, n in enumerate(base.shape) if (n, base.stride(d)) == (size, stride)]
            whole = Place(place.owners, fitting[0]) if len(fitting) == 1 else None
            if whole is not None and (empty or (before is not None and same_place(before, whole))):
                TensorInfo(self, base, whole)
        return out

    def _do_unknown(self, call: Call, why: str) -> Any:
        """Run an operation that cannot be followed."""
        call.inputs, lost = self._whose_inputs(call)
        call.out = call.func(*call.args, **call.kwargs)  # raises the user's errors
        self.mark_unknown(call, entry_of(call.func, call.name), why, lost)
        return call.out

    def _do_as_written(self, call: Call) -> Any:
        """Run a call unchanged, and follow the samples if that is easy."""
        if call.name == "multi_head_attention_forward":
            with self:
                return inner(call.func)(*call.args, **call.kwargs)
        inputs, lost = self._whose_inputs(call)
        out = call.func(*call.args, **call.kwargs)
        call.inputs, call.out = inputs, out
        written = call.args[0] if call.name == "setitem" else out
        entry = entry_of(call.func, call.name)
        hidden = any(
            x.grad_fn is not None and self._possible_place(x) is None
            for x in tensors_in(call.args, call.kwargs)
        )
        if inputs and hidden and not inputs[0][0].requires_grad:
            # Labels and masks beside losses whose samples were lost.
            same = [place for x, place in inputs if x.shape == getattr(out, "shape", None)]
            self.set_places(out, same[0] if same and self.segments is None else None)
        elif isinstance(written, Tensor) and written.requires_grad:
            self.mark_unknown(call, entry, "", lost)
        elif inputs and entry is not None:
            with suppress(Exception):  # optional: the user can give the owners of losses
                self.set_places(written, places_after(entry.rule, call))
        return out

    def _whose_inputs(self, call: Call) -> tuple[list[tuple[Tensor, Place]], bool]:
        """Return the arguments with known or likely samples, those with a gradient first; and
        whether any argument has lost its samples.
        """
        found = [(x, i) for x in tensors_in(call.args, call.kwargs) if (i := self.info(x))]
        inputs = [(x, info.place) for x, info in found if info.place is not None]
        inputs.sort(key=lambda pair: not pair[0].requires_grad)
        return inputs, any(info.lost for _, info in found)

    def _possible_place(self, x: Tensor) -> Place | None:
        info = self.info(x)
        return info and info.place

    def _backward(self, call: Call) -> Any:
        """Run a user's backward pass inside the forward pass, unchanged.

        Raises:
            GradientError: for ``loss.backward()`` that reaches the parameters of the engine.
        """
        func, name, args, kwargs = call.func, call.name, call.args, call.kwargs
        if self.backward_state.kind is not PassKind.FOREIGN:  # in the backward of a custom function
            return inner(func)(*args, **kwargs)
        if self.recording is not None:
            self.recording.fail("a backward pass inside the forward pass")
        if name == "backward":
            reached = {id(leaf) for x in tensors_in(args, {}) for leaf in leaves(x)}
            if not reached.isdisjoint(self.slots):
                raise GradientError(
                    "loss.backward() inside `with engine.tasks(...)` fills p.grad with the "
                    "gradient of all tasks together, without the method; call "
                    "engine.backward(loss) instead (torch.autograd.grad may be used)"
                )
        with self.backward_state.running(PassKind.PLAIN), self.repeats():
            out = inner(func)(*args, **kwargs)
        if name == "grad":
            inputs = tensors_in(args[1:2], {k: v for k, v in kwargs.items() if k == "inputs"})
            why = "made by torch.autograd.grad, which goes through samples and parameters unseen"
            for x, g in zip(inputs, out, strict=False):
                place = self._possible_place(x)
                if isinstance(g, Tensor) and not g.requires_grad and place is not None:
                    self.set_place(g, place)
                elif isinstance(g, Tensor) and g.requires_grad:
                    TensorInfo(self, g, place, why=why)
        return out
