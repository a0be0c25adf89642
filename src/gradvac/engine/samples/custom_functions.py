"""Custom autograd functions as calls that a trace sees.

``Function.apply`` is no function of torch's that a mode is told of. While a forward pass is traced
it tells the mode, except where samples meet a function that nothing is known of: the mode then goes
on inside, as it does without this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function

from gradvac.engine.samples.calls import tensors_in, tensors_within

_APPLY: Callable[..., Any] = Function.__dict__["apply"].__func__


class Applied:
    """Calls a custom autograd function.

    Attributes:
        function: the function.
        once: whether its backward may run only once, because it writes to what it saved.
    """

    def __init__(self, function: type[Function], once: bool) -> None:
        self.function, self.once = function, once
        self.__name__ = f"{function.__name__}.apply"  # with a dot: no name of torch's
        self.__module__ = function.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the function."""
        if self.once:
            tensors = list(tensors_within((args, kwargs)))
            return _APPLY(_Repeatable, self.function, args, kwargs, *tensors)
        return _APPLY(self.function, *args, **kwargs)


@cache
def applied(function: type[Function], once: bool) -> Applied:
    """Return what calls a custom autograd function."""
    return Applied(function, once)


class _Repeatable(Function):
    """A custom function done anew in each backward pass, on copies that it may write to."""

    @staticmethod
    def forward(
        ctx: Any, function: type[Function], args: Any, kwargs: Any, *tensors: Tensor
    ) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.function, ctx.args, ctx.kwargs = function, _empty(args), _empty(kwargs)
        device = tensors[0].device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return _APPLY(function, *args, **kwargs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[3:]
        copies = [
            x.detach().clone().requires_grad_(need)
            for x, need in zip(ctx.saved_tensors, needs, strict=True)
        ]
        rest = iter(copies)
        with torch._C.DisableTorchFunction():
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                args, kwargs = _filled(ctx.args, rest), _filled(ctx.kwargs, rest)
                out = _APPLY(ctx.function, *args, **kwargs)
            outs = out if isinstance(out, tuple | list) else (out,)
            pairs = [
                (y, dy)
                for y, dy in zip(outs, gradients, strict=True)
                if isinstance(y, Tensor) and y.requires_grad
            ]
            wanted = [x for x, need in zip(copies, needs, strict=True) if need]
            ys, dys = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(ys, wanted, dys, allow_unused=True))
        return None, None, None, *(next(found) if need else None for need in needs)


_TENSOR = object()


def _empty(values: Any) -> Any:
    """Replace the tensors in nested arguments by a mark, so that only autograd keeps them."""
    if isinstance(values, Tensor):
        return _TENSOR
    if isinstance(values, dict):
        return {key: _empty(value) for key, value in values.items()}
    return type(values)(map(_empty, values)) if isinstance(values, list | tuple) else values


def _filled(values: Any, tensors: Iterator[Tensor]) -> Any:
    """Put tensors in the places of the marks."""
    if values is _TENSOR:
        return next(tensors)
    if isinstance(values, dict):
        return {key: _filled(value, tensors) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_filled(value, tensors) for value in values)
    return values


@contextmanager
def custom_functions_seen(
    known: Callable[[type[Function]], Any], has_samples: Callable[[Tensor], bool]
) -> Iterator[None]:
    """Tell the active mode of custom autograd functions that are applied inside.

    Args:
        known: returns the entry of a registered function, None for others.
        has_samples: whether a tensor may hold samples.
    """

    def apply(function: type[Function], *args: Any, **kwargs: Any) -> Any:
        if not function.__module__.startswith(("torch.", "gradvac.")):
            tensors = tensors_in(args, kwargs)
            entry = known(function)
            told = entry is not None or not any(map(has_samples, tensors))
            if told and has_torch_function(tensors):
                call = applied(function, entry is not None and entry.once)
                return handle_torch_function(call, tensors, *args, **kwargs)
        return _APPLY(function, *args, **kwargs)

    before = Function.__dict__["apply"]
    Function.apply = classmethod(apply)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Function.apply = before
