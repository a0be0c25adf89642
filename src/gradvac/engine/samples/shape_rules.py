"""Where samples lie after elementwise operations, reductions and changes of shape."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Call, Lost, Mixed, Place, Rule, agreed


def broadcast(call: Call) -> Place:
    """Elementwise operations: inputs are aligned at the last dimension."""
    out = call.out
    if len(call.inputs) == 1:
        x, place = call.inputs[0]
        if x.shape == out.shape:
            return place
    aligned = []
    for x, (owners, dim) in call.inputs:
        if x.ndim > out.ndim:
            raise Mixed("its output has fewer dimensions than its input")
        dim += out.ndim - x.ndim
        if out.shape[dim] != len(owners):
            if len(owners) != 1:
                raise Mixed("its output has another size than its input")
            owners = owners.spread(out.shape[dim], 1)
        aligned.append((x, Place(owners, dim)))
    return agreed(aligned)


def _dims(call: Call, position: int, default: Any = None) -> set[int] | None:
    """Return the dimensions given by an argument, None if none are given."""
    value = call.argument(position, "dim", call.kwargs.get("dims", default))
    ndim = call.inputs[0][0].ndim
    if isinstance(value, int) and not isinstance(value, bool):
        return {value % ndim}
    if isinstance(value, list | tuple) and value:
        return {int(v) % ndim for v in value}
    return None


def along(position: int, default: Any = None) -> Rule:
    """Operations along dimensions given at a position, such as softmax."""

    def rule(call: Call) -> Place:
        dims = _dims(call, position, default)
        _, (owners, dim) = call.inputs[0]
        if dims is None or dim in dims:
            kind = Lost if call.name in _REORDERS else Mixed
            raise kind("it works along the dimension of the samples")
        return Place(owners, dim)

    return rule


_REORDERS = ("flip", "fliplr", "flipud", "roll", "sort", "argsort", "topk", "kthvalue", "msort")


def reduction(position: int, default: Any = None) -> Rule:
    """Reductions over dimensions given at a position, such as a sum."""

    def rule(call: Call) -> Place | Sequence[Place]:
        dims = _dims(call, position, default)
        x, (owners, dim) = call.inputs[0]
        if dims is None or dim in dims:
            raise Lost("it reduces over the dimension of the samples")
        out = call.out if isinstance(call.out, Tensor) else call.out[0]
        kept = out.ndim == x.ndim
        place = Place(owners, dim if kept else dim - sum(d < dim for d in dims))
        return place if isinstance(call.out, Tensor) else [place] * len(call.out)

    return rule


def extremum(call: Call) -> Place | Sequence[Place | None] | None:
    """Max and min: of two tensors, or along a dimension."""
    if isinstance(call.argument(1, "other"), Tensor):
        return broadcast(call)
    return reduction(1)(call)


def reshape(call: Call) -> Place:
    """Anything that keeps the elements in order: view, flatten, unsqueeze, squeeze ..."""
    x, (owners, dim) = call.inputs[0]
    if x.numel() != call.out.numel():
        raise Mixed("it changes the number of elements")
    before, n, after = x.shape[:dim].numel(), x.shape[dim], x.shape[dim + 1 :].numel()
    fits: list[tuple[int, Place]] = []
    for e, size in enumerate(call.out.shape):
        ahead, behind = call.out.shape[:e].numel(), call.out.shape[e + 1 :].numel()
        # Remove the part of the samples' dimension that goes to dimensions around it, then add
        # the part from the input's; removal needs slices of one owner to be adjacent.
        a, c = ahead // gcd(ahead, before), behind // gcd(behind, after)
        u, t = before * a // ahead, after * c // behind
        if n % (a * c) or u * (n // (a * c)) * t != size:
            continue
        folded = owners.folded(a, c)
        if folded is not None:
            fits.append((a * c, Place(folded.spread(u, t), e)))
            if a * c == 1:
                break
    if not fits:
        raise Mixed("it splits the dimension of the samples")
    # Samples of one task fit several dimensions; keep the one that other rules expect.
    return min(fits, key=lambda fit: fit[0])[1]


def transpose(call: Call) -> Place:
    """Exchange two dimensions."""
    x, (owners, dim) = call.inputs[0]
    if call.name in ("transpose", "swapaxes", "swapdims"):
        a = call.argument(1, "dim0", call.kwargs.get("axis0"))
        b = call.argument(2, "dim1", call.kwargs.get("axis1"))
        a, b = a % x.ndim, b % x.ndim
    elif x.ndim < 2:
        return Place(owners, dim)
    else:
        a, b = x.ndim - 2, x.ndim - 1
    return Place(owners, b if dim == a else a if dim == b else dim)


def permute(call: Call) -> Place:
    """Reorder the dimensions."""
    x, (owners, dim) = call.inputs[0]
    dims = call.argument(1, "dims")
    dims = call.args[1:] if isinstance(dims, int) else dims
    return Place(owners, [d % x.ndim for d in dims].index(dim))


def stack(call: Call) -> Place:
    """Put tensors side by side along a new dimension."""
    owners, dim = agreed(call.inputs)
    new = call.argument(1, "dim", 0) % call.out.ndim
    return Place(owners, dim + (new <= dim))


def concatenate(call: Call) -> Place:
    """Join tensors along an existing dimension."""
    owners, dim = call.inputs[0][1]
    if call.argument(1, "dim", 0) % call.out.ndim != dim:
        return agreed(call.inputs)
    maps = [call.place(x) for x in call.argument(0, "tensors")]
    if any(place is None or place.dim != dim for place in maps):
        raise Mixed("it appends to the dimension of the samples what belongs to no task")
    index = torch.cat([place.owners.index for place in maps if place])
    return Place(Owners(index, owners.n_tasks), dim)


def repeat(call: Call) -> Place:
    """Tile along every dimension."""
    x, (owners, dim) = call.inputs[0]
    named = call.kwargs.get("repeats", call.kwargs.get("dims", ()))
    times = call.args[1:] or (named,)
    times = times[0] if isinstance(times[0], list | tuple) else times
    times = [1] * (x.ndim - len(times)) + list(times)  # tile may give only the last dimensions
    dim += len(times) - x.ndim
    return Place(owners.spread(times[dim], 1), dim)


def repeat_interleave(call: Call) -> Place:
    """Repeat slices along a dimension."""
    x, (owners, dim) = call.inputs[0]
    times, along = call.argument(1, "repeats"), call.argument(2, "dim")
    if along is None or not isinstance(times, int):
        raise Mixed("only a number of repetitions along a dimension is understood")
    return Place(owners.spread(1, times) if along % x.ndim == dim else owners, dim)


def pad(call: Call) -> Place:
    """Padding of the last dimensions."""
    x, (owners, dim) = call.inputs[0]
    amounts, at = call.argument(1, "pad"), 2 * (x.ndim - 1 - dim)
    if any(amounts[at : at + 2]):
        raise Lost("it pads the dimension of the samples")
    return Place(owners, dim)


def windows(call: Call) -> Place:
    """``as_strided``: windows that each stay within a sample."""
    x, (owners, dim) = call.inputs[0]
    size, stride = (
        tuple(int(n) for n in call.argument(k, w)) for k, w in ((1, "size"), (2, "stride"))
    )
    offset = call.argument(3, "storage_offset")
    start = 0 if offset is None else int(offset) - x.storage_offset()
    found = _window_dim(tuple(x.shape), x.stride(), dim, size, stride, start)
    if found is None:
        raise Mixed("its windows reach from one sample into another")
    return Place(owners, found)


@lru_cache(maxsize=256)
def _window_dim(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dim: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    start: int,
) -> int | None:
    """Return the samples' dimension of windows; None if samples are not separate."""
    last = lambda sizes, steps: sum((n - 1) * s for n, s in zip(sizes, steps, strict=True))
    sample = torch.full(
        (last(shape, strides) + 1,), -1, dtype=torch.int32
    )  # owner of each place in memory
    line = lambda ndim, d: torch.arange(shape[dim], dtype=torch.int32).view(
        [-1 if e == d else 1 for e in range(ndim)]
    )
    sample.as_strided(shape, strides).copy_(line(len(shape), dim).expand(shape))
    if start < 0 or start + last(size, stride) >= len(sample):
        return None
    seen = sample.as_strided(size, stride, start)
    fits = (e for e in range(len(size)) if size[e] == shape[dim])
    return next((e for e in fits if bool((seen == line(len(size), e)).all())), None)
