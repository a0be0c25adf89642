"""The laboratory's runs as figures: one endpoint chosen before they were made, and exact matches.

A row is one variant, or several that end in ``/direction``: a model for each. Its curve is the
mean NLL over directions at each checkpoint; the endpoint is the mean logarithm of the curve, which
counts how fast a row learns and how far it gets, and in which seeds differ least. A row of another
study is written ``STUDY:ROW``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradvac.experiment.compare.front import Point, jackknife, non_dominated, signed_distance
from gradvac.experiment.recipe.variants import row_of

from .figures import Absent, Figure, Flaw, jackknifed, seeds
from .files import Evidence, beyond, flaws_of

Run = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What a row of one seed reached: mean log NLL, last NLL, % exact; its tokens and seconds."""

    endpoint: float
    last: float
    exact: float
    tokens: int
    seconds: float


def reached(e: Evidence, name: str, row: str, column: str = "avg") -> dict[int, Seen]:
    """By seed, what a row reached in the directions of a level; "avg" is all of them.

    Raises Absent if there is no run of it, or of that level.
    """
    name, row = _place(name, row)
    own = [run for run in e.read(name)["runs"] if row_of(run["variant"]) == row]
    of_row = {run["variant"] for run in own}
    by_seed: dict[int, list[Run]] = {}
    for run in own:
        by_seed.setdefault(run["seed"], []).append(run)
    whole = {seed: runs for seed, runs in by_seed.items() if len(runs) == len(of_row)}
    found = {seed: _seen(runs, column) for seed, runs in sorted(whole.items())}
    if not found:
        raise Absent(f"{name}: {row}")
    return found


def _place(name: str, row: str) -> tuple[str, str]:
    """The study of a row, and its name there."""
    study, _, own = row.rpartition(":")
    return study or name, own


def _seen(runs: list[Run], column: str) -> Seen:
    pairs = [(run, d) for run in runs for d in run["exact"]]
    here = [(run, d) for run, d in pairs if column in ("avg", run["levels"][d])]
    if not here:
        raise Absent(column)
    curve = [statistics.fmean(at) for at in zip(*(r["nll"][d] for r, d in here), strict=True)]
    return Seen(
        statistics.fmean(map(math.log, curve)),
        curve[-1],
        100 * statistics.fmean(run["exact"][d] for run, d in here),
        sum(run["tokens"] for run in runs),
        sum(run["cpu_seconds"] or math.nan for run in runs),
    )


def weight(e: Evidence, name: str, row: str, level: str) -> float:
    """The mean weight of a row's tasks of a level, over tasks and seeds; Absent without any."""
    found = [
        weight
        for run in e.read(name)["runs"]
        if row_of(run["variant"]) == row
        for task, weight in run.get("weights", {}).items()
        if run["levels"][task] == level
    ]
    if not found:
        raise Absent(f"{name}: weights of {row}, {level}")
    return statistics.fmean(found)


def complete(e: Evidence, name: str) -> list[str]:
    """The rows of a study that have two seeds at least, in every level."""

    def whole(row: str) -> bool:
        try:
            return all(len(reached(e, name, row, level)) > 1 for level in ("avg", "high", "low"))
        except Absent:
            return False

    return [row for row in e.rows(name) if whole(row)]


def gain(
    e: Evidence, name: str, a: str, b: str, column: str = "avg", per: str = "tokens"
) -> Figure:
    """By how much row ``a`` is better than row ``b``, paired by seed.

    ``per`` says of what both should have had as much: "tokens" or "seconds".
    """
    left, right = (reached(e, name, row, column) for row in (a, b))
    both = [(left[seed], right[seed]) for seed in left if seed in right]
    figure = seeds([y.endpoint - x.endpoint for x, y in both], "curve")
    beside = seeds([x.exact - y.exact for x, y in both], "exact")
    return replace(figure, beside=beside, flaws=_flaws(e, name, a, b, per))


def _flaws(e: Evidence, name: str, a: str, b: str, per: str) -> tuple[Flaw, ...]:
    rows = [_place(name, row) for row in (a, b)]
    had = {
        row: statistics.fmean(getattr(seen, per) for seen in reached(e, study, row).values())
        for study, row in rows
    }
    choices = {row: choice for study, _ in rows for row, choice in e.choices(study).items()}
    return flaws_of(choices, rows[0][1], rows[1][1], {per: had})


def outside(e: Evidence, name: str, row: str, swept: Sequence[str]) -> Figure:
    """How far a row's endpoints lie outside the front of the swept rows, high against low.

    On the seeds that all of them have; the front and the interval are those of ``gradvac compare
    --front``. Raises Absent where fewer than two seeds are shared.
    """
    points: dict[str, dict[int, Point]] = {}
    for each in (*swept, row):
        high, low = (reached(e, name, each, level) for level in ("high", "low"))
        points[each] = {seed: (-high[seed].endpoint, -low[seed].endpoint) for seed in high}
    shared = sorted(set.intersection(*map(set, points.values())))
    if len(shared) < 2:
        raise Absent(f"{name}: two seeds of {row} and all of the front")

    def mean(each: str, some: Sequence[int]) -> Point:
        x, y = (statistics.fmean(points[each][seed][k] for seed in some) for k in (0, 1))
        return x, y

    def distance(some: Sequence[int]) -> float:
        return signed_distance(mean(row, some), non_dominated([mean(r, some) for r in swept]))

    found = jackknife(distance, shared)
    flaws = _flaws(e, name, row, swept[0], "tokens")
    flaws += beyond(_place(name, row)[1], mean(row, shared), [mean(r, shared) for r in swept])
    return jackknifed(found.value, found.half, len(shared), "lab-front", flaws)


def hours(e: Evidence, name: str) -> float:
    """CPU hours of training in all runs of a study."""
    return sum(run["cpu_seconds"] or math.nan for run in e.read(name)["runs"]) / 3600


def pilot(e: Evidence, name: str, row: str) -> tuple[float, int]:
    """Deviation of a row's differences from the first row's in a pilot, and how many there are.

    Pairs are of the same seed and learning rate.
    """
    first = e.rows(name)[0]
    of = {
        (run["variant"], run["seed"], run["learning_rate"]): _seen([run], "avg").endpoint
        for run in e.read(name)["runs"]
    }
    own = [
        x - of[first, *how]
        for (variant, *how), x in of.items()
        if variant == row and (first, *how) in of
    ]
    if len(own) < 2:
        raise Absent(f"{name}: {row}")
    return statistics.stdev(own), len(own)
