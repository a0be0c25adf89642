"""The order of an epoch: a permutation whatever its size, in no memory, and unlike any other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from gradvac.data.permutation import permuted


@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 50))
def test_it_is_a_permutation_of_any_size(size, seed, epoch):
    order = permuted(np.arange(size), size, (seed, epoch))
    assert np.array_equal(np.sort(order), np.arange(size))


@given(st.integers(2, 2**62), st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=40))
def test_at_any_size_places_stay_apart_and_below_it(size, places):
    wanted = np.unique(np.array(places) % size)
    found = permuted(wanted, size, (7,))
    assert len(np.unique(found)) == len(wanted)
    assert found.min() >= 0 and int(found.max()) < size


def test_a_place_does_not_depend_on_the_places_asked_with_it():
    whole = permuted(np.arange(1000), 1000, (3, 4))
    assert permuted(np.array([999, 0, 500]), 1000, (3, 4)).tolist() == whole[[999, 0, 500]].tolist()


@pytest.mark.parametrize("size", [5, 40])
def test_every_element_stands_at_every_place_equally_often(size):
    """Chi-square of the counts (element, place) over many keys; the bound is its 1e-6 quantile."""
    n = 3000
    counts = np.zeros((size, size))
    for key in range(n):
        counts[np.arange(size), permuted(np.arange(size), size, (key,))] += 1
    statistic = ((counts - n / size) ** 2 / (n / size)).sum()
    assert statistic < chi2.isf(1e-6, (size - 1) ** 2)


def test_neighbours_do_not_stay_neighbours():
    order = permuted(np.arange(100_000), 100_000, (1,))
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(100_000)
