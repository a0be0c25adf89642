"""The laboratory's runs as figures: one endpoint chosen before they were made, and exact matches.

A row is one variant, or several that end in ``/direction``: a model for each. Its curve is the
mean NLL over directions at each checkpoint; the endpoint is the mean logarithm of the curve, which
counts how fast a row learns and how far it gets, and in which seeds differ least.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

from gradvac.experiment.recipe.variants import row_of

from .figures import Absent, Figure, seeds
from .files import Evidence, flaws_of

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
    had = {
        row: statistics.fmean(getattr(seen, per) for seen in reached(e, name, row).values())
        for row in (a, b)
    }
    return replace(figure, beside=beside, flaws=flaws_of(e.choices(name), a, b, {per: had}))


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
