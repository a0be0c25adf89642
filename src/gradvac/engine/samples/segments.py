"""Tokens of several sequences in a row, which attention keeps apart.

Each token is a sample, owned by the task of its sequence. Attention mixes tokens, so it keeps tasks
apart only if its mask does, and a mask is data: another batch may have another. So in every step
the masks themselves are checked, not only the operations.

*Fused attention*: the mask ``[..., T, T]`` must exclude every pair of tokens of different tasks.
The mask that all layers share is checked once. *Attention as two products*: the probabilities
``[..., T, T]`` of such pairs must be exactly 0; the gradient of their scores is then 0 too. Of
several rows each has its own pairs, and a mask for all rows must exclude those of every row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradvac.engine.samples.crossed import Crossed
from gradvac.engine.samples.places import Call, Mixed, Place

LEAK = "attention lets tokens of different tasks see each other"


class Segments:
    """Checks in one forward pass that attention keeps the tokens of different tasks apart.

    Args:
        repeating: whether activation checkpointing repeats what was checked already.
    """

    def __init__(self, repeating: Callable[[], bool]) -> None:
        self._repeating = repeating
        self._across: dict[tuple[object, ...], tuple[Place, Tensor | None]] = {}
        self._seen: dict[int, tuple[Tensor, int]] = {}
        self._leaks: list[Tensor] = []

    def leaks(self) -> bool:
        """Whether a mask on an accelerator lets tasks see each other; waits for the device."""
        return bool(self._leaks) and bool(torch.stack(self._leaks).any())

    def attention(self, call: Call) -> Place:
        """Fused attention of ``[..., T, d]``, where tokens of different tasks may be masked."""
        q, k, v = (call.argument(n, name) for n, name in enumerate(("query", "key", "value")))
        place = self._tokens(call, q, k, v)
        if place is None:
            raise Mixed("the tokens of its queries, keys and values are not those of the batch")
        mask = call.argument(3, "attn_mask")
        x = next(x for x in (q, k, v) if call.place(x) is not None)
        different = self._different(call, x)
        if (k.requires_grad or v.requires_grad) and different is not None:
            if mask is None:
                raise Mixed(f"{LEAK}: it has no mask")
            if mask.requires_grad:
                raise Mixed("its mask is computed from parameters")
            self._check(mask, different, _allowed)
        return place

    def product(self, call: Call, a: Tensor, b: Tensor) -> Place | None:
        """Products of attention: queries with keys, or probabilities with values; else None."""
        of_a, of_b = call.place(a), call.place(b)
        if of_a is None or of_b is None or a is b or a.ndim < 2 or b.ndim < 2:
            return None
        if of_a.dim != a.ndim - 2 or not of_a.owners.same(of_b.owners):
            return None
        if of_b.dim == b.ndim - 2 and a.shape[-1] == len(of_a.owners):
            if a.requires_grad or b.requires_grad:
                self._check(a, self._different(call, a), lambda p: p != 0)
        elif of_b.dim != b.ndim - 1:
            return None
        return Place(of_a.owners, call.out.ndim - 2)

    def _tokens(self, call: Call, *tensors: Tensor) -> Place | None:
        """Where all of some tensors hold the tokens, if it is the dimension before the last."""
        places = [call.place(x) for x in tensors]
        found = [place for place in places if place is not None]
        if not found or any(x.requires_grad for x, p in zip(tensors, places, strict=True) if not p):
            return None
        first = found[0]
        fits = [x.ndim >= 2 and x.shape[-2] == len(first.owners) for x in tensors]
        there = [
            place is None or (place.dim == x.ndim - 2 and place.owners.same(first.owners))
            for x, place in zip(tensors, places, strict=True)
        ]
        return Place(first.owners, call.out.ndim - 2) if all(fits) and all(there) else None

    def _check(
        self, x: Tensor, different: Tensor | None, joined: Callable[[Tensor], Tensor]
    ) -> None:
        """Check that ``joined`` is nowhere true of two tokens of different tasks.

        Args:
            x: mask or probabilities ``[..., T, T]``.
            different: of :meth:`_different`.
            joined: which pairs of tokens see each other, of ``x``.

        Raises:
            Mixed: if it is, on the CPU; on an accelerator it is noted for :meth:`leaks`.
        """
        if different is None or self._repeating() or self._checked(x):
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            pairs = joined(x.detach())
            kept = different.ndim  # dimensions that may differ from row to row
            if pairs.ndim > kept:
                pairs = pairs.flatten(0, -kept - 1).any(0)
            of_all = [d for d in range(-kept, -2) if d >= -pairs.ndim and different.shape[d] == 1]
            pairs = pairs.any(of_all, keepdim=True) if of_all else pairs
            leak = (pairs & different).any()
        if leak.device.type != "cpu":
            self._leaks.append(leak)
        elif bool(leak):
            raise Mixed(LEAK)
        if joined is _allowed:  # probabilities are used once
            self._seen[id(x)] = x, x._version

    def _checked(self, x: Tensor) -> bool:
        """Whether a mask was checked, and not written to since."""
        seen, version = self._seen.get(id(x), (None, -1))
        return seen is x and version == x._version

    def _different(self, call: Call, x: Tensor) -> Tensor | None:
        """Which pairs of tokens of queries ``x`` belong to different tasks; None if there are none.

        Returns:
            ``[T, T]``; of several rows ``[R, 1, ..., T, T]``, where the dimension of the rows is
            that of ``x``.

        Raises:
            Mixed: if the rows lie in one of the last two dimensions.
        """
        place = call.whole_place(x)
        assert place is not None
        rows = place.rows if isinstance(place, Crossed) else None
        if rows is not None and rows.dim >= x.ndim - 2:
            raise Mixed("it attends across rows")
        key = id(place.owners), id(rows and rows.owners), rows and rows.dim - x.ndim, x.device
        if key not in self._across:
            tasks = place.owners.index[:, None] if rows is None else place.tasks(x.ndim)
            found = tasks != tasks.mT
            self._across[key] = place, found.to(x.device) if bool(found.any()) else None
        return self._across[key][1]


def _allowed(mask: Tensor) -> Tensor:
    """Which pairs a mask of fused attention lets through."""
    if mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min / 2  # added to the scores; also -inf excludes
