"""Plain training on several ranks: ``p.grad`` is summed over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradvac.engine.ranks.group import Ranks, Wait, on_host
from gradvac.sending import to_device


class Reduction:
    """Sums ``p.grad`` over the ranks: plain training, without a method or a wrapper.

    Begins during the backward pass with the last parameters, which it is assumed to reach first. A
    rank without samples has nothing to wait for. A parameter that no rank used keeps
    ``p.grad = None``. Bitwise the same on all ranks.

    Args:
        ranks: all of them run the same steps.
        parameters: those of the model, in the same order on all ranks.
    """

    def __init__(self, ranks: Ranks, parameters: Sequence[nn.Parameter]) -> None:
        self.ranks = ranks
        self.parameters = [p for p in parameters if p.requires_grad]
        given = ranks.bucket
        size = given if isinstance(given, int) else given(_numel(self.parameters))
        self.buckets: list[list[nn.Parameter]] = [[]]
        for p in reversed(self.parameters):
            last = self.buckets[-1]
            fits = not last or (last[0].dtype, last[0].device) == (p.dtype, p.device)
            if _numel(last) >= size or not fits:
                self.buckets.append([])
            self.buckets[-1].append(p)
        self._waits: list[tuple[Tensor, Wait]] = []
        self._missing: list[set[int]] = []

    @contextmanager
    def during(self) -> Iterator[None]:
        """Send complete gradients during the last backward pass of the step, run inside."""
        self._missing = [{id(p) for p in bucket} for bucket in self.buckets]
        hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self.parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _arrived(self, p: Tensor) -> None:
        for missing in self._missing:
            missing.discard(id(p))
        while len(self._waits) < len(self.buckets) and not self._missing[len(self._waits)]:
            self._launch()

    def _launch(self) -> None:
        bucket = self.buckets[len(self._waits)]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        self._waits.append((flat, self.ranks.sum(flat)))

    def finish(self) -> None:
        """Send the rest, and put the sums into ``p.grad``."""
        while len(self._waits) < len(self.buckets):
            self._launch()
        waits, self._waits = self._waits, []
        used = torch.tensor([float(p.grad is not None) for p in self.parameters])
        used = to_device(used, self.parameters[0].device)
        found = on_host([(self.ranks.sum(used), used)])[0].tolist()
        anywhere = {id(p) for p, n in zip(self.parameters, found, strict=True) if n}
        for bucket, (flat, wait) in zip(self.buckets, waits, strict=True):
            wait()
            pieces = flat.split([p.numel() for p in bucket])
            for p, piece in zip(bucket, pieces, strict=True):
                p.grad = piece.view(p.shape) if id(p) in anywhere else None


def _numel(parameters: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
