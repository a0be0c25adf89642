"""Permutation tests and intervals for matrices of similarities.

Entries of a similarity matrix are not independent (each task is in K - 1 of them), so ordinary
p-values are not valid: the Mantel test permutes tasks, the bootstrap samples directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations as all_permutations
from statistics import stdev

import numpy as np
from scipy.cluster.hierarchy import average
from scipy.stats import t as student_t

from gradvac.geometry.similarity import cluster, cophenetic

__all__ = [
    "Correlation",
    "Mantel",
    "cophenetic_test",
    "correlation",
    "half_width",
    "mantel",
    "residual",
    "same",
]

LEAST_VALUES = 3
"""Fewer have no interval that says anything: with two it is 12.7 standard errors wide."""

_CHUNK = 2_000_000  # numbers of permuted matrices in memory at once
_EVERY_ORDER = 8  # tasks up to which all orders are tried: 40,320
_SAMPLED = 9999  # random orders, for more tasks
# Correlations closer than this count as equal: the two halves of a measured matrix, sums of
# products in fp32, differ by up to 4e-7, and so do two equivalent orders.
_TIE = 1e-6


@dataclass(frozen=True)
class Mantel:
    """A correlation of two matrices over the pairs of K tasks.

    Attributes:
        r: Pearson correlation over the pairs known in both; NaN where one does not vary.
        p: share of permutations of the tasks with at least this correlation; NaN as ``r``.
        pairs: pairs known in both.
        permutations: how many were tried; all K! of them when ``exact``.
        exact: whether all were tried.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.statistics import mantel, same
        >>> found = mantel(same("aabb"), same("aabb"))
        >>> found.pairs, found.permutations, found.exact
        (6, 24, True)
    """

    r: float
    p: float
    pairs: int
    permutations: int
    exact: bool


def mantel(a: np.ndarray, b: np.ndarray, permutations: int | None = None, seed: int = 0) -> Mantel:
    """One-sided Mantel test (Mantel 1967) of a positive correlation of ``a`` and ``b``, ``[K, K]``.

    NaN marks unknown pairs, the diagonal does not count, a pair's two entries are averaged.
    All permutations are tried if there are at most ``permutations``, by default 8!; otherwise that
    many random ones, by default 9,999, and p counts the observed order as one of them.

    Example:
        >>> from gradvac.geometry.statistics import mantel, same
        >>> found = mantel(same("aabb"), same("aabb"))
        >>> round(found.r, 6), found.p  # 8 of the 24 orders keep the pairs together
        (1.0, 0.3333333333333333)
    """
    k, a, b = len(a), (a + a.T) / 2, (b + b.T) / 2
    rows, columns = np.triu_indices(k, 1)
    other = b[rows, columns]
    r, pairs = _correlation(a[rows, columns][None], other)
    if math.isnan(r[0]):
        return Mantel(math.nan, math.nan, int(pairs[0]), 0, False)
    exact = math.factorial(k) <= (permutations or math.factorial(_EVERY_ORDER))
    count = permutations or _SAMPLED
    random = np.random.default_rng(seed)
    orders = (
        np.array(list(all_permutations(range(k))))
        if exact
        else np.array([random.permutation(k) for _ in range(count)])
    )
    reached = 0
    step = max(1, _CHUNK // max(1, len(rows)))
    for start in range(0, len(orders), step):
        order = orders[start : start + step]
        found, _ = _correlation(a[order[:, rows], order[:, columns]], other)
        reached += int((found >= r[0] - _TIE).sum())  # NaN (nothing to compare) does not count
    p = reached / len(orders) if exact else (reached + 1) / (len(orders) + 1)
    return Mantel(float(r[0]), p, int(pairs[0]), len(orders), exact)


def _correlation(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson correlation of each row of ``x`` [N, pairs] with ``y`` [pairs], and known pairs."""
    known = ~(np.isnan(x) | np.isnan(y))
    n = known.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (np.where(known, v, 0.0) for v in (x, np.broadcast_to(y, x.shape)))
        x = np.where(known, x - (x.sum(1) / n)[:, None], 0.0)
        y = np.where(known, y - (y.sum(1) / n)[:, None], 0.0)
        scale = np.sqrt((x * x).sum(1) * (y * y).sum(1))
        r = (x * y).sum(1) / np.where(scale > 1e-12 * n, scale, np.nan)
    return r, n


