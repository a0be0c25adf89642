"""Helpers for intercepted function calls, and for autograd's graph."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from gradvac.errors import GradientError


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
    """Take the tensors out of arguments; return a function that puts others in their place."""

    def take(x: Any) -> Any:
        if isinstance(x, Tensor):
            tensors.append(x)
            n = len(tensors) - 1
            return lambda values: values[n]
        if isinstance(x, list | tuple) and any(isinstance(y, Tensor) for y in x):
            parts, kind = [take(y) for y in x], tuple if isinstance(x, tuple) else list
            return lambda values: kind(part(values) for part in parts)
        return lambda values: x

    positional = [take(x) for x in args]
    named = {key: take(x) for key, x in kwargs.items()}
    return lambda values: (
        [part(values) for part in positional],
        {key: part(values) for key, part in named.items()},
    )


_NAMES: dict[Any, str] = {}


def name_of(func: Any) -> str:
    """Return the name of a function, or of an attribute, without underscores."""
    if (known := _NAMES.get(func)) is not None:
        return known
    name = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(func.__self__, "__name__", "")
        if name not in ("T", "mT", "H", "mH", "data", "real", "imag"):
            name = "size"  # others give information and compute nothing
    elif name in ("__set__", "__delete__"):
        name = "set " + getattr(func.__self__, "__name__", "")
        name = "size" if name in ("set grad", "set requires_grad") else name
    name = name.strip("_")
    _NAMES[func] = name
    return name


def is_torch(func: Any) -> bool:
    """Whether a function belongs to torch or to this package, so that its name is reliable."""
    module = getattr(func, "__module__", None)
    if module is None:  # a method of torch.Tensor
        return True
    return module.partition(".")[0] in ("torch", "gradvac")


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
    """Return a copy of a torch function written in Python that skips its own dispatch."""
    if func not in _INNER:
        names = {**func.__globals__, "has_torch_function": lambda tensors: False}
        copy = FunctionType(func.__code__, names, func.__name__, func.__defaults__)
        copy.__kwdefaults__ = func.__kwdefaults__
        _INNER[func] = copy
    return _INNER[func]


_INNER: dict[Any, Any] = {}


def leaves(x: Tensor) -> list[Tensor]:
    """Return the leaves a tensor was computed from, by its graph."""
    found = (getattr(node, "variable", None) for node in nodes(x))
    return list({id(leaf): leaf for leaf in found if isinstance(leaf, Tensor)}.values())


def nodes(x: Tensor, end: Callable[[Any], bool] = lambda node: False) -> Iterator[Any]:
    """Yield the nodes of the graph of a tensor, none behind a node that is an ``end``."""
    return reached([x.grad_fn], lambda node: () if end(node) else node.next_functions)


def reached(
    first: Sequence[Any], onward: Callable[[Any], Sequence[tuple[Any, int]]]
) -> Iterator[Any]:
    """Yield some nodes of autograd's graph, and those to which their inputs lead.

    Args:
        first: where to begin; None is left out.
        onward: returns the inputs of a node to follow, of its ``next_functions``.
    """
    seen: set[Any] = set()
    waiting = list(first)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in onward(node))


def tensors_within(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors_within(tuple(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_within(value)


@contextmanager
def as_written(model: nn.Module, tell: bool) -> Iterator[None]:
    """Run modules and functions compiled by ``torch.compile`` in eager mode; ``tell`` which.

    Compiled code cannot be followed, and cannot be run backward twice.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    for name, module in model.named_modules() if tell else ():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            _tell_compiled(f"module {name!r}" if name else "the model")
            break
    with torch.compiler.set_stance("force_eager"):
        yield


@cache
def _tell_compiled(what: str) -> None:
    logging.getLogger("gradvac").warning(
        "%s is compiled by torch.compile and runs as it is written inside engine.tasks(...); "
        "compiled code runs where each task has a forward pass of its own, "
        "engine.accumulate({task: loss})",
        what,
    )


@contextmanager
def explained(loss: Tensor, model: nn.Module) -> Iterator[None]:
    """Turn errors of backward passes into GradientErrors that explain the cause."""
    try:
        yield
    except CheckpointError as error:
        raise GradientError(
            "a part of the model under activation checkpointing was repeated otherwise than it was "
            "done: it is not deterministic, or it calls no module, by which its repetition would "
            'be followed; call it as a module, or use Engine(..., engine="per_task")'
        ) from error
    except RuntimeError as error:
        if "a second time" in str(error):
            raise GradientError(
                "a backward pass has been through the graph of this loss already: it was given "
                "twice, or shares a forward pass with a loss given before; give losses of one "
                "forward pass together, as {task: loss}"
            ) from error
        if "use_reentrant" not in str(error):
            raise
        raise GradientError(
            f"{reentrant(loss, model)} is checkpointed with use_reentrant=True, with which "
            "autograd cannot keep the gradients of tasks apart; use use_reentrant=False (Hugging "
            'Face: model.gradient_checkpointing_enable({"use_reentrant": False}))'
        ) from error


def reentrant(loss: Tensor, model: nn.Module) -> str:
    """Name a module under reentrant activation checkpointing, found in the graph."""
    names = {id(module): name for name, module in model.named_modules()}
    for node in nodes(loss):
        function = getattr(node, "run_function", None)
        while isinstance(function, partial):
            function = function.func
        module = getattr(function, "__self__", function)
        if id(module) in names:
            return f"module {names[id(module)]!r} ({type(module).__name__})"
    return "a part of the model"
