"""LSTM, GRU and RNN split into layers; the places of samples in each are known.

A layer returns one tensor, its outputs followed by its last states, so that one derivative is
enough. Dropout between layers draws random numbers and is not part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.overrides import handle_torch_function, has_torch_function

from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Call, Mixed, Place


class SamplePlaces(Protocol):
    """The interface needed of the traced forward pass."""

    def set_place(self, tensor: Tensor, place: Place) -> None:
        """Declare where the samples lie in a tensor."""
        ...

    def place(self, tensor: Tensor) -> Place | None:
        """Return where the samples lie in a tensor, None if unknown."""
        ...


def layers(places: SamplePlaces, func: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that computes ``torch.lstm`` or a similar one layer by layer."""

    def run(data: Tensor, *args: Any) -> tuple[Tensor, ...]:
        packed = isinstance(args[2], list | tuple)  # batch sizes, states, weights
        sizes = args[0] if packed else None
        state, weights, biases, count, dropout, train, both, *rest = args[packed:]
        x = data.transpose(0, 1) if rest and rest[0] else data
        times = None if sizes is None else torch.arange(len(sizes)).repeat_interleave(sizes)
        states = list(state) if isinstance(state, list | tuple) else [state]
        _set_places(places, x, states, times, 1 if sizes is None else int(sizes[0]))
        whole = any(s.requires_grad and places.place(s) is None for s in states)
        layer = whole_recurrent_layer if whole else recurrent_layer
        directions, n = 2 if both else 1, len(weights) // count
        lasts: list[list[Tensor]] = [[] for _ in states]
        for k in range(count):
            own = [s[k * directions : (k + 1) * directions] for s in states]
            y = layer(func, x, times, own, weights[k * n : (k + 1) * n], biases, train, both)
            x, behind = y[: len(x), ..., : own[0].shape[2] * directions], y[len(x) :]
            for s, last, found in zip(own, lasts, behind.chunk(len(own)), strict=True):
                found = (found if sizes is not None else found[0])[:, : s.shape[2] * directions]
                last.append(found.unflatten(1, (directions, -1)).transpose(0, 1))
            if dropout and k + 1 < count:
                x = torch.dropout(x, dropout, train)
        return (x.transpose(0, 1) if rest and rest[0] else x, *(torch.cat(s) for s in lasts))

    return run


def cell(
    places: SamplePlaces, func: Callable[..., Any]
) -> Callable[..., Tensor | Sequence[Tensor]]:
    """Return a function that computes ``torch.lstm_cell`` or a similar one."""

    def run(x: Tensor, state: Any, *weights: Any) -> Tensor | Sequence[Tensor]:
        states = list(state) if isinstance(state, list | tuple) else [state]
        place = places.place(x)
        for s in states:
            if place is not None and places.place(s) is None and not s.requires_grad:
                places.set_place(s, place)
        whole = any(s.requires_grad and places.place(s) is None for s in states)
        y = (whole_recurrent_cell if whole else recurrent_cell)(func, x, states, weights)
        return y.chunk(len(states), 1) if len(states) > 1 else y

    return run


def _set_places(
    places: SamplePlaces, x: Tensor, states: Sequence[Tensor], times: Tensor | None, batch: int
) -> None:
    """Record the places of tensors without a gradient that hold a sample in each slice."""
    place = places.place(x)
    if place is None and times is None and not x.requires_grad:
        found = [p for s in states if (p := places.place(s)) is not None and p.dim == 1]
        if found:
            places.set_place(x, place := found[0])
    if place is None or not place.separable or place.dim != (1 if times is None else 0):
        return
    if times is not None:
        places.set_place(times, place)
    samples = place.owners if times is None else place.owners.taken(0, batch, 1)
    for s in states:
        if places.place(s) is None and not s.requires_grad:
            places.set_place(s, Place(samples, 1))


def _overridable(run: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """Make a function of tensors and lists of tensors visible to function modes."""

    def call(*args: Any) -> Tensor:
        tensors = [x for a in args for x in (a if isinstance(a, list | tuple) else [a])]
        tensors = [x for x in tensors if isinstance(x, Tensor)]
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args)
        return run(*args)

    call.__name__ = name
    return call


