"""Gram matrices of task gradients: fp32 products, fp64 sums, nothing the user set can spoil them.

A plain fp32 product over 10^7 elements was measured to be wrong by 2e-3, worse than the cosines
it is to resolve. Products of 4096 elements added in fp64 are right to 2e-8 and as fast.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_CHUNK = 4096  # elements added in fp32; the error grows with it (1024: 4e-9, 65536: 1e-6)
_BLOCK = 64 * _CHUNK  # elements handled at once, so that copies of a K x P matrix stay small

# Two gradients this parallel (1 - cos^2) leave a difference of which fp32 products know too little.
_NEARLY_PARALLEL = 1e-4
# Squared norm per element below which fp32 products may have underflowed (its smallest normal
# number is 1.2e-38; chosen here with a wide margin).
_TINY = 1e-30


def gram(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the Gram matrix of each group's task gradients, ``[groups, K, K]``, float64, CPU.

    Products are fp32 (fp64 for float64 gradients) and sums fp64. Groups in which that does not
    suffice are computed again in fp64 throughout: two gradients nearly parallel, or squares that
    leave the range of fp32. Autocast, TF32 and reduced matmul precision do not apply inside.

    Args:
        groups: for each group its gradients, one tensor ``[K, *shape]`` per parameter, of any
            floating dtype.
    """
    with full_precision(groups[0][0].device.type):
        first = torch.stack([_gram(rows, torch.float32) for rows in groups]).cpu()
        sizes = torch.tensor([sum(r[0].numel() for r in rows) for rows in groups])
        for k in _doubtful(first, sizes).nonzero().flatten().tolist():
            first[k] = _gram(groups[k], torch.float64).cpu()
    return first


def _gram(rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Gram matrix of one group, with products in at least ``dtype``."""
    n_tasks = rows[0].shape[0]
    total = torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device=rows[0].device)
    for row in rows:
        flat = row.reshape(n_tasks, -1)
        for start in range(0, flat.shape[1], _BLOCK):
            block = flat[:, start : start + _BLOCK]
            block = block.to(torch.promote_types(dtype, block.dtype))
            whole = block.shape[1] // _CHUNK * _CHUNK
            if whole:
                chunks = block[:, :whole].unflatten(1, (-1, _CHUNK)).transpose(0, 1)
                total += (chunks @ chunks.mT).sum(0, dtype=torch.float64)
            if whole < block.shape[1]:
                rest = block[:, whole:]
                total += (rest @ rest.mT).double()
    return total


def _doubtful(gram: Tensor, sizes: Tensor) -> Tensor:
    """Which groups need fp64 products, ``[groups]`` bool."""
    square = gram.diagonal(dim1=1, dim2=2)
    sine2 = 1 - gram.square() / (square[:, :, None] * square[:, None, :])
    sine2.diagonal(dim1=1, dim2=2).fill_(1.0)  # everything is parallel to itself
    parallel = (sine2 < _NEARLY_PARALLEL).any(2).any(1)  # NaN, where a square is 0, is not
    out_of_range = ~square.isfinite() | (square < _TINY * sizes[:, None])
    return parallel | out_of_range.any(1)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Switch off autocast and every reduced matmul precision, and put all back after.

    ``torch.set_float32_matmul_precision("high")`` allows TF32 on the GPU, "medium" bfloat16 on
    some CPUs too.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
