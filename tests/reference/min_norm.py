"""The shortest vector in a convex hull by trying every face: slow, exact, obvious."""

from itertools import combinations

import torch
from torch import Tensor


def min_norm_weights(vectors: Tensor) -> Tensor:
    """Weights ``[K]`` of the shortest convex combination of rows ``[K, P]``; small K."""
    k = len(vectors)
    best, best_norm = torch.eye(k, dtype=vectors.dtype)[0], float("inf")
    for size in range(1, k + 1):
        for face in combinations(range(k), size):
            # The point of the face's affine hull nearest to 0: v0 + span(vi - v0), least squares.
            rows = vectors[list(face)]
            inner = torch.zeros(0, dtype=vectors.dtype)
            if size > 1:
                inner = torch.linalg.lstsq((rows[1:] - rows[0]).T, -rows[0]).solution
            alpha = torch.cat([1 - inner.sum(0, keepdim=True), inner])
            norm = float((alpha @ rows).norm())
            if bool((alpha >= 0).all()) and norm < best_norm:
                best, best_norm = torch.zeros(k, dtype=vectors.dtype), norm
                best[list(face)] = alpha
    return best
