"""Approximate randomisation over sentences (Noreen 1989; Riezler and Maxwell 2005)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TRIALS = 10_000
_AT_ONCE = 500  # trials whose sums are in memory together


def randomisation_test(
    baseline: np.ndarray,
    system: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    *,
    trials: int = TRIALS,
    seed: int = 12345,
) -> float:
    """Two-sided p-value of a difference in score between two systems on the same sentences.

    ``baseline`` and ``system`` [N, ...] are counts of each sentence; ``score`` takes their sums,
    [..., ...] to [...]. A trial exchanges the two outputs of every sentence with probability 1/2;
    the p-value is (r + 1) / (trials + 1) for r trials with a score difference at least as large.
    """
    shape = baseline.shape[1:]
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (baseline, system))
    total, gap = a.sum(0) + b.sum(0), b - a
    differ = lambda x, y: np.abs(
        score(x.reshape(*x.shape[:-1], *shape)) - score(y.reshape(*y.shape[:-1], *shape))
    )
    # The order of a sum changes the last bits of a score; equal scores must count as equal.
    seen = float(differ(a.sum(0), b.sum(0))) - 1e-9
    rng, reached, left = np.random.default_rng(seed), 0, trials
    while left:
        count = min(left, _AT_ONCE)
        exchanged = rng.integers(0, 2, (count, len(a))).astype(np.float64)
        first = a.sum(0) + exchanged @ gap
        reached += int((differ(first, total - first) >= seen).sum())
        left -= count
    return (reached + 1) / (trials + 1)
