"""Gram matrices of task gradients: fp32 products, fp64 sums, independent of user settings.

A plain fp32 product over 10^7 elements had a measured error of 2e-3, larger than the cosines to
resolve. Products of 4096 elements added in fp64 have an error of 2e-8 and are as fast.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gradvac.engine.gradients.on_demand import TaskGradients, blocks

_CHUNK = 4096  # elements added in fp32; the error grows with it (1024: 4e-9, 65536: 1e-6)
_BLOCK = 64 * _CHUNK  # elements a CPU processes at once, so that they stay in its cache
_PRODUCTS = 2**26  # bytes of products that an accelerator makes at once, chosen here
_COPIED = 2**28  # bytes of gradients that an accelerator converts at once, chosen here

# Below this value of 1 - cos^2 two gradients are too parallel for fp32 products.
_NEARLY_PARALLEL = 1e-4
# Squared norm per element below which fp32 products may have underflowed (its smallest normal
# number is 1.2e-38; chosen here with a wide margin).
_TINY = 1e-30
# A squared norm below it has products near the smallest normal float64, 2e-308.
_SHORT = 1e-290


def gram(
    groups: Sequence[Sequence[TaskGradients]], fetch: Callable[[Tensor], Tensor] = Tensor.cpu
) -> Tensor:
    """Return the Gram matrix of each group's task gradients, ``[groups, K, K]``, float64, CPU.

    Products are fp32 (fp64 for float64 gradients) and sums fp64. Groups where this is not accurate
    enough are recomputed fully in fp64: two gradients nearly parallel, or squares outside the range
    of fp32. Autocast, TF32 and reduced matmul precision do not apply inside.

    Args:
        groups: for each group its gradients, one tensor ``[K, *shape]`` per parameter, of any
            floating dtype, or an object that computes them on demand.
        fetch: copies the matrices to the CPU, the only wait for the device if no group is doubtful.
    """
    with full_precision(groups[0][0].device.type):
        result = fetch(torch.stack([gram_of_group(each, torch.float32) for each in groups]))
        numels = [
            sum(r[0].numel() if isinstance(r, Tensor) else r.numel for r in gradients)
            for gradients in groups
        ]
        parallel, suspects = doubts(result, torch.tensor(numels))
        for k in (parallel | suspects.any(1)).nonzero().flatten().tolist():
            gradients = groups[k]  # true zeros are fine
            if bool(parallel[k]) or _nonzero(gradients, suspects[k].nonzero().flatten()):
                result[k] = gram_of_group(gradients, torch.float64).cpu()
        for k in (result.diagonal(dim1=1, dim2=2) < _SHORT).any(1).nonzero().flatten().tolist():
            _warn_of_short(groups[k], result[k].diagonal())
    return result


def gram_there(groups: Sequence[Sequence[TaskGradients]]) -> Tensor:
    """Return the Gram matrix of each group's task gradients, ``[groups, K, K]``, on their device.

    Products and sums are float64 for all groups, so that the host need not ask which of them are
    doubtful. Squares of float64 gradients that underflow, see :func:`gram`, count as 0.
    """
    with full_precision(groups[0][0].device.type):
        return torch.stack([gram_of_group(each, torch.float64) for each in groups])


def _warn_of_short(gradients: Sequence[TaskGradients], square: Tensor) -> None:
    """Warn if nonzero float64 gradients have squares that underflow in float64."""
    short = (square < _SHORT).nonzero().flatten()
    double = any(getattr(r, "dtype", None) == torch.float64 for r in gradients)
    if len(short) and double and _nonzero(gradients, short):
        warnings.warn(
            "gradients of a task are shorter than 1e-145, and float64 does not hold their squares: "
            "they count as zero, or nearly so; multiply all losses by a constant",
            RuntimeWarning,
            stacklevel=2,
        )


def cross_cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the cosines between two sets of gradients, ``[K, M]``, float64, CPU.

    One tensor ``[K, *shape]`` and one ``[M, *shape]`` per parameter. Products and sums are float64;
    the cost does not matter, as it is not measured at every step. A zero gradient has cosine 0.
    """
    inner = torch.zeros(len(left[0]), len(right[0]), dtype=torch.float64, device=left[0].device)
    squares = [inner.new_zeros(len(left[0]), 1), inner.new_zeros(1, len(right[0]))]
    for pair in zip(left, right, strict=True):
        flat = [x.reshape(len(x), -1) for x in pair]
        for start in range(0, flat[0].shape[1], _BLOCK):
            a, b = (x[:, start : start + _BLOCK].double() for x in flat)
            inner += a @ b.T
            squares[0] += a.square().sum(1, keepdim=True)
            squares[1] += b.square().sum(1)
    lengths = squares[0].sqrt() * squares[1].sqrt()
    return torch.where(lengths == 0, 0, inner / lengths).cpu()  # NaN stays NaN


