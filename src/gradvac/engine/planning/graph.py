"""What a forward pass did, read off autograd's graph of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor

Signature = tuple[Any, ...]
"""What a graph computes: of each node the kind, what it follows, its sizes and dimensions."""

# Numbers of a node that say how much and not where: they may differ from step to step.
_AMOUNTS = ("seed", "offset", "philox", "other", "alpha", "beta", "exponent", "value", "scale")


def walk(outputs: Sequence[Tensor]) -> tuple[list[Any], Signature]:
    """Return the nodes of the graph of some tensors, and what they compute.

    Two graphs with equal signatures hold the same operations on the same parameters, connected in
    the same way, with the same sizes and along the same dimensions.
    """
    nodes: list[Any] = []
    number: dict[Any, int] = {}

    def position(node: Any) -> int:
        n = number.get(node)
        if n is None:
            n = number[node] = len(nodes)
            nodes.append(node)
        return n

    roots = [(-1 if x.grad_fn is None else position(x.grad_fn), x.output_nr) for x in outputs]
    signature: list[Any] = [tuple(roots)]
    for node in nodes:  # grows
        kind = type(node)
        line: list[Any] = [kind]
        for following, output in node.next_functions:
            line.append(-1 if following is None else position(following) << 16 | output)
        for name in _facts(kind):
            line.append(getattr(node, name))
        if len(line) == 1:
            line.append(id(node.variable) if hasattr(node, "variable") else node.name())
        signature.append(tuple(line))
    return nodes, tuple(signature)


@cache
def _facts(kind: type) -> tuple[str, ...]:
    """Names of the attributes of a kind of node that hold its sizes and dimensions."""
    saved = [name for name in dir(kind) if name.startswith("_saved_")]
    facts = [name for name in saved if not hasattr(kind, "_raw" + name)]
    return tuple(name for name in facts if not any(word in name for word in _AMOUNTS))


def following(nodes: Sequence[Any], through: Mapping[Any, int | None]) -> Iterator[Any]:
    """Yield the nodes that some nodes lead to, themselves included.

    Args:
        nodes: where to begin.
        through: nodes of which a single input is followed, or none, and its position.
    """
    seen: set[Any] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        inputs = [n for n, _ in node.next_functions]
        if node in through:
            position = through[node]
            inputs = [] if position is None else [inputs[position]]
        waiting += inputs


def ends(through: Mapping[Any, int | None]) -> set[Any]:
    """Return those of some nodes that lead to no other of them by the input that is followed."""
    found: set[Any] = set()
    for node, position in through.items():
        below = [] if position is None else [node.next_functions[position][0]]
        if not any(other in through for other in following(below, dict.fromkeys(through))):
            found.add(node)
    return found
