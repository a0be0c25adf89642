"""User functions declared to keep samples separate; the first step checks it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from gradvac.engine.samples.calls import is_torch, tensors_in
from gradvac.engine.samples.operations import OPERATIONS, Entry, SplitBy
from gradvac.engine.samples.places import Call, Mixed, Place

F = TypeVar("F", bound=Callable[..., Any])

_DECLARED: dict[Any, Entry] = {}


def keeps_samples_apart(dim: int = 0) -> Callable[[F], F]:
    """Declare that a function keeps samples separate along a dimension and uses no parameters.

    For functions that the engine cannot trace, such as those that call a custom
    ``torch.autograd.Function``. Samples are then followed through them: along ``dim``, slice ``i``
    of every returned tensor must depend only on slice ``i`` of the input tensors. This is checked
    like everything that a forward pass does for the first time; if it fails, the engine changes to
    one backward pass per task.

    Args:
        dim: the dimension of the samples, in input and returned tensors.

    Returns:
        A decorator.

    Example:
        >>> import torch
        >>> class Double(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return 2 * x
        ...     @staticmethod
        ...     def backward(ctx, g):
        ...         return 2 * g
        >>> @keeps_samples_apart()
        ... def double(x):
        ...     return Double.apply(x)
        >>> double(torch.ones(2))
        tensor([2., 2.])
    """

    def rule(call: Call) -> Place:
        places = [place for _, place in call.inputs]
        if any(place.dim != dim or not place.owners.same(places[0].owners) for place in places):
            raise Mixed(f"it was declared for samples along dimension {dim}, which they are not")
        return places[0]

    def declare(func: F) -> F:
        @wraps(func)
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors: list[Tensor] = tensors_in(args, kwargs)
            if has_torch_function(tensors):
                return handle_torch_function(call, tensors, *args, **kwargs)
            return func(*args, **kwargs)

        _DECLARED[call] = Entry(rule, SplitBy.NONE)
        return call  # type: ignore[return-value]

    return declare


def entry_of(func: Any, name: str) -> Entry | None:
    """Return the entry of a function, None if there is none."""
    declared = _DECLARED.get(func)
    return declared or (OPERATIONS.get(name) if is_torch(func) else None)
