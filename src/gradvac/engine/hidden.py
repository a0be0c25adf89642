"""Parameters that ``loss.backward()`` trains but autograd's graph does not show.

A custom autograd function may use parameters that are not its inputs and run its own backward pass
inside, as reentrant activation checkpointing does. ``torch.autograd.grad`` then finds no gradient
for these parameters and raises no error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from gradvac.engine.samples.calls import inner, leaves, nodes, reentrant
from gradvac.engine.tracing.parameter_use import use_of
from gradvac.errors import GradientError


def refuse_hidden(
    loss: Tensor, model: nn.Module, parameters: Iterable[Tensor], name: Callable[[Tensor], str]
) -> None:
    """Check that the graph shows all parameters that a backward pass would train.

    Costs a traversal of the graph; a second one if it has custom functions; and a backward pass if
    some parameters are then not in the graph.

    Args:
        loss: with its graph, which is kept.
        model: to name modules in errors.
        parameters: those to be trained.
        name: returns the name of a parameter.

    Raises:
        GradientError: if the graph does not show a trained parameter.
    """
    functions = {function.__name__ for function in custom_functions(loss)}
    if not functions:
        return
    reached, parameters = leaves(loss), list(parameters)
    shown = {id(leaf) for leaf in reached}
    missing = [p for p in parameters if id(p) not in shown]
    if not missing:
        return
    others = [p for p in model.parameters() if p.requires_grad]
    everything = [*reached, *parameters, *others]
    with _gradients_aside({id(p): p for p in everything}.values()):
        inner(torch.autograd.backward)(loss, torch.ones_like(loss), retain_graph=True)
        trained = [name(p) for p in missing if p.grad is not None and bool(p.grad.any())]
    if not trained:
        return
    if "CheckpointFunction" in functions:
        raise GradientError(
            f"{reentrant(loss, model)} is checkpointed with use_reentrant=True: autograd's graph "
            f"does not show parameter {trained[0]!r}, which would get no gradient; use "
            "use_reentrant=False (Hugging Face: "
            'model.gradient_checkpointing_enable({"use_reentrant": False}))'
        )
    raise GradientError(
        f"parameter {trained[0]!r} is trained inside a custom autograd function "
        f"({', '.join(sorted(functions))}), which does not take it as an input: autograd's graph "
        "does not show it, and it would get no gradient; give it to the function's apply()"
    )


def custom_functions(loss: Tensor) -> set[type]:
    """Return the custom autograd functions in a graph, without those of the engine."""
    found = {
        type(node)._forward_cls  # type: ignore[attr-defined]
        for node in nodes(loss)
        if isinstance(node, BackwardCFunction) and use_of(node) is None
    }
    return {function for function in found if not function.__module__.startswith("gradvac.engine")}


@contextmanager
def without_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Remove the hooks of parameters inside."""
    kinds = "_backward_hooks", "_post_accumulate_grad_hooks"
    found = [hooks for p in parameters for kind in kinds if (hooks := getattr(p, kind, None))]
    before = [dict(hooks) for hooks in found]
    for hooks in found:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in zip(found, before, strict=True):
            hooks.update(kept)


@contextmanager
def _gradients_aside(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Remove the gradients of leaves, and their hooks, inside."""
    tensors = list(tensors)
    before = [x.grad for x in tensors]
    for x in tensors:
        x.grad = None
    try:
        with without_hooks(tensors):
            yield
    finally:
        for x, gradient in zip(tensors, before, strict=True):
            x.grad = gradient
