"""Operations of others whose effect on samples is registered; the first step checks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar, overload

from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function

from gradvac.engine.samples.calls import is_torch, tensors_in
from gradvac.engine.samples.custom_functions import Applied, applied
from gradvac.engine.samples.known import known_function
from gradvac.engine.samples.operations import OPERATIONS, Entry, SplitBy
from gradvac.engine.samples.registered_rules import rows_apart, samples_along
from gradvac.errors import GradientError

F = TypeVar("F", bound=Callable[..., Any])

Gradients = Callable[..., Sequence[Tensor | None]]
"""Given the gradient of the output and the arguments, returns what ``backward`` would."""

_REGISTERED: dict[Any, Entry] = {}


@overload
def register_operation(
    operation: F, *, dim: int | None = 0, gradients: Gradients | None = None
) -> F: ...


@overload
def register_operation(
    *, dim: int | None = 0, gradients: Gradients | None = None
) -> Callable[[F], F]: ...


def register_operation(
    operation: Any = None, *, dim: int | None = 0, gradients: Gradients | None = None
) -> Any:
    """Tell engines how an operation that they do not know treats the samples of a batch.

    For a custom ``torch.autograd.Function`` (register it before ``apply`` is kept under another
    name), an operator of ``torch.ops`` or ``torch.library.custom_op``, or a function that calls
    one. Slice ``i`` of a returned tensor along ``dim`` must depend only on slice ``i`` of the
    arguments that hold samples. If such an operation takes parameters, their gradient for each task
    is computed from the rows of this task: by ``gradients``, or, without it, by running the
    operation again on these rows. The operation must then not draw random numbers.

    This is checked like everything that a forward pass does for the first time. If it is wrong, the
    log says so and the engine changes to one backward pass per task.

    Args:
        operation: what to register; without it a decorator is returned.
        dim: the dimension of the samples, in arguments and returned tensors. None if each row is
            processed on its own, so that samples may lie along any dimension but the last.
        gradients: called as ``gradients(dy, *args)`` for each task, where ``dy`` and every argument
            with samples have only the rows of the task. Returns one entry for each argument, the
            gradient of a parameter, None for anything else; as ``backward`` does.

    Returns:
        The operation. Of a Python function, one that an engine sees.

    Raises:
        GradientError: if this is no operation.

    Example:
        >>> import torch
        >>> from gradvac.engine import register_operation
        >>> @register_operation(gradients=lambda dy, x, w: (None, (dy * x).sum(0)))
        ... class Scale(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x, w):
        ...         ctx.save_for_backward(x, w)
        ...         return x * w
        ...     @staticmethod
        ...     def backward(ctx, dy):
        ...         x, w = ctx.saved_tensors
        ...         return dy * w, (dy * x).sum(0)
        >>> Scale.apply(torch.ones(2, 3), torch.arange(3.0))
        tensor([[0., 1., 2.],
                [0., 1., 2.]])
    """
    if operation is None:
        return lambda operation: register_operation(operation, dim=dim, gradients=gradients)
    entry = Entry(rows_apart if dim is None else samples_along(dim), SplitBy.REGISTERED, gradients)
    operator = getattr(operation, "_opoverload", operation)  # of torch.library.custom_op
    if isinstance(operator, OpOverload):
        _REGISTERED[operator] = _REGISTERED[operator.overloadpacket] = entry
    elif isinstance(operator, OpOverloadPacket):
        _REGISTERED[operator] = entry
        _REGISTERED.update({getattr(operator, name): entry for name in operator.overloads()})
    elif isinstance(operation, type) and issubclass(operation, Function):
        _REGISTERED[operation] = entry
        operation.apply = classmethod(_apply)  # type: ignore[method-assign]
    elif isinstance(operation, type) or not callable(operation):
        raise GradientError(
            f"{operation!r} is not an operation; register a torch.autograd.Function, an operator "
            "of torch.ops or a function"
        )
    else:
        return _visible(operation, entry)
    return operation


def _visible(func: Callable[..., Any], entry: Entry) -> Callable[..., Any]:
    """Return a Python function that modes are told of."""

    @wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors: list[Tensor] = tensors_in(args, kwargs)
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return func(*args, **kwargs)

    _REGISTERED[call] = entry
    return call


def _apply(function: type[Function], *args: Any, **kwargs: Any) -> Any:
    """``apply`` of a registered class, for references to it that are older than a trace."""
    entry, tensors = entry_of_function(function), tensors_in(args, kwargs)
    if entry is not None and has_torch_function(tensors):
        return handle_torch_function(applied(function, entry.once), tensors, *args, **kwargs)
    return Function.__dict__["apply"].__func__(function, *args, **kwargs)


def entry_of_function(function: type[Function]) -> Entry | None:
    """Return the entry of a custom autograd function, None if there is none."""
    return _REGISTERED.get(function) or known_function(function)


def entry_of(func: Any, name: str) -> Entry | None:
    """Return the entry of a function, None if there is none."""
    if isinstance(func, Applied):
        return entry_of_function(func.function)
    return _REGISTERED.get(func) or (OPERATIONS.get(name) if is_torch(func) else None)
