"""Multiple gradient descent (Sener & Koltun, NeurIPS 2018; arXiv 1810.04650), on Gram matrices.

The update is the shortest vector in the convex hull of the task gradients (eq. 3)::

    alpha* = argmin_alpha  || sum_i alpha_i g_i / s_i ||^2     alpha >= 0, sum_i alpha_i = 1
    update with sum_i alpha*_i g_i

where s_i normalises the gradients while alpha* is computed, and only then, as in the authors'
code. Their Algorithm 2 is Frank-Wolfe: take the task t whose gradient points most against the
current combination, mix it with the best step size, repeat. Its error falls like 1/steps, and where
norms differ much 250 steps are far from the minimum. Here the weights of all chosen tasks are
solved for after each t, and a task whose weight would be negative is removed (fully corrective
Frank-Wolfe, which is Wolfe's 1976 algorithm for this problem): the minimum, in about K steps.

Tasks whose normalised gradients are equal share their weight equally: any split is a minimum, but
the gradients themselves may differ in length, and the order of the tasks must not matter.

The variant MGDA-UB differentiates by a shared representation instead of by the parameters. It
needs one input for all tasks; in translation every task has its own sentences.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from gradvac.errors import GradientError
from gradvac.methods.base import Method, StepGeometry
from gradvac.methods.shared import positive_losses

NORMALIZATIONS = ("none", "l2", "loss", "loss+")
# Larger than the rounding of a cosine of two equal vectors, and of their lengths. Chosen here.
_SAME_COSINE, _SAME_LENGTH = 1e-13, 1e-8


def min_norm(cosine: Tensor, length: Tensor, max_iterations: int, tolerance: float) -> Tensor:
    """Find the shortest convex combination of vectors, for all groups at once.

    Args:
        cosine: of the vectors, ``[groups, K, K]``, float64.
        length: of the vectors, ``[groups, K]``; one of length 0 gets weight 0.
        max_iterations: bound on the number of linear systems solved.
        tolerance: stop when the squared length is at most this fraction above the minimum.

    Returns:
        ``[groups, K]``; rows sum to 1, or are 0 if all vectors are.
    """
    # beta_i = alpha_i |v_i| are coefficients of unit vectors: lengths are then not in the systems,
    # only in the plane sum_i beta_i / |v_i| = 1.
    present = length > 0
    length = length / length.masked_fill(~present, math.inf).amin(1, keepdim=True)
    inverse = torch.where(present, 1 / length, 0.0)
    chosen = present & (torch.arange(length.shape[1], device=length.device) == _shortest(length))
    beta = chosen.to(cosine)
    done, shrinking = ~present.any(1), torch.zeros_like(present[:, 0])
    for _ in range(max_iterations):
        along = torch.where(present, length * (cosine @ beta[:, :, None]).squeeze(2), math.inf)
        best, t = along.min(1, keepdim=True)
        square = (beta * (cosine @ beta[:, :, None]).squeeze(2)).sum(1)
        # |x|^2 - |x*|^2 <= 2 (|x|^2 - min_i x.v_i): the duality gap of Frank-Wolfe.
        optimal = 2 * (square - best.squeeze(1)) <= tolerance * square
        done |= ~shrinking & (optimal | chosen.gather(1, t).squeeze(1))
        if bool(done.all()):
            break
        chosen = chosen.scatter(1, t, chosen.gather(1, t) | ~(shrinking | done)[:, None])
        target = _on_plane(cosine, inverse, chosen)
        leaving = chosen & (target <= 0)
        move = torch.where(leaving, beta / (beta - target), 1.0).nan_to_num(0.0)
        move = move.amin(1, keepdim=True)
        hit = leaving & (beta / (beta - target) <= move).logical_or(beta == 0)
        moved = torch.where(chosen & ~hit, beta + move * (target - beta), 0.0)
        beta = torch.where(done[:, None], beta, moved)
        shrinking = leaving.any(1) & ~done
        chosen = chosen & ~hit
    alpha = beta * inverse
    return alpha / alpha.sum(1, keepdim=True).clamp_min(torch.finfo(alpha.dtype).tiny)


def _shortest(length: Tensor) -> Tensor:
    """Position of the shortest vector that is not zero, ``[groups, 1]``."""
    return length.masked_fill(length == 0, math.inf).argmin(1, keepdim=True)


def _on_plane(cosine: Tensor, inverse: Tensor, chosen: Tensor) -> Tensor:
    """Shortest combination of the chosen unit vectors with ``sum_i beta_i inverse_i = 1``."""
    both = chosen[:, :, None] & chosen[:, None, :]
    # The ridge decides between equal vectors; if vectors cancel, the cancelling direction remains.
    system = torch.where(both, cosine, 0.0) + (1e-13 + (~chosen).to(cosine)).diag_embed()
    solution = torch.linalg.solve(system, torch.where(chosen, inverse, 0.0))
    return solution / (solution * inverse).sum(1, keepdim=True)


def _shared_by_equals(alpha: Tensor, cosine: Tensor, length: Tensor) -> Tensor:
    """The weights ``[groups, K]``, each the mean over the vectors that are equal to its own."""
    gap = (length[:, :, None] - length[:, None, :]).abs()
    alike = (cosine >= 1 - _SAME_COSINE) & (gap <= _SAME_LENGTH * length[:, :, None])
    alike = alike | torch.eye(alpha.shape[1], dtype=torch.bool)
    means = (alike.to(alpha) @ alpha[:, :, None]).squeeze(2) / alike.sum(2)
    return torch.where((alike.sum(2) > 1).any(1, keepdim=True), means, alpha)


class MGDA(Method):
    """MGDA: the convex combination of task gradients that is shortest, in each group.

    The weights of a group sum to 1, as in the paper: with K tasks the update is about 1/K of the
    plain sum, which makes no difference to Adam but does to SGD and to gradient clipping. A task
    whose gradient is zero in a group is left out there (the shortest vector would be zero, and the
    other tasks would stop), and all zero gives equal weights.

    Args:
        normalize: what gradients are divided by while the weights are computed: "none", "l2"
            (their norms), "loss" or "loss+" (loss times norm). Without it the task with the
            shortest gradient gets most of the weight.
        max_iterations: bound on the moves of Frank-Wolfe; 250 as in the authors' code.
        tolerance: stop when the squared norm is within this fraction of the minimum; chosen
            here, well below the noise of mini-batches.

    Raises:
        GradientError: if an argument is out of range and, from ``weights`` with "loss" or "loss+",
            if a loss is not positive.

    Example:
        >>> import torch
        >>> from gradvac import MGDA, StepGeometry
        >>> gram = torch.diag(torch.tensor([1.0, 4.0]).double())[None]  # lengths 1, 2
        >>> step = StepGeometry(gram, torch.ones(2).double(), ("fr", "hi"), ("all",), step=0)
        >>> MGDA().weights(step)  # in proportion to 1 / length^2
        tensor([[0.8000, 0.2000]], dtype=torch.float64)
    """

    def __init__(
        self,
        normalize: Literal["none", "l2", "loss", "loss+"] = "none",
        max_iterations: int = 250,
        tolerance: float = 1e-10,
    ) -> None:
        if normalize not in NORMALIZATIONS:
            raise GradientError(
                f"normalize is {normalize!r}; it must be one of {', '.join(NORMALIZATIONS)}"
            )
        if max_iterations < 1:
            raise GradientError(f"max_iterations is {max_iterations!r}; it must be at least 1")
        if not 0 <= tolerance < 1:
            raise GradientError(f"tolerance is {tolerance!r}; it must lie in [0, 1)")
        self.normalize = normalize
        self.max_iterations = max_iterations
        self.tolerance = tolerance

    def _weights(self, geometry: StepGeometry) -> Tensor:
        gram = geometry.gram.cpu()  # a loop of small steps, each of which would wait for a GPU
        norm = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        length = (norm > 0).double() if self.normalize in ("l2", "loss+") else norm
        if self.normalize in ("loss", "loss+"):
            # Of the gradients at hand; mean losses may belong to others.
            why = f"normalize={self.normalize!r} divides by it"
            length = length / positive_losses(geometry, geometry.losses, why)
        safe = torch.where(norm > 0, norm, 1.0)
        cosine = (gram / safe[:, :, None] / safe[:, None, :]).clamp(-1, 1)
        cosine.diagonal(dim1=1, dim2=2).fill_(1.0)
        alpha = min_norm(cosine, length, self.max_iterations, self.tolerance)
        alpha = _shared_by_equals(alpha, cosine, length)
        alpha = torch.where((norm > 0).any(1, keepdim=True), alpha, 1 / alpha.shape[1])
        return alpha.to(geometry.gram.device)