def gram_of_group(gradients: Sequence[TaskGradients], dtype: torch.dtype) -> Tensor:
    """Gram matrix of one group, with products in at least ``dtype``."""
    return _total([inner(block, dtype) for each in gradients for block in blocks(each)])


def inner(gradients: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the Gram matrix of the rows of ``[K, ...]``, products in at least ``dtype``."""
    n_tasks, on_cpu = len(gradients), gradients.device.type == "cpu"
    flat = gradients.reshape(n_tasks, -1)
    dtype = torch.promote_types(dtype, gradients.dtype)
    width = _BLOCK if on_cpu else _CHUNK * max(1, _PRODUCTS // (4 * n_tasks**2))
    if not on_cpu and dtype != gradients.dtype:  # what is converted is copied
        width = min(width, _CHUNK * max(1, _COPIED // (_CHUNK * n_tasks * dtype.itemsize)))
    found: list[Tensor] = []
    for start in range(0, flat.shape[1], width):
        block = flat[:, start : start + width]
        block = block.to(dtype)
        whole = block.shape[1] // _CHUNK * _CHUNK
        if whole:
            chunks = block[:, :whole].unflatten(1, (-1, _CHUNK)).transpose(0, 1)
            found.append((chunks @ chunks.mT).sum(0, dtype=torch.float64))
        if whole < block.shape[1]:
            rest = block[:, whole:]
            found.append((rest @ rest.mT).double())
    return _total(found or [flat.new_zeros(n_tasks, n_tasks, dtype=torch.float64)])


def _total(matrices: list[Tensor]) -> Tensor:
    """Add up matrices."""
    return matrices[0] if len(matrices) == 1 else torch.stack(matrices).sum(0)


def doubts(gram: Tensor, numel: Tensor) -> tuple[Tensor, Tensor]:
    """Return which groups' fp32 products, ``[groups, K, K]``, may be too inaccurate.

    Args:
        gram: the products.
        numel: number of elements of a gradient, ``[groups]``.

    Returns:
        Whether two gradients of a group are nearly parallel, ``[groups]``; and which squares are
        outside the range of fp32, ``[groups, K]``, which matters if the gradient is not zero.
    """
    square = gram.diagonal(dim1=1, dim2=2)
    least = (1 - _NEARLY_PARALLEL) * square[:, :, None]
    near = gram.square() > least * square[:, None, :]  # NaN is not, nor 0, where a square is 0
    near.diagonal(dim1=1, dim2=2).fill_(False)  # everything is parallel to itself
    return near.flatten(1).any(1), ~square.isfinite() | (square < _TINY * numel[:, None])


def _nonzero(gradients: Sequence[TaskGradients], suspects: Tensor) -> bool:
    return any(
        bool(block.index_select(0, suspects.to(block.device)).any())
        for each in gradients
        for block in blocks(each)
    )


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Switch off autocast and every reduced matmul precision inside, and restore them after.

    ``torch.set_float32_matmul_precision("high")`` allows TF32 on the GPU, "medium" bfloat16 on
    some CPUs too.
    """
    before = _swap_matmul_precision(None)
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        _swap_matmul_precision(before)


def _swap_matmul_precision(setting: list[str] | None) -> list[str]:
    """Set the precision of fp32 products, None for full, and return the setting before."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
        before = [torch.get_float32_matmul_precision()]
        torch.set_float32_matmul_precision((setting or ["highest"])[0])
        return before
    # Newer torch raises if its old and new switches are mixed; these two work with both.
    backends = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul")]  # noqa: B009
    before = [backend.fp32_precision for backend in backends]
    for backend, value in zip(backends, setting or ["ieee", "ieee"], strict=True):
        backend.fp32_precision = value
    return before