def cophenetic_test(
    cosine: np.ndarray, permutations: int = 999, seed: int = 0
) -> tuple[float, float]:
    """Cophenetic correlation of the clustering of ``cosine`` [K, K], and its p-value.

    Any matrix gives a tree. p is the share of matrices with the same entries in random places
    whose tree fits them at least as well; NaN if the correlation is NaN.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.statistics import cophenetic_test
        >>> r, p = cophenetic_test(np.array([[1.0, 0.8, 0.1], [0.8, 1.0, 0.1], [0.1, 0.1, 1.0]]))
        >>> round(r, 6), p  # three tasks: every order of the entries gives a perfect tree
        (1.0, 1.0)
    """
    r = cluster(cosine).cophenetic
    if math.isnan(r):
        return r, math.nan
    rows, columns = np.triu_indices(len(cosine), 1)
    values = np.minimum(np.nan_to_num(cosine, nan=0.0)[rows, columns], 1.0)  # rounding
    random = np.random.default_rng(seed)
    reached = 0
    for _ in range(permutations):
        distance = 1 - random.permutation(values)
        reached += cophenetic(distance, average(distance)) >= r - _TIE
    return r, (reached + 1) / (permutations + 1)


@dataclass(frozen=True)
class Correlation:
    """Pearson correlation ``r`` of n points, its 95 % bootstrap interval, two-sided p-value.

    ``low`` and ``high`` are percentiles over resampled points; ``p`` is the share of permutations
    with at least this magnitude. NaN if a variable does not vary, or with fewer than 3 points.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.statistics import correlation
        >>> found = correlation(np.arange(10), np.arange(10))
        >>> found.n, round(found.low, 6), round(found.high, 6)
        (10, 1.0, 1.0)
    """

    r: float
    low: float
    high: float
    p: float
    n: int


def correlation(x: np.ndarray, y: np.ndarray, resamples: int = 9999, seed: int = 0) -> Correlation:
    """Correlate ``x`` and ``y``, ``[n]`` each; points with a NaN are left out.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.statistics import correlation
        >>> found = correlation(np.arange(10), -np.arange(10))
        >>> round(found.r, 6), found.p < 0.001
        (-1.0, True)
    """
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = np.asarray(x, dtype=float)[known], np.asarray(y, dtype=float)[known]
    n = len(x)
    r = float(_correlation(x[None], y)[0][0]) if n >= 3 else math.nan
    if math.isnan(r):
        return Correlation(math.nan, math.nan, math.nan, math.nan, n)
    random = np.random.default_rng(seed)
    drawn = random.integers(n, size=(resamples, n))
    again = _paired(x[drawn], y[drawn])
    low, high = np.nanquantile(again, [0.025, 0.975])
    mixed = random.permuted(np.broadcast_to(x, (resamples, n)), axis=1)
    reached = int((np.abs(_correlation(mixed, y)[0]) >= abs(r) - _TIE).sum())
    return Correlation(r, float(low), float(high), (reached + 1) / (resamples + 1), n)


def _paired(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of each row of ``x`` with the same row of ``y``; NaN where one is constant."""
    x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    scale = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    constant = (np.ptp(x, 1) < 1e-12) | (np.ptp(y, 1) < 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant, np.nan, (x * y).sum(1) / scale)


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean: Student's t, n - 1 degrees of freedom.

    NaN for fewer than two values.

    Example:
        >>> from gradvac.geometry.statistics import half_width
        >>> round(half_width([10, 12, 14]), 4)  # 4.302653 * 2 / sqrt(3)
        4.9683
    """
    if len(values) < 2:
        return math.nan
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    return quantile * stdev(values) / math.sqrt(len(values))


def residual(values: np.ndarray, controls: Sequence[np.ndarray]) -> np.ndarray:
    """Return the residual of ``values`` after least squares on ``controls``, ``[K, K]`` each.

    A Mantel test of the residual is a test "given" the controls. NaN where any of them is NaN.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.statistics import residual, same
        >>> left = residual(3 + 2 * same("aab"), [same("aab")])  # all of it is explained
        >>> bool(np.nanmax(np.abs(left)) < 1e-12)
        True
    """
    rows, columns = np.triu_indices(len(values), 1)
    x = np.stack([np.ones(len(rows)), *(c[rows, columns] for c in controls)], 1)
    y = values[rows, columns]
    known = ~(np.isnan(y) | np.isnan(x).any(1))
    left = np.full(len(y), np.nan)
    if known.any():
        left[known] = y[known] - x[known] @ np.linalg.lstsq(x[known], y[known], rcond=None)[0]
    out = np.full(values.shape, np.nan)
    out[rows, columns] = out[columns, rows] = left
    return out


def same(labels: Sequence[str]) -> np.ndarray:
    """Return 1 where two tasks have the same label, 0 elsewhere, ``[K, K]``.

    Example:
        >>> from gradvac.geometry.statistics import same
        >>> same(["Romance", "Romance", "Indic"])[0].tolist()
        [1.0, 1.0, 0.0]
    """
    return np.array([[float(a == b) for b in labels] for a in labels])