def _layer(
    func: Callable[..., Any],
    x: Tensor,
    times: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: bool,
    train: bool,
    both: bool,
) -> Tensor:
    """One layer on ``[T, B, d]``, or packed ``[N, d]`` with the time of each row, ``[N]``.

    Returns outputs and last states, ``[T + S, B, width]`` or ``[N + S * B, width]``, the narrower
    ones padded with zeros.
    """
    hx = list(states) if len(states) > 1 else states[0]
    if times is None:
        found = func(x, hx, list(weights), biases, 1, 0.0, train, both, False)
    else:
        found = func(x, times.bincount().cpu(), hx, list(weights), biases, 1, 0.0, train, both)
    out, *last = found
    last = [s.transpose(0, 1).flatten(1) for s in last]
    parts = [out, *(last if times is not None else (s[None] for s in last))]
    width = max(part.shape[-1] for part in parts)
    return torch.cat([pad(p, (0, width - p.shape[-1])) for p in parts])


def _cell(
    func: Callable[..., Any], x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor | None]
) -> Tensor:
    """One step on ``[B, d]``: the new states side by side, ``[B, S * width]``."""
    found = func(x, list(states) if len(states) > 1 else states[0], *weights)
    return torch.cat(list(found), 1) if len(states) > 1 else found


recurrent_layer = _overridable(_layer, "recurrent_layer")
whole_recurrent_layer = _overridable(_layer, "whole_recurrent_layer")
recurrent_cell = _overridable(_cell, "recurrent_cell")
whole_recurrent_cell = _overridable(_cell, "whole_recurrent_cell")


def layer_place(call: Call) -> Place:
    """Where the samples lie in the outputs and last states of a layer."""
    x, times, states = call.args[1:4]
    place = call.place(x)
    if place is None:
        raise Mixed("its states, not its input, hold samples")
    owners, dim = place
    if times is None:
        if x.ndim != 3 or dim != 1:
            raise Mixed("it runs along the dimension of the samples")
        return place
    if dim:
        raise Mixed("its packed input holds no samples in its rows")
    of_states = _owners_of_packed(owners, times.bincount().cpu())
    index = torch.cat([owners.index, *[of_states] * len(states)])
    return Place(Owners(index, owners.n_tasks), 0)


def cell_place(call: Call) -> Place:
    """Where the samples lie in the states of a cell."""
    x = call.args[1]
    place = call.place(x)
    if place is None or x.ndim != 2 or place.dim:
        raise Mixed("it expects the samples in the first dimension of its input")
    return place


def _owners_of_packed(owners: Owners, sizes: Tensor) -> Tensor:
    """Owners of the samples whose rows are packed time step by time step, ``[B]``."""
    table, _ = pad_packed_sequence(PackedSequence(owners.index[:, None], sizes), True, -1)
    first = table[:, 0, 0]
    if bool((table[:, :, 0] != first[:, None])[table[:, :, 0] >= 0].any()):
        raise Mixed("rows of one packed sequence belong to different tasks")
    return first


def pack(call: Call) -> Sequence[Place | None]:
    """``pack_padded_sequence``: owners are packed as the samples are."""
    x, lengths, batch_first = call.args
    place = call.place(x)
    if place is None or place.dim != (0 if batch_first else 1):
        raise Mixed("it packs along the dimension of the samples")
    shape = (-1, 1) if batch_first else (1, -1)
    probe = place.owners.index.view(shape).expand(x.shape[:2])[..., None]
    packed = pack_padded_sequence(probe, lengths.cpu(), batch_first)
    return [Place(Owners(packed.data[:, 0], place.owners.n_tasks), 0), None]


def unpack(call: Call) -> Sequence[Place | None]:
    """``pad_packed_sequence``."""
    data, sizes, batch_first = call.args[:3]
    place = call.place(data)
    if place is None or place.dim:
        raise Mixed("its rows hold no samples")
    samples = Owners(_owners_of_packed(place.owners, sizes), place.owners.n_tasks)
    return [Place(samples, 0 if batch_first else 1), None]
