"""Small questions about a function call that was intercepted, and about autograd's graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from torch import Tensor


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among arguments, one level of lists deep."""
    found: list[Tensor] = []
    for x in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, list | tuple):
            found.extend(y for y in x if isinstance(y, Tensor))
    return found


def template(
    args: Sequence[Any], kwargs: dict[str, Any], tensors: list[Tensor]
) -> Callable[[Sequence[Tensor]], tuple[list[Any], dict[str, Any]]]:
    """Take the tensors out of arguments; return how to put others in their place."""

    def take(x: Any) -> Any:
        if isinstance(x, Tensor):
            tensors.append(x)
            n = len(tensors) - 1
            return lambda values: values[n]
        if isinstance(x, list | tuple) and any(isinstance(y, Tensor) for y in x):
            parts = [take(y) for y in x]
            return lambda values: [part(values) for part in parts]
        return lambda values: x

    positional = [take(x) for x in args]
    named = {key: take(x) for key, x in kwargs.items()}
    return lambda values: (
        [part(values) for part in positional],
        {key: part(values) for key, part in named.items()},
    )


_NAMES: dict[Any, str] = {}


def name_of(func: Any) -> str:
    """Return the name of a function without underscores; of an attribute, that of the attribute."""
    if (known := _NAMES.get(func)) is not None:
        return known
    name = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(func.__self__, "__name__", "")
        name = name if name in ("T", "mT", "data", "real") else "size"  # others tell, not compute
    elif name in ("__set__", "__delete__"):
        name = "set " + getattr(func.__self__, "__name__", "")
        name = "size" if name in ("set grad", "set requires_grad") else name
    name = name.strip("_")
    _NAMES[func] = name
    return name


def is_torch(func: Any) -> bool:
    """Whether a function is one of torch's own, so that its name can be relied on."""
    module = getattr(func, "__module__", None)
    if module is None:  # a method of torch.Tensor
        return True
    return module.partition(".")[0] == "torch"


def writes(func: Any) -> bool:
    """Whether a function writes to its first argument."""
    name: str = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name.startswith("__i") and name.strip("_") in (
            "iadd",
            "isub",
            "imul",
            "idiv",
            "itruediv",
            "ipow",
        )
    return name.endswith("_")


def inner(func: Any) -> Any:
    """Return a function of torch written in Python that does not dispatch as a whole again."""
    if func not in _INNER:
        names = {**func.__globals__, "has_torch_function": lambda tensors: False}
        copy = FunctionType(func.__code__, names, func.__name__, func.__defaults__)
        copy.__kwdefaults__ = func.__kwdefaults__
        _INNER[func] = copy
    return _INNER[func]


_INNER: dict[Any, Any] = {}


def leaves(x: Tensor) -> list[Tensor]:
    """Return the leaves a tensor was computed from, by its graph."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    waiting = [x.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        waiting.extend(following for following, _ in node.next_functions)
    return list(found.values())
