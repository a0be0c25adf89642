"""What a forward pass did, read off autograd's graph of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor

from gradvac.engine.samples.calls import reached

Signature = tuple[Any, ...]
"""What a graph computes: of each node the kind, what it follows, its sizes and dimensions."""

# Numbers of a node that say how much and not where: they may differ from step to step.
_AMOUNTS = ("seed", "offset", "philox", "other", "alpha", "beta", "exponent", "value", "scale")
# What follows from the sizes of a projection's output.
_IMPLIED = ("strides", "mat1_sym_sizes", "mat2_sym_sizes")


def walk(outputs: Sequence[Tensor]) -> tuple[list[Any], Signature]:
    """Return the nodes of the graph of some tensors, and what they compute.

    Two graphs with equal signatures hold the same operations on the same parameters, connected in
    the same way, with the same sizes and along the same dimensions.
    """
    nodes: list[Any] = []
    number: dict[Any, int] = {}
    found: list[Any] = []
    facts_of, append = _FACTS, found.append
    for x in outputs:
        node = x.grad_fn
        if node is not None and node not in number:
            number[node] = len(nodes)
            nodes.append(node)
        found += (-1 if node is None else number[node]), x.output_nr
    for node in nodes:  # grows
        kind = type(node)
        begin = len(found)
        append(kind)
        for following, output in node.next_functions:
            if following is None:
                append(-1)
                continue
            n = number.get(following)
            if n is None:
                n = number[following] = len(nodes)
                nodes.append(following)
            append(n << 16 | output)
        facts = facts_of.get(kind) or _facts(kind)
        if facts is not _nothing:
            append(facts(node))
        if len(found) == begin + 1:
            append(id(node.variable) if hasattr(node, "variable") else node.name())
    return nodes, tuple(found)


_FACTS: dict[type, Callable[[Any], Any]] = {}


def _nothing(node: Any) -> None:
    """What a kind of node holds that has no sizes and no dimensions."""


def _facts(kind: type) -> Callable[[Any], Any]:
    """What reads the attributes of a kind of node that hold its sizes and dimensions."""
    saved = [name for name in dir(kind) if name.startswith("_saved_")]
    facts = [name for name in saved if not hasattr(kind, "_raw" + name)]
    names = [name for name in facts if not any(word in name for word in (*_AMOUNTS, *_IMPLIED))]
    _FACTS[kind] = attrgetter(*names) if names else _nothing
    return _FACTS[kind]


def following(nodes: Sequence[Any], through: Mapping[Any, int | None]) -> Iterator[Any]:
    """Yield the nodes that some nodes lead to, themselves included.

    Args:
        nodes: where to begin.
        through: nodes of which a single input is followed, or none, and its position.
    """

    def onward(node: Any) -> Sequence[tuple[Any, int]]:
        if node not in through:
            return node.next_functions
        position = through[node]
        return () if position is None else (node.next_functions[position],)

    return reached(nodes, onward)


def ends(through: Mapping[Any, int | None]) -> set[Any]:
    """Return those of some nodes that lead to no other of them by the input that is followed."""
    found: set[Any] = set()
    for node, position in through.items():
        below = [] if position is None else [node.next_functions[position][0]]
        if not any(other in through for other in following(below, dict.fromkeys(through))):
            found.add(node)
    return found
