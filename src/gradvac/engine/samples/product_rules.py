"""Where samples lie after products, norms and losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from gradvac.engine.samples.places import Call, Lost, Mixed, Place, Rule, agreed
from gradvac.engine.samples.shape_rules import broadcast


def last_dims(count: Callable[[Call], int], what: str) -> Rule:
    """Operations that mix only the last ``count`` dimensions."""

    def rule(call: Call) -> Place:
        x, (owners, dim) = call.inputs[0]
        if dim >= x.ndim - count(call):
            raise Mixed(f"{what} the dimension of the samples")
        return Place(owners, dim)

    return rule


def first_dim(call: Call) -> Place:
    """Operations whose first dimension is the batch, such as convolutions."""
    owners, dim = agreed(call.inputs)
    dims = [int(c) for c in call.name if c.isdigit()]  # conv2d works on [B, C, H, W] or on one
    if dim or (dims and call.inputs[0][0].ndim != dims[0] + 2):
        raise Mixed("it expects the samples in its first dimension")
    return Place(owners, 0)


def matmul(call: Call) -> Place:
    """Matrix products, batched or not."""
    a = call.argument(0, "input")
    b = call.argument(1, "other", call.kwargs.get("mat2", call.kwargs.get("vec")))
    if a.ndim < 2 or b.ndim < 2:
        return _with_vector(call, a, b)
    if call.segments is not None and (found := call.segments.product(call, a, b)) is not None:
        return found
    n = call.out.ndim
    places: list[tuple[Tensor, Place]] = []
    for x, (owners, dim) in call.inputs:
        summed = x.ndim - 1 if x is a else x.ndim - 2
        if a is b or dim == summed:
            if x.requires_grad or not places:
                raise Mixed("it sums over the dimension of the samples")
            continue
        places.append((x, Place(owners, dim + n - x.ndim)))
    place = agreed(places)
    if place.dim >= n - 2 and sum(x.requires_grad for x, _ in places) > 1:
        raise Mixed("it multiplies samples of one factor with samples of the other")
    return place


def grouped(call: Call) -> Place:
    """Rows in groups, each times its own matrix: ``grouped_mm`` of ``[N, k]``."""
    x = call.argument(0, "mat_a")
    place = call.place(x)
    if place is None or x.ndim != 2 or place.dim or call.argument(1, "mat_b").ndim != 3:
        raise Mixed("only rows [N, k] that hold samples are understood")
    if len(call.inputs) > 1 and call.place(call.argument(1, "mat_b")) is not None:
        raise Mixed("its matrices hold samples")
    return place


def _with_vector(call: Call, a: Tensor, b: Tensor) -> Place:
    """A product of a vector ``[k]`` with a matrix or a batch of them."""
    x, (owners, dim) = call.inputs[0]
    last = a.ndim == 1  # the vector comes first, and the dimension before the last is summed
    summed = x.ndim - 1 if x.ndim == 1 or not last else x.ndim - 2
    if len(call.inputs) > 1 or dim == summed:
        raise Mixed("it sums over the dimension of the samples")
    return Place(owners, dim - (dim > summed))


def inner(call: Call) -> Place:
    """Inner products over the last dimensions, ``[..., k]`` and ``[..., k]``."""
    a, b = call.argument(0, "input"), call.argument(1, "other")
    summed = [a.ndim - 1], [b.ndim - 1]
    return _contraction(call, a, b, *(summed if a.ndim and b.ndim else ([], [])))


def outer(call: Call) -> Place:
    """Products of the elements of two vectors."""
    a, b = call.argument(0, "input"), call.argument(1, "vec2")
    return _contraction(call, a, b, [], [])


def tensordot(call: Call) -> Place:
    """Sums of products over the dimensions given."""
    a, b = call.argument(0, "a"), call.argument(1, "b")
    dims = call.argument(2, "dims", 2)
    if isinstance(dims, int):
        dims = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    of_a, of_b = ([d] if isinstance(d, int) else list(d) for d in dims)
    return _contraction(call, a, b, [d % a.ndim for d in of_a], [d % b.ndim for d in of_b])


def _contraction(
    call: Call, a: Tensor, b: Tensor, of_a: Sequence[int], of_b: Sequence[int]
) -> Place:
    """Where samples lie after a sum over some dimensions of two factors."""
    x, (owners, dim) = call.inputs[0]
    if len(call.inputs) > 1 or a is b:
        raise Mixed("it multiplies samples of one factor with samples of the other")
    summed, before = (of_a, 0) if x is a else (of_b, a.ndim - len(of_a))
    if dim in summed:
        raise Mixed("it sums over the dimension of the samples")
    return Place(owners, before + dim - sum(d < dim for d in summed))


def distances(call: Call) -> Place:
    """Distances between all rows of one factor and all of the other: ``cdist``."""
    a, b = call.argument(0, "x1"), call.argument(1, "x2")
    last_two = {b.ndim - 1: b.ndim - 2, b.ndim - 2: b.ndim - 1}
    flip = lambda place: Place(place.owners, last_two.get(place.dim, place.dim))
    flipped = [(x, flip(place) if x is b else place) for x, place in call.inputs]
    if a is b:
        raise Mixed("it compares samples with each other")
    return matmul(replace(call, args=(a, b), kwargs={}, inputs=flipped))


def similarity(call: Call) -> Place:
    """Cosine similarity along a dimension."""
    wide = max(x.ndim for x, _ in call.inputs)
    along = call.argument(2, "dim", 1) % max(wide, call.out.ndim + 1)
    n = call.out.ndim + 1
    places = [(x, Place(place.owners, place.dim + n - x.ndim)) for x, place in call.inputs]
    owners, dim = agreed(places)
    if dim == along:
        raise Lost("it reduces over the dimension of the samples")
    dim -= dim > along
    if call.out.shape[dim] != len(owners):
        raise Mixed("its output has another size than its input")
    return Place(owners, dim)


def matrices(call: Call) -> Place:
    """Linear algebra on the last two dimensions, with any number of dimensions before them."""
    places = []
    wide = max(x.ndim for x, _ in call.inputs)
    for x, (owners, dim) in call.inputs:
        if dim >= x.ndim - 2:
            raise Mixed("it works on the dimension of the samples")
        places.append((x, Place(owners, dim + wide - x.ndim)))
    place = agreed(places)
    outs = [call.out] if isinstance(call.out, Tensor) else list(call.out)
    if any(place.dim >= out.ndim or out.shape[place.dim] != len(place.owners) for out in outs):
        raise Mixed("its output has another size than its input")
    return place


def bag(call: Call) -> Place:
    """``embedding_bag`` of bags of equal size, ``[B, n]``."""
    ids = call.argument(0, "input")
    place = call.place(ids)
    if place is None or place.dim or ids.ndim != 2:
        raise Mixed("only bags [samples, size] are understood")
    return place


def addmm(call: Call) -> Place:
    """``bias + a @ b`` and its batched form."""
    names = ("mat1", "mat2") if call.name in ("addmm", "addmv") else ("batch1", "batch2")
    a = call.argument(1, names[0], call.kwargs.get("mat"))
    b = call.argument(2, names[1], call.kwargs.get("vec"))
    factors = [(x, place) for x, place in call.inputs if x is a or x is b]
    added = [
        (x, Place(place.owners, place.dim + call.out.ndim - x.ndim))
        for x, place in call.inputs
        if x is not a and x is not b
    ]
    if not factors:
        raise Mixed("its first argument holds samples")
    place = matmul(replace(call, args=(a, b), kwargs={}, inputs=factors))
    return agreed([(factors[0][0], place), *added])


def attention(call: Call) -> Place:
    """Scaled dot-product attention: any number of batch dimensions before the last two."""
    if call.segments is not None:
        return call.segments.attention(call)
    place = broadcast(call)
    if place.dim >= call.out.ndim - 2:
        raise Mixed("it attends across samples")
    return place


def einsum(call: Call) -> Place:
    """Einsum in its string form."""
    equation, operands = call.args[0], call.args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = operands[0]
    if not isinstance(equation, str):
        raise Mixed("only einsum equations that are strings are understood")
    terms, right = _terms(equation.replace(" ", ""), [x.ndim for x in operands])
    places = []
    for term, x in zip(terms, operands, strict=True):
        if (place := call.place(x)) is not None:
            letter = term[place.dim]
            if letter not in right:
                raise Mixed(f"it sums over {letter!r}, the dimension of the samples")
            places.append((x, Place(place.owners, right.index(letter))))
    return agreed(sorted(places, key=lambda pair: not pair[0].requires_grad))


def _terms(equation: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """Expand ``...`` and a missing output; digits stand for the dimensions of ``...``."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    covered = [n - len(term.replace("...", "")) for term, n in zip(terms, ndims, strict=True)]
    digits = "0123456789"[
        : max(c if "..." in t else 0 for t, c in zip(terms, covered, strict=True))
    ]
    if not arrow:
        letters = "".join(terms).replace(".", "")
        right = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    own = lambda c: digits[len(digits) - c :] if c else ""
    written = [t.replace("...", own(c)) for t, c in zip(terms, covered, strict=True)]
    return written, right.replace("...", digits)


def token_loss(call: Call) -> Place:
    """Classification losses without reduction, ``[N, C, ...]`` to ``[N, ...]``."""
    if call.kwargs.get("reduction", "mean") != "none":
        raise Lost("it averages over samples; ask for reduction='none'")
    x, (owners, dim) = call.inputs[0]
    if x is not call.argument(0, "input"):
        raise Mixed("only its target holds samples")
    classes = 1 if x.ndim > 1 else 0
    if dim == classes:
        raise Mixed("it works along the dimension of the samples")
    return Place(owners, dim - (dim > classes))


def pointwise_loss(call: Call) -> Place:
    """Elementwise losses without reduction."""
    if call.kwargs.get("reduction", "mean") != "none":
        raise Lost("it averages over samples; ask for reduction='none'")
    return broadcast(call)
