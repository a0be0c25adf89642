"""Memory for the task gradients of parameter groups."""

from __future__ import annotations

import torch
from torch import Tensor


def free_bytes(device: torch.device) -> int | None:
    """Return the free bytes of an accelerator; None if they are unknown."""
    if device.type != "cuda":
        return None
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


class Pool:
    """Memory for matrices, kept between steps, as new pages cost as much as filling them."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def numel(self) -> int:
        """How many numbers the free memory can hold."""
        return sum(memory.numel() for memory in self._free)

    def take(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised matrix ``[rows, columns]``."""
        n = rows * columns
        fits = [m for m in self._free if len(m) >= n and m.dtype == dtype and m.device == device]
        if not fits:
            # A matrix grows here; without this the pool would keep too small blocks for ever.
            same = [m for m in self._free if m.dtype == dtype and m.device == device]
            self._drop(same[-1] if same else None)
            return torch.empty(n, dtype=dtype, device=device).view(rows, columns)
        memory = min(fits, key=len)
        self._drop(memory)
        return memory[:n].view(rows, columns)

    def give(self, matrix: Tensor) -> None:
        """Take a matrix back."""
        n = matrix.untyped_storage().nbytes() // matrix.element_size()
        self._free.append(matrix.as_strided((n,), (1,), 0))

    def _drop(self, memory: Tensor | None) -> None:
        self._free = [m for m in self._free if m is not memory]
