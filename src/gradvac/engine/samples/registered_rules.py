"""Where samples lie after registered operations, which may return several tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Call, Lost, Mixed, Place, Places, Rule, agreed


def samples_along(dim: int) -> Rule:
    """Operations whose samples lie along one dimension, in what they take and return."""

    def rule(call: Call) -> Places:
        given = _that_matter(call)
        if any(place.dim != dim % x.ndim for x, place in given):
            raise Mixed(f"it was registered for samples along dimension {dim}, which they are not")
        return _of_outputs(call.out, agreed(given))

    return rule


def rows_apart(call: Call) -> Places:
    """Operations on the last dimension; samples may lie along any other."""
    given = _that_matter(call)
    if any(place.dim == x.ndim - 1 for x, place in given):
        raise Mixed("it works on the last dimension, which is that of the samples")
    return _of_outputs(call.out, agreed(given))


def varlen_attention(queries: int, keys: int) -> Rule:
    """Attention within sequences laid end to end, ``[tokens, heads, d]``.

    Args:
        queries: position of the ends of the sequences, ``[n + 1]``, among the arguments.
        keys: the same for the keys.
    """
    along = samples_along(0)

    def rule(call: Call) -> Places:
        found = along(call)
        of_queries = _owners_of_sequences(call, call.args[0], call.args[queries])
        of_keys = _owners_of_sequences(call, call.args[min(1, queries - 1)], call.args[keys])
        if not torch.equal(of_queries, of_keys):
            raise Mixed("queries and keys of a sequence belong to different tasks")
        return found

    return rule


def _owners_of_sequences(call: Call, x: Tensor, ends: Tensor) -> Tensor:
    """The task of each sequence."""
    place = call.whole_place(x)
    if place is None or place.dims != (0,):
        raise Mixed("it is not known to which samples its keys belong")
    starts, owners = ends.detach().cpu().long(), place.along().index
    first = owners[starts[:-1].clamp(max=len(x) - 1)]
    lengths = starts.diff()
    if int(starts[-1]) != len(owners) or not torch.equal(first.repeat_interleave(lengths), owners):
        raise Mixed("a sequence of cu_seqlens holds tokens of several tasks")
    return first


def rows_chosen(call: Call) -> Places:
    """``[tokens, ...]`` and the positions of those that are kept."""
    x, positions = call.args[:2]
    place = call.place(x)
    if place is None or place.dim:
        raise Mixed("what is chosen from holds no samples in its first dimension")
    return Place(place.owners.selected(positions), 0)


def rows_put(call: Call) -> Places:
    """``[kept, ...]``, their positions, and the number of rows; the others become 0."""
    x, positions, n = call.args[:3]
    place = call.place(x)
    if place is None or place.dim:
        raise Mixed("what is put holds no samples in its first dimension")
    index = torch.zeros(n, dtype=torch.int64)  # rows that are always 0 may belong to any task
    index[positions.detach().cpu()] = place.owners.index
    return Place(Owners(index, place.owners.n_tasks), 0)


def token_losses(reduction: int) -> Rule:
    """Losses of ``[tokens, classes]``, with ``reduction`` among the arguments."""

    def rule(call: Call) -> Places:
        if call.argument(reduction, "reduction", "mean") != "none":
            raise Lost("it averages over samples; ask for reduction='none'")
        return samples_along(0)(call)

    return rule


def refused(why: str) -> Rule:
    """Operations that cannot keep samples apart."""

    def rule(call: Call) -> Places:
        raise Mixed(why)

    return rule


def _that_matter(call: Call) -> list[tuple[Tensor, Place]]:
    """The inputs with a gradient; without any, all with samples."""
    return [(x, place) for x, place in call.inputs if x.requires_grad] or call.inputs


def _of_outputs(out: Any, place: Place) -> Places:
    """The place of each output: those without a gradient may have another size."""
    if not isinstance(out, tuple | list):
        return place
    fits: Callable[[Any], bool] = lambda x: (
        isinstance(x, Tensor)
        and (x.requires_grad or (place.dim < x.ndim and x.shape[place.dim] == len(place.owners)))
    )
    return [place if fits(x) else None for x in out]
