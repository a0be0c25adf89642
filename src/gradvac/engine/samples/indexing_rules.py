"""Where samples lie after indexing and selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Call, Lost, Mixed, Place, agreed, sole_owner


def selection(call: Call) -> Place | list[Place]:
    """Views of a part: a probe instead of the tensor shows where the samples go.

    The probe has a nonzero stride only along the dimension of the samples, so the one dimension of
    the result with a nonzero stride is theirs, and its offset and stride give the selected samples.
    """
    x, (owners, dim) = call.inputs[0]
    if call.func is torch.nn.functional.unfold:  # images [B, C, H, W] to columns [B, n, L]
        if dim or x.ndim != 4:
            raise Mixed("it expects the samples in its first dimension")
        return Place(owners, 0)
    probe = _probe(x.shape, dim)
    result = call.func(probe, *call.args[1:], **call.kwargs)
    if isinstance(result, Tensor):
        return _selected_place(result, owners)
    return [_selected_place(piece, owners) for piece in result]


def _probe(shape: torch.Size, dim: int) -> Tensor:
    """A tensor of a shape with a nonzero stride only along one dimension."""
    strides = [0] * len(shape)
    strides[dim] = 1
    return torch.empty(shape[dim], dtype=torch.int8).as_strided(shape, strides)


def _selected_place(probe: Tensor, owners: Owners) -> Place:
    moving = [e for e, stride in enumerate(probe.stride()) if stride]
    e = next((e for e in moving if probe.shape[e] > 1), moving[0] if moving else None)
    start = int(probe.storage_offset())
    if e is not None:
        length, stride = probe.shape[e], probe.stride(e)
        return Place(owners.taken(start, length, stride if length > 1 else 1), e)
    if not probe.ndim:
        raise Mixed("it takes out a single number")
    return Place(owners.taken(start, 1, 1).spread(probe.shape[0], 1), 0)  # one sample owns it


def getitem(call: Call) -> Place | list[Place]:
    """Indexing by numbers and slices, or with tensors among the indices."""
    x, (owners, dim) = call.inputs[0]
    if call.place(call.args[0]) is None:
        return _chosen(call)
    if x is not call.args[0]:
        raise Mixed("its index, not what is indexed, holds the samples")
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if not any(isinstance(i, Tensor | list) for i in index):
        return selection(call)
    used = sum(_dims_used(i) for i in index)
    if any(i is Ellipsis for i in index):
        used = x.ndim
    # Dimensions behind the indexed ones are unchanged.
    behind = x.ndim - used
    if dim >= used:
        return Place(owners, dim - used + call.out.ndim - behind)
    shape = [1] * used
    shape[dim] = -1
    probe = owners.index.view(shape).expand(x.shape[:used])
    index = tuple(i.cpu() if isinstance(i, Tensor) else i for i in index)
    found = probe[index]  # the owner of each element
    for e in range(found.ndim):
        line = found
        for d in reversed(range(found.ndim)):
            if d != e:
                line = line.select(d, 0) if line.shape[d] else line
        shape = [1] * found.ndim
        shape[e] = -1
        if line.ndim == 1 and bool((found == line.view(shape)).all()):
            return Place(Owners(line.contiguous(), owners.n_tasks), e)
    raise Lost("its result orders the samples along no dimension")


def _chosen(call: Call) -> Place:
    """Rows of a tensor without samples, chosen by indices with samples."""
    x, index = call.args[0], call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    at = [n for n, i in enumerate(index) if isinstance(i, Tensor | int)]
    tensors = [i for i in index if isinstance(i, Tensor)]
    if at != list(range(at[0], at[-1] + 1)) or any(
        t.dtype in (torch.bool, torch.uint8) for t in tensors
    ):
        raise Mixed("its index, not what is indexed, holds the samples")
    used = sum(_dims_used(i) for i in index)
    before = sum(x.ndim - used if i is Ellipsis else 1 for i in index[: at[0]])
    wide = max(t.ndim for t in tensors)
    places = [
        (t, Place(place.owners, before + place.dim + wide - t.ndim))
        for t in tensors
        if (place := call.place(t)) is not None
    ]
    place = agreed(places)
    if call.out.shape[place.dim] != len(place.owners):
        raise Mixed("its indices hold their samples in different places")
    return place


def _dims_used(index: Any) -> int:
    if index is None or index is Ellipsis:
        return 0
    if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
        return index.ndim
    return 1


def masked_select(call: Call) -> Place:
    """Choose elements by a mask: the owners of the elements are chosen in the same way."""
    x, mask = call.argument(0, "input"), call.argument(1, "mask")
    place = call.place(x)
    if place is None:
        raise Mixed("its mask, not what is chosen from, holds the samples")
    shape = [1] * x.ndim
    shape[place.dim] = -1
    index = place.owners.index.view(shape).expand(x.shape).masked_select(mask.cpu())
    return Place(Owners(index, place.owners.n_tasks), 0)


def index_select(call: Call) -> Place:
    """Choose slices along a dimension."""
    x, (owners, dim) = call.inputs[0]
    table = call.argument(0, "input")
    if call.place(table) is None:
        return Place(owners, call.argument(1, "dim") % table.ndim)
    if x is not table:
        raise Mixed("its index, not what is indexed, holds the samples")
    if call.argument(1, "dim") % x.ndim != dim:
        return Place(owners, dim)
    return Place(owners.selected(call.argument(2, "index")), dim)


def lookup(call: Call) -> Place:
    """Rows of a table, one for each index."""
    x, place = call.inputs[0]
    if x is not call.argument(0, "input"):
        raise Mixed("its table, not its index, holds the samples")
    return place


def gather(call: Call) -> Place:
    """Gather and scatter along a dimension that is not that of the samples.

    A tensor without samples may be gathered from along any dimension.
    """
    along = call.argument(1 if call.name != "take_along_dim" else 2, "dim")
    owners, dim = agreed(call.inputs)
    index = call.argument(
        2 if call.name != "take_along_dim" else 1, "index", call.kwargs.get("indices")
    )
    gathers = call.name in ("gather", "take_along_dim")
    if call.name == "take_along_dim" and any(
        x.ndim != call.out.ndim or along is None for x in (call.args[0], index)
    ):
        raise Mixed("only indices of as many dimensions as what is chosen from are understood")
    if along % call.out.ndim == dim and not (
        gathers and call.place(call.argument(0, "input")) is None
    ):
        raise Lost("it works along the dimension of the samples")
    return Place(owners.taken(0, call.out.shape[dim], 1), dim)


def _same_owners(x: Tensor, own: Place, index: Sequence[Any], dim: int, owners: Owners) -> bool:
    """Whether the elements at an index with tensors have samples of ``owners`` along ``dim``."""
    used = sum(_dims_used(i) for i in index)
    if owners.for_any_tasks or own.dim >= used or any(i is Ellipsis or i is None for i in index):
        return False
    shape = [1] * used
    shape[own.dim] = -1
    probe = own.owners.index.view(shape).expand(x.shape[:used])
    found = probe[tuple(i.cpu() if isinstance(i, Tensor) else i for i in index)]
    if (owner := sole_owner(owners)) is not None:
        return bool((found == owner).all())
    if not 0 <= dim < found.ndim or found.shape[dim] != len(owners):
        return False
    line = [1] * found.ndim
    line[dim] = -1
    return bool((found == owners.index.view(line)).all())


def assign(call: Call) -> Place | None:
    """``x[index] = value``: the samples of the value become those of the tensor."""
    x, index, value = call.args
    own = call.place(x)
    if not isinstance(value, Tensor) or (place := call.place(value)) is None:
        return own
    region = x.detach()[index]
    dim = place.dim + region.ndim - value.ndim
    indices = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, Tensor | list) for i in indices):
        if own is None or not _same_owners(x, own, indices, dim, place.owners):
            raise Mixed("what is assigned belongs to other samples than where it goes")
        return own
    if own is not None:
        there = selection(
            replace(call, args=(x, index), func=Tensor.__getitem__, inputs=[(x, own)])
        )
        if isinstance(there, Place) and there.dim == dim and there.owners.same(place.owners):
            return own
        raise Mixed("what is assigned holds its samples in another place")
    fits = [d for d in range(x.ndim) if _moves(x, index, d) == (dim, x.shape[d])]
    found = Place(place.owners, fits[0]) if len(fits) == 1 else None
    if found is not None and len(place.owners) == x.shape[found.dim] and not x.requires_grad:
        return found
    raise Mixed("what is assigned holds its samples in another place")


def _moves(x: Tensor, index: Any, d: int) -> tuple[int, int] | None:
    """The dimension of a region that is all of dimension ``d`` of a tensor, and its size."""
    probe = _probe(x.shape, d)[index]
    moving = [e for e, s in enumerate(probe.stride()) if s == 1 and probe.shape[e] == x.shape[d]]
    return (moving[0], probe.shape[moving[0]]) if len(moving) == 1 else None


def index_add(call: Call) -> Place:
    """``index_add`` and ``index_copy``: slices go to the places of their own samples."""
    x, dim = call.argument(0, "input"), call.argument(1, "dim")
    index, source = call.argument(2, "index"), call.argument(3, "source")
    own, given = call.place(x), call.place(source)
    if own is None and given is not None and not x.requires_grad and dim % x.ndim == given.dim:
        line = torch.zeros(
            x.shape[given.dim], dtype=torch.int64
        )  # the elements not written to are constant
        line[index.cpu()] = given.owners.index
        own = Place(Owners(line, given.owners.n_tasks), given.dim)
    if own is None or given is None or own.dim != given.dim:
        raise Mixed("what is added holds its samples in another place")
    owners = own.owners
    if dim % x.ndim == own.dim:
        owners = owners.selected(index)
    if not owners.same(given.owners):
        raise Mixed("what is added belongs to other samples than where it goes")
    return own
