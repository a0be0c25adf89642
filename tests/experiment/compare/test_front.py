"""Hypervolume and distance against closed forms and grids; intervals against Student's t."""

import math
import random
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvac.experiment.compare.front import (
    hypervolume,
    jackknife,
    non_dominated,
    places,
    signed_distance,
)
from gradvac.geometry.statistics import half_width

scores = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda p: (float(p[0]), float(p[1])))
clouds = st.lists(scores, min_size=1, max_size=8)


@given(clouds)
def test_non_dominated_is_its_definition(cloud):
    def beaten(p):
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in cloud)

    assert non_dominated(cloud) == sorted({p for p in cloud if not beaten(p)})


def test_hypervolume_of_a_staircase_is_a_sum_of_squares():
    # (k, n - k) for k = 1 .. n - 1 dominates n (n - 1) / 2 unit squares.
    n = 9
    assert hypervolume([(k, n - k) for k in range(1, n)], (0, 0)) == n * (n - 1) / 2
    assert hypervolume([(2, 5), (4, 3)], (1, 1)) == (2 - 1) * (5 - 1) + (4 - 2) * (3 - 1)
    assert hypervolume([(1, 9), (9, 1)], (1, 1)) == 0  # neither dominates the reference


def test_hypervolume_of_a_quarter_circle():
    angles = np.linspace(0, np.pi / 2, 20_001)
    area = hypervolume(list(zip(np.cos(angles), np.sin(angles), strict=True)), (0, 0))
    assert area == pytest.approx(math.pi / 4, abs=1e-4)


@given(clouds, scores)
def test_hypervolume_counts_the_dominated_cells_of_a_grid(cloud, reference):
    cells = sum(
        any(x + 1 <= p[0] and y + 1 <= p[1] for p in cloud)
        for x in range(int(reference[0]), 20)
        for y in range(int(reference[1]), 20)
    )
    assert hypervolume(cloud, reference) == cells


def test_distances_worked_by_hand():
    front = [(0.0, 4.0), (4.0, 0.0)]
    cases = {
        (2, 2): 0,  # on the line
        (3, 3): math.sqrt(2),
        (1, 1): -math.sqrt(2),
        (-3, 5): 1,  # above the ray to the left
        (-3, 3): -1,
        (7, -5): 3,  # right of the ray down
        (3, -5): -1,
        (0, 8): 4,
    }
    for point, expected in cases.items():
        assert signed_distance(point, front) == pytest.approx(expected), point
    # One point: a corner. Outside it is nearest to the corner or to a ray.
    assert signed_distance((3, 4), [(0.0, 0.0)]) == 5
    assert signed_distance((-2, -7), [(0.0, 0.0)]) == -2


@settings(max_examples=40)
@given(clouds, scores)
def test_distance_is_that_to_a_finely_drawn_border(cloud, point):
    front = non_dominated(cloud)
    corners = [(front[0][0] - 40, front[0][1]), *front, (front[-1][0], front[-1][1] - 40)]
    drawn = np.concatenate([np.linspace(a, b, 2001) for a, b in pairwise(corners)])
    nearest = np.linalg.norm(drawn - np.array(point), axis=1).min()
    found = signed_distance(point, front)
    assert abs(found) == pytest.approx(nearest, abs=0.02)
    if abs(found) > 0.02:
        # Inside a step up and to the right crosses the border, and only there.
        above = (drawn[:, 0] >= point[0]) & (drawn[:, 1] >= point[1])
        assert bool(above.any()) == (found < 0)


def test_the_jackknife_of_a_mean_is_students_interval():
    values = {1: 10.0, 2: 12.5, 3: 11.0, 5: 9.0}
    found = jackknife(lambda seeds: statistics.fmean(values[s] for s in seeds), list(values))
    assert found.value == pytest.approx(10.625)
    assert found.half == pytest.approx(half_width(list(values.values())))
    assert math.isnan(jackknife(lambda seeds: 1.0, [3]).half)


def cloud_of(x, y, spread=0.0, seeds=(1, 2, 3)):
    rng = random.Random(f"{x} {y}")
    return {s: (x + rng.uniform(-spread, spread), y + rng.uniform(-spread, spread)) for s in seeds}


def test_rows_are_placed_against_the_sweep():
    points = {
        "t1": cloud_of(30, 10),
        "t5": cloud_of(26, 14),
        "t100": cloud_of(20, 16),
        "worse": cloud_of(25, 13),
        "better": cloud_of(28, 14),
        "elsewhere": cloud_of(28, 14, seeds=(7, 8)),
    }
    found, front, volume = places(points, ["t1", "t5", "t100"], (0, 0))
    assert front == [(20, 16), (26, 14), (30, 10)]
    assert volume.value == 20 * 16 + 6 * 14 + 4 * 10 and volume.half == 0
    rows = {p.name: p for p in found}
    assert list(rows) == ["t1", "t5", "t100", "worse", "better"]  # the last shares no seed
    assert rows["better"].distance.value == pytest.approx(math.sqrt(2))
    assert rows["better"].gain.value == pytest.approx(2 * 4)  # 28 x 14 where 28 x 10 was
    assert rows["better"].dominated_by == () and rows["better"].verdict == "outside"
    assert rows["worse"].dominated_by == ("t5",) and rows["worse"].gain.value == 0
    # The line from (20, 16) to (26, 14) is x + 3y = 68.
    assert rows["worse"].distance.value == pytest.approx((25 + 3 * 13 - 68) / math.sqrt(10))
    # A swept row to the front of the others, the line 3x + 5y = 140.
    assert rows["t5"].distance.value == pytest.approx((3 * 26 + 5 * 14 - 140) / math.sqrt(34))


def test_the_interval_is_that_of_the_difference_where_the_front_is_straight():
    points = {
        "a": {1: (20.0, 30.0), 2: (21.5, 31.0), 3: (20.5, 29.0)},
        "b": {1: (10.0, 3.0), 2: (11.0, 4.0), 3: (12.0, 2.0)},  # dominated throughout
        "m": {1: (30.0, 10.0), 2: (33.0, 11.0), 3: (30.5, 9.0)},
    }
    found = {p.name: p for p in places(points, ["a", "b"], (0, 0))[0]}["m"].distance
    gaps = [points["m"][s][0] - points["a"][s][0] for s in (1, 2, 3)]
    assert found.value == pytest.approx(statistics.fmean(gaps))
    assert found.half == pytest.approx(half_width(gaps))


def test_one_seed_has_no_interval_and_no_verdict():
    points = {"a": cloud_of(2, 3, seeds=(1,)), "b": cloud_of(3, 2, seeds=(1,))}
    rows, _, volume = places({**points, "m": cloud_of(9, 9, seeds=(1,))}, ["a", "b"], (0, 0))
    assert {r.verdict for r in rows} == {"one seed"} and math.isnan(volume.half)
