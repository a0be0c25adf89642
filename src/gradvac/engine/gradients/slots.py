"""Where the K gradients of a tensor are collected; of parameters, see `stores`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradvac.engine.gradients.precision import at_least_float32


class Slot:
    """Collects the K gradients of one tensor, a parameter or what was made of parameters alone."""

    fresh: bool

    def probe(self) -> Tensor | None:
        """Return a tensor without data laid out as each of the K; None if it would be a copy."""
        raise NotImplementedError

    def expect(self) -> None:
        """Count a use in the forward pass."""
        raise NotImplementedError

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        raise NotImplementedError

    def pieces(self, n_tasks: int) -> tuple[Sequence[Tensor], bool]:
        """Return the K tensors to add gradients to, and whether they hold nothing yet.

        Who asks must fill or add to every one of them.
        """
        raise NotImplementedError

    def add(self, gradients: Tensor) -> None:
        """Add gradients ``[K, *shape]``."""
        pieces, fresh = self.pieces(len(gradients))
        for piece, gradient in zip(pieces, gradients, strict=True):
            if fresh:
                piece.copy_(gradient)
            else:
                piece.add_(gradient)

    def zero(self, n_tasks: int) -> Sequence[Tensor]:
        """Return the K tensors, zero if they held nothing yet."""
        pieces, fresh = self.pieces(n_tasks)
        if fresh:
            for piece in pieces:
                piece.zero_()
        return pieces


class ViewSlot(Slot):
    """Gradients of a view of another slot's tensor: views of its gradients."""

    def __init__(self, base: Slot, view: Callable[[Tensor], Tensor]) -> None:
        self.base, self.view = base, view

    def probe(self) -> Tensor | None:
        """Return a tensor without data laid out as each of the K; None if it would be a copy.

        Indexing with tensors copies, and so does ``reshape`` where the K gradients lie otherwise
        than the parameter.
        """
        of = self.base.probe()
        if of is None:
            return None
        try:
            seen = self.view(of)
        except Exception:  # an index that is not on its device: a copy
            return None
        return (
            seen
            if seen._is_view() and seen._base is (of if of._base is None else of._base)
            else None
        )

    def expect(self) -> None:
        """Count a use in the forward pass."""
        self.base.expect()

    def arrived(self) -> None:
        """Count a use whose gradients have all been added."""
        self.base.arrived()

    def pieces(self, n_tasks: int) -> tuple[Sequence[Tensor], bool]:
        """Return the K tensors to add gradients to, and whether they hold nothing yet."""
        return [self.view(piece) for piece in self.base.zero(n_tasks)], False


class DerivedSlot(Slot):
    """Gradients of a tensor made of parameters alone, to be carried on to these at the end.

    Attributes:
        tensor: the tensor, with its graph.
        sources: slots of the parameters it was made of.
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
        pass  # the parameters wait until the gradients have been carried on

    def pieces(self, n_tasks: int) -> tuple[Sequence[Tensor], bool]:
        """Return the K tensors to add gradients to, and whether they hold nothing yet."""
        buffer = self.buffer
        if buffer is None:
            dtype = at_least_float32(self.tensor.dtype)
            shape = (n_tasks, *self.tensor.shape)
            self.buffer = torch.empty(shape, dtype=dtype, device=self.tensor.device)
            return self.buffer.unbind(0), True
        return buffer.unbind(0), False
