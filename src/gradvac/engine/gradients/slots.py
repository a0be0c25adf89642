"""Where the K gradients of a tensor are collected; for parameters see `stores`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradvac.engine.gradients.precision import at_least_float32


class Slot:
    """Collects the K gradients of one tensor, a parameter or computed only from parameters."""

    fresh: bool

    def probe(self) -> Tensor | None:
        """Return a tensor without data with the layout of each of the K; None for a copy."""
        raise NotImplementedError

    def expect(self) -> None:
        """Count a use in the forward pass."""
        raise NotImplementedError

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        raise NotImplementedError

    def collected(self, n_tasks: int) -> tuple[Tensor, bool]:
        """Return the K gradients, ``[K, *shape]``, to add to, and whether they are unfilled.

        If unfilled, the caller must fill all of them.
        """
        raise NotImplementedError

    def add(self, gradients: Tensor) -> None:
        """Add gradients ``[K, *shape]``."""
        collected, fresh = self.collected(len(gradients))
        if fresh:
            collected.copy_(gradients)
        else:
            collected.add_(gradients)

    def zero(self, n_tasks: int) -> Tensor:
        """Return the K gradients, ``[K, *shape]``, zeros if they were unfilled."""
        collected, fresh = self.collected(n_tasks)
        return collected.zero_() if fresh else collected


class ViewSlot(Slot):
    """Gradients of a view of another slot's tensor: views of its gradients."""

    def __init__(self, base: Slot, view: Callable[[Tensor], Tensor]) -> None:
        self.base, self.view = base, view
        self._probe: Tensor | None = None

    def probe(self) -> Tensor | None:
        """Return a tensor without data with the layout of each of the K; None for a copy.

        Indexing with tensors copies, and so does ``reshape`` if the K gradients have another memory
        layout than the parameter. A view with other numbers, such as the real parts of complex
        ones, counts as a copy.
        """
        if self._probe is None and (of := self.base.probe()) is not None:
            try:
                seen = self.view(of)
            except Exception:  # an index on another device: a copy
                return None
            root = of if of._base is None else of._base
            if seen._is_view() and seen._base is root and seen.dtype == of.dtype:
                self._probe = seen
        return self._probe

    def expect(self) -> None:
        """Count a use in the forward pass."""
        self.base.expect()

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        self.base.arrived()

    def collected(self, n_tasks: int) -> tuple[Tensor, bool]:
        """Return the K gradients, ``[K, *shape]``, and whether they are still unfilled."""
        whole, of, seen = self.base.zero(n_tasks), self.base.probe(), self.probe()
        assert of is not None and seen is not None
        start = whole.storage_offset() + seen.storage_offset() - of.storage_offset()
        shape, strides = (n_tasks, *seen.shape), (whole.stride(0), *seen.stride())
        return whole.as_strided(shape, strides, start), False


class DerivedSlot(Slot):
    """Gradients of a tensor computed only from parameters, passed on to these at the end.

    Attributes:
        tensor: the tensor, with its graph.
        sources: slots of the parameters it was computed from.
        buffer: the gradients, ``[K, *shape]``.
    """

    def __init__(self, tensor: Tensor, sources: list[Slot]) -> None:
        self.tensor, self.sources = tensor, sources
        self.buffer: Tensor | None = None

    def probe(self) -> Tensor:
        """Return a tensor without data laid out as each of the K."""
        return torch.empty(self.tensor.shape, device="meta")

    def expect(self) -> None:
        """Count a use in the forward pass."""
        for slot in self.sources:
            slot.expect()

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        pass  # the parameters wait until the gradients have been passed on

    def collected(self, n_tasks: int) -> tuple[Tensor, bool]:
        """Return the K gradients, ``[K, *shape]``, and whether they are still unfilled."""
        if self.buffer is not None:
            return self.buffer, False
        shape, dtype = (n_tasks, *self.tensor.shape), at_least_float32(self.tensor.dtype)
        self.buffer = torch.empty(shape, dtype=dtype, device=self.tensor.device)
        return self.buffer, True
