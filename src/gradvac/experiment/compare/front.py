"""Whether a method is outside the front of swept temperatures or weights (Xin et al. 2022).

Every row is a point: its score on high- and on low-resource directions. The region that the sweep
reaches lies below the polyline through its non-dominated means, left of the last of them and below
the first; the signed distance of a method is Euclidean, to the border of that region, positive
outside. With a staircase instead of the polyline, every point between two temperatures would be
outside. Larger scores are better everywhere here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.stats import t as student_t

Point = tuple[float, float]
Points = Mapping[str, Mapping[int, Point]]
"""Row -> seed -> point."""


@dataclass(frozen=True)
class Estimate:
    """A value and half the width of its 95% interval over seeds; NaN for fewer than two."""

    value: float
    half: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half


@dataclass(frozen=True)
class Place:
    """The position of a row relative to the front.

    ``distance`` is to the front of the swept rows; for a swept row, to that of the *other* swept
    rows: how far one more temperature lies outside a front this coarse. ``gain`` is the hypervolume
    the row adds to them. ``dominated_by`` names swept rows that are at least as good in both scores
    and better in one.
    """

    name: str
    swept: bool
    mean: Point
    points: Mapping[int, Point]
    distance: Estimate
    gain: Estimate
    dominated_by: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The conclusion that the interval supports."""
        if math.isnan(self.distance.half):
            return "one seed"
        if self.distance.low > 0:
            return "outside"
        return "inside" if self.distance.high < 0 else "not told apart"


def places(
    points: Points, swept: Sequence[str], reference: Point
) -> tuple[list[Place], list[Point], Estimate]:
    """Place every row; returns the rows, the front of the swept means, and its hypervolume.

    A row is compared on the seeds that it shares with all swept rows; rows without such a seed are
    left out. ``points`` has all of ``swept``, and the swept rows share a seed.
    """
    found = []
    for name in points:
        others = [s for s in swept if s != name]
        if others and _shared(points, [*others, name]):
            found.append(_place(points, name, others, name in swept, reference))
    front = lambda seeds: _front(points, swept, seeds)
    seeds = _shared(points, swept)
    volume = jackknife(lambda some: hypervolume(front(some), reference), seeds)
    return found, front(seeds), volume


def _place(
    points: Points, name: str, others: Sequence[str], swept: bool, reference: Point
) -> Place:
    def distance(seeds: Sequence[int]) -> float:
        return signed_distance(_mean(points[name], seeds), _front(points, others, seeds))

    def gain(seeds: Sequence[int]) -> float:
        front, own = _front(points, others, seeds), _mean(points[name], seeds)
        return hypervolume([*front, own], reference) - hypervolume(front, reference)

    seeds = _shared(points, [*others, name])
    mean = _mean(points[name], seeds)
    return Place(
        name=name,
        swept=swept,
        mean=mean,
        points={s: points[name][s] for s in seeds},
        distance=jackknife(distance, seeds),
        gain=jackknife(gain, seeds),
        dominated_by=tuple(o for o in others if dominates(_mean(points[o], seeds), mean)),
    )


def dominates(a: Point, b: Point) -> bool:
    """Whether ``a`` is at least as good in both scores and better in one."""
    return a[0] >= b[0] and a[1] >= b[1] and a != b


def non_dominated(points: Sequence[Point]) -> list[Point]:
    """The distinct points that no other point dominates, in ascending order of the first score."""
    kept: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept[::-1]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area of the region that is dominated by ``points`` and dominates ``reference``.

    Zitzler and Thiele 1998, in two dimensions: rectangles between the steps of the staircase.
    """
    area, left = 0.0, reference[0]
    for x, y in non_dominated(points):
        if x > left and y > reference[1]:
            area += (x - left) * (y - reference[1])
            left = x
    return area


def signed_distance(point: Point, front: Sequence[Point]) -> float:
    """Euclidean distance of a point to the border of the region under a front, positive outside.

    ``front`` is what :func:`non_dominated` returned; the border is the polyline through it, a ray
    to the left of its first point and one down from its last.
    """
    x, y = point
    (first_x, first_y), (last_x, last_y) = front[0], front[-1]
    to_rays = [
        math.hypot(max(0.0, x - first_x), y - first_y),
        math.hypot(x - last_x, max(0.0, y - last_y)),
    ]
    nearest = min([*to_rays, *(_to_segment(point, a, b) for a, b in pairwise(front))])
    height = first_y
    for (ax, ay), (bx, by) in pairwise(front):
        if ax < x <= bx:
            height = ay + (by - ay) * (x - ax) / (bx - ax)
    return 0.0 - nearest if x <= last_x and y <= height else nearest


def jackknife(statistic: Callable[[Sequence[int]], float], seeds: Sequence[int]) -> Estimate:
    """A statistic of seeds with its 95% interval by the delete-one jackknife (Tukey 1958).

    The variance is (n - 1) / n times the squared deviations of the n values that leave one seed out
    each; Student's t with n - 1 degrees of freedom. For a mean this gives the usual interval. Rows
    share seeds, so initial parameters and batches; a seed is left out of all rows at once.
    """
    value, n = statistic(seeds), len(seeds)
    if n < 2:
        return Estimate(value, math.nan)
    without = [statistic([s for s in seeds if s != left]) for left in seeds]
    error = statistics.stdev(without) * (n - 1) / math.sqrt(n)
    return Estimate(value, float(student_t.ppf(0.975, n - 1)) * error)


def _front(points: Points, rows: Sequence[str], seeds: Sequence[int]) -> list[Point]:
    return non_dominated([_mean(points[row], seeds) for row in rows])


def _shared(points: Points, rows: Sequence[str]) -> list[int]:
    return sorted(set.intersection(*(set(points[row]) for row in rows)))


def _mean(points: Mapping[int, Point], seeds: Sequence[int]) -> Point:
    return (
        statistics.fmean(points[s][0] for s in seeds),
        statistics.fmean(points[s][1] for s in seeds),
    )


def _to_segment(point: Point, a: Point, b: Point) -> float:
    (px, py), (ax, ay), (bx, by) = point, a, b
    dx, dy = bx - ax, by - ay
    along = ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy)
    along = min(1.0, max(0.0, along))
    return math.hypot(px - ax - along * dx, py - ay - along * dy)
