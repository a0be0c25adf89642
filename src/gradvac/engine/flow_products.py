"""How samples travel through products, norms and losses; see :mod:`gradvac.engine.flow`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gradvac.engine.flow import Call, Mixed, Place, Rule, agreed, broadcast


def last_dims(count: Callable[[Call], int], what: str) -> Rule:
    """Operations that mix the last dimensions, as many as ``count`` says, and no other."""

    def rule(call: Call) -> Place:
        x, (rows, dim) = call.inputs[0]
        if dim >= x.ndim - count(call):
            raise Mixed(f"{what} the dimension of the samples")
        return Place(rows, dim)

    return rule


def first_dim(call: Call) -> Place:
    """Operations whose first dimension is the batch, such as convolutions."""
    rows, dim = agreed(call.inputs)
    dims = [int(c) for c in call.name if c.isdigit()]  # conv2d works on [B, C, H, W] or on one
    if dim or (dims and call.inputs[0][0].ndim != dims[0] + 2):
        raise Mixed("it expects the samples in its first dimension")
    return Place(rows, 0)


def matmul(call: Call) -> Place:
    """Matrix products, batched or not."""
    a, b = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    if a.ndim < 2 or b.ndim < 2:
        raise Mixed("a product with a vector is not understood")
    n = call.out.ndim
    places: list[tuple[Tensor, Place]] = []
    for x, (rows, dim) in call.inputs:
        summed = x.ndim - 1 if x is a else x.ndim - 2
        if a is b or dim == summed:
            if x.requires_grad or not places:
                raise Mixed("it sums over the dimension of the samples")
            continue
        places.append((x, Place(rows, dim + n - x.ndim)))
    place = agreed(places)
    if place.dim >= n - 2 and sum(x.requires_grad for x, _ in places) > 1:
        raise Mixed("it multiplies samples of one factor with samples of the other")
    return place


def addmm(call: Call) -> Place:
    """``bias + a @ b`` and its batched form."""
    _, a, b = call.args[:3]
    inputs = [(x, place) for x, place in call.inputs if x is a or x is b]
    if len(inputs) != len(call.inputs) or not inputs:
        raise Mixed("its first argument holds samples")
    return matmul(call._replace(args=(a, b), inputs=inputs))


def attention(call: Call) -> Place:
    """Scaled dot-product attention: any number of batch dimensions in front of two."""
    place = broadcast(call)
    if place.dim >= call.out.ndim - 2:
        raise Mixed("it attends across samples")
    return place


def einsum(call: Call) -> Place:
    """Einsum in its string form, without ellipsis."""
    equation, operands = call.args[0], call.args[1:]
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], list) else operands
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        raise Mixed("only einsum equations with '->' and without '...' are understood")
    left, right = equation.replace(" ", "").split("->")
    terms = left.split(",")
    places = []
    for term, x in zip(terms, operands, strict=True):
        if (place := call.place(x)) is not None:
            letter = term[place.dim]
            if letter not in right:
                raise Mixed(f"it sums over {letter!r}, the dimension of the samples")
            places.append((x, Place(place.rows, right.index(letter))))
    return agreed(sorted(places, key=lambda pair: not pair[0].requires_grad))


def token_loss(call: Call) -> Place:
    """Classification losses without reduction, ``[N, C, ...]`` to ``[N, ...]``."""
    if call.kwargs.get("reduction", "mean") != "none":
        raise Mixed("it averages over samples; ask for reduction='none'")
    x, (rows, dim) = call.inputs[0]
    if x is not call.argument(0, "input"):
        raise Mixed("only its target holds samples")
    classes = 1 if x.ndim > 1 else 0
    if dim == classes:
        raise Mixed("it works along the dimension of the samples")
    return Place(rows, dim - (dim > classes))


def pointwise_loss(call: Call) -> Place:
    """Elementwise losses without reduction."""
    if call.kwargs.get("reduction", "mean") != "none":
        raise Mixed("it averages over samples; ask for reduction='none'")
    return broadcast(call)
