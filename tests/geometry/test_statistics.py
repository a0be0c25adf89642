"""The tests of significance against literal loops and complete enumerations."""

import math
from itertools import permutations, product

import numpy as np
import pytest

from gradvac.geometry.similarity import cluster
from gradvac.geometry.statistics import cophenetic_test, correlation, mantel, residual, same


def symmetric(k: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(k, k))
    return a + a.T


def literal_mantel(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Correlation over pairs, and the share of all orders of the rows that reach it."""

    def r(order: tuple[int, ...]) -> float:
        x, y = [], []
        for i in range(len(a)):
            for j in range(i):
                u, v = a[order[i]][order[j]], b[i][j]
                if not (math.isnan(u) or math.isnan(v)):
                    x.append(u)
                    y.append(v)
        return float(np.corrcoef(x, y)[0, 1])

    own = r(tuple(range(len(a))))
    every = [r(order) for order in permutations(range(len(a)))]
    return own, sum(other >= own - 1e-12 for other in every) / len(every)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hole", [False, True])
def test_mantel_equals_a_literal_enumeration(seed: int, hole: bool) -> None:
    a, b = symmetric(5, seed), symmetric(5, seed + 100)
    if hole:
        a[1, 3] = a[3, 1] = np.nan
        b[0, 2] = b[2, 0] = np.nan
    found = mantel(a, b)
    r, p = literal_mantel(a, b)
    assert (found.exact, found.permutations, found.pairs) == (True, 120, 8 if hole else 10)
    assert found.r == pytest.approx(r, abs=1e-12)
    assert found.p == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize("noise", [0.0, 4e-7])
def test_orders_that_mean_the_same_count_whatever_the_rounding(noise: float) -> None:
    """One pair of a family among five: 12 of 120 orders put it where the highest cosine is."""
    labels = [*"aabcd"]
    a = 0.1 + 0.05 * symmetric(5, 3)
    a[0, 1] = a[1, 0] = 0.9
    a += noise * np.random.default_rng(0).uniform(-1, 1, (5, 5))  # the two halves differ
    found = mantel(a, same(labels))
    assert found.exact and found.p == pytest.approx(12 / 120)
    assert mantel(a.T, same(labels)).r == found.r


def test_eight_languages_are_enumerated_and_nine_are_drawn() -> None:
    a = symmetric(8, 1)
    a[0, 1] = a[1, 0] = 9.0
    found = mantel(a, same([*"aabcdefg"]))
    assert (found.exact, found.permutations) == (True, 40_320)
    assert found.p == pytest.approx(1 / 28)  # of 28 pairs one is the highest
    found = mantel(symmetric(9, 1), symmetric(9, 2))
    assert (found.exact, found.permutations) == (False, 9999)


def test_random_permutations_come_near_the_enumeration() -> None:
    a = symmetric(7, 1)
    b = a + 2.5 * symmetric(7, 2)
    exact, sampled = mantel(a, b, permutations=5040), mantel(a, b, permutations=4000)
    assert exact.exact and not sampled.exact
    assert 0.01 < exact.p < 0.5
    error = math.sqrt(exact.p * (1 - exact.p) / 4000)
    assert abs(sampled.p - exact.p) < 4 * error
    assert sampled.r == exact.r


def test_unrelated_matrices_are_significant_as_often_as_by_chance() -> None:
    found = [mantel(symmetric(6, n), symmetric(6, n + 500)).p for n in range(150)]
    assert 0.02 <= np.mean(np.array(found) <= 0.1) <= 0.2  # 0.1 +- 4 standard errors


def test_a_matrix_that_does_not_vary_has_no_correlation() -> None:
    found = mantel(symmetric(4, 0), same(["a", "b", "c", "d"]))
    assert math.isnan(found.r) and math.isnan(found.p)


def test_families_in_blocks_are_found() -> None:
    labels = [*"aaabbbccc"]
    cosine = 0.2 + 0.3 * same(labels) + 0.02 * symmetric(9, 3)
    found = mantel(cosine, same(labels))
    assert found.r > 0.9
    assert found.p < 0.01


def literal_cophenetic_share(cosine: np.ndarray) -> float:
    rows, columns = np.triu_indices(len(cosine), 1)
    own = cluster(cosine).cophenetic
    reached = []
    for order in permutations(range(len(rows))):
        mixed = np.eye(len(cosine))
        mixed[rows, columns] = mixed[columns, rows] = cosine[rows, columns][list(order)]
        reached.append(cluster(mixed).cophenetic >= own - 1e-12)
    return float(np.mean(reached))


def test_the_share_of_random_trees_comes_near_the_enumeration() -> None:
    cosine = np.clip(symmetric(4, 13) / 4, -1, 1)
    r, p = cophenetic_test(cosine, permutations=600)
    assert r == cluster(cosine).cophenetic
    share = literal_cophenetic_share(cosine)
    assert 0.05 < share < 0.95
    assert abs(p - share) < 4 * math.sqrt(share * (1 - share) / 600)


def test_the_interval_and_the_p_value_come_near_complete_enumerations() -> None:
    x, y = np.array([0.1, 0.5, 0.3, 0.9, 0.4]), np.array([3.0, 5.0, 5.5, 6.0, 4.0])
    found = correlation(x, y, resamples=20_000)
    r = np.corrcoef(x, y)[0, 1]
    assert (found.n, found.r) == (5, pytest.approx(r, abs=1e-12))

    every = []
    for drawn in product(range(5), repeat=5):
        u, v = x[list(drawn)], y[list(drawn)]
        if np.ptp(u) > 0:
            every.append(np.corrcoef(u, v)[0, 1])
    # Ranks of the bounds among all resamples, which have ties, give or take the sampling error.
    for bound, rank in ((found.low, 0.025), (found.high, 0.975)):
        assert np.mean(np.array(every) < bound - 1e-9) - 0.006 <= rank
        assert rank <= np.mean(np.array(every) <= bound + 1e-9) + 0.006

    orders = [np.corrcoef(x[list(order)], y)[0, 1] for order in permutations(range(5))]
    share = np.mean(np.abs(orders) >= abs(r) - 1e-12)
    assert found.p == pytest.approx(share, abs=0.015)


def test_points_that_are_unknown_or_too_few_do_not_count() -> None:
    x = np.array([1.0, 2.0, np.nan, 4.0])
    found = correlation(x, np.array([1.0, 3.0, 9.0, 4.0]), resamples=50)
    assert found.n == 3
    assert found.r == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 4])[0, 1])
    assert math.isnan(correlation(x[:2], x[:2]).r)
    assert math.isnan(correlation(np.ones(5), np.arange(5.0)).r)


def test_residuals_are_those_of_least_squares_over_the_pairs() -> None:
    a, b, c = symmetric(5, 1), symmetric(5, 2), symmetric(5, 3)
    b[0, 1] = b[1, 0] = np.nan
    left = residual(a, [b, c])
    rows, columns = np.triu_indices(5, 1)
    known = ~np.isnan(b[rows, columns])
    assert np.array_equal(np.isnan(left[rows, columns]), ~known)
    y = left[rows, columns][known]
    for control in (np.ones_like(b), b, c):  # what is left is orthogonal to every control
        assert y @ control[rows, columns][known] == pytest.approx(0, abs=1e-10)
    exact = residual(2 + 3 * b - c, [b, c])[rows, columns]
    assert exact[known] == pytest.approx(0, abs=1e-10)
