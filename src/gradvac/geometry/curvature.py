"""Local curvature: the largest eigenvalue of the Hessian of a loss, by Hessian-vector products.

Li and Gong 2021, figure 5 ("local curvature measured by top eigenvalue"). The Hessian is never
formed: SciPy's Lanczos (ARPACK) asks for products with vectors, each of which is two backward
passes. Fused attention kernels have no second derivative, so the plain one is used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradvac.errors import GradientError
from gradvac.geometry.measure import Losses, undisturbed

__all__ = ["TopEigenvalue", "curvature", "hessian_product", "top_eigenvalue"]

_LANCZOS = 12  # vectors kept at once; SciPy's 20 would take 27 GB for a Transformer-Big


@dataclass(frozen=True)
class TopEigenvalue:
    """The largest eigenvalue of a Hessian and how well it is known.

    Attributes:
        value: the largest eigenvalue, not the one of largest magnitude; positive unless the loss
            curves downwards in every direction.
        residual: ``|Hv - value v| / |value|`` for the unit eigenvector found.
        products: how many Hessian-vector products were needed.

    Example:
        >>> import torch
        >>> from gradvac.geometry.curvature import top_eigenvalue
        >>> w = torch.zeros(2, requires_grad=True)
        >>> found = top_eigenvalue(lambda: [(w**2 @ torch.tensor([3.0, 1.0])) / 2], [w])
        >>> round(found.value, 4), found.residual < 1e-3
        (3.0, True)
    """

    value: float
    residual: float
    products: int


def curvature(
    model: nn.Module, losses: Mapping[str, Losses], tolerance: float = 1e-3, seed: int = 0
) -> dict[str, TopEigenvalue]:
    """Return the top Hessian eigenvalue of each loss, in all trainable parameters, dropout off.

    ``losses`` maps a name, such as a group of languages, to a function that yields the parts of
    its loss; all products for an eigenvalue use the same parts. Memory: a dozen vectors of the size
    of the model.

    Raises:
        GradientError: if Lanczos does not converge, or a loss is not finite.

    Example:
        >>> import torch
        >>> from gradvac.geometry.curvature import curvature
        >>> model, x = torch.nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> losses = {"fr": lambda: [model(x).square().sum() / 2]}  # its Hessian is x^T x
        >>> round(curvature(model, losses)["fr"].value, 4)
        4.0
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = {}
    with undisturbed(model):
        for name, parts in losses.items():
            try:
                found[name] = top_eigenvalue(parts, parameters, tolerance, seed)
            except GradientError as e:
                raise GradientError(f"{name}: {e}") from e
    return found


def top_eigenvalue(
    losses: Losses, parameters: Sequence[Tensor], tolerance: float = 1e-3, seed: int = 0
) -> TopEigenvalue:
    """Return the largest eigenvalue of the Hessian of a loss, to a relative ``tolerance``.

    Raises:
        GradientError: as `curvature`.

    Example:
        >>> import torch
        >>> from gradvac.geometry.curvature import top_eigenvalue
        >>> w = torch.zeros(2, requires_grad=True)
        >>> round(top_eigenvalue(lambda: [w.prod() * 5], [w]).value, 4)  # eigenvalues 5 and -5
        5.0
    """
    hessian = _Hessian(losses, parameters)
    size = hessian.shape[0]
    if size < 2:
        raise GradientError(
            f"the loss has {size} parameters; the search for an eigenvalue needs 2 or more"
        )
    start = np.random.default_rng(seed).normal(size=size).astype(hessian.dtype)
    kept = min(size, _LANCZOS)
    limit: Any = tolerance  # SciPy's annotation says int
    try:
        values, vectors = eigsh(hessian, 1, which="LA", v0=start, ncv=kept, tol=limit)
    except ArpackNoConvergence as e:
        raise GradientError(f"no eigenvalue after {hessian.products} products") from e
    value, vector = float(values[0]), vectors[:, 0]
    products = hessian.products
    residual = np.linalg.norm(hessian.matvec(vector) - value * vector)
    return TopEigenvalue(value, float(residual) / max(abs(value), 1e-300), products)


class _Hessian(LinearOperator):
    """The Hessian of a loss as a SciPy operator; counts its products."""

    def __init__(self, losses: Losses, parameters: Sequence[Tensor]) -> None:
        size = sum(p.numel() for p in parameters)
        double = parameters[0].dtype == torch.float64
        super().__init__(np.float64 if double else np.float32, (size, size))
        self.losses, self.parameters, self.products = losses, parameters, 0

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        self.products += 1
        return hessian_product(self.losses, self.parameters, torch.from_numpy(x.ravel())).numpy()


def hessian_product(losses: Losses, parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return ``H v`` on the CPU, for the Hessian of a loss and ``vector`` [P] over all parameters.

    Example:
        >>> import torch
        >>> from gradvac.geometry.curvature import hessian_product
        >>> w = torch.zeros(2, requires_grad=True)
        >>> hessian_product(lambda: [w.prod() * 5], [w], torch.tensor([1.0, 2.0]))
        tensor([10.,  5.])
    """
    sizes = [p.numel() for p in parameters]
    pieces = [
        piece.view_as(p).to(p) for p, piece in zip(parameters, vector.split(sizes), strict=True)
    ]
    total = [torch.zeros_like(p) for p in parameters]
    with sdpa_kernel(SDPBackend.MATH):
        for part in losses():
            gradients = torch.autograd.grad(
                part, parameters, create_graph=True, materialize_grads=True
            )
            slope = sum(((g * v).sum() for g, v in zip(gradients, pieces, strict=True)))
            assert isinstance(slope, Tensor)
            if not slope.requires_grad:  # the loss is linear: nothing curves
                continue
            second = torch.autograd.grad(slope, parameters, materialize_grads=True)
            for sum_, term in zip(total, second, strict=True):
                sum_ += term
    result = torch.cat([t.reshape(-1).to(vector) for t in total])
    if not result.isfinite().all():
        raise GradientError("a Hessian-vector product is not finite")
    return result
