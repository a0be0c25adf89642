"""The first words of a report: what was compared, what came out, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from gradvac.experiment.report.scores import Metric, Row, metrics_of
from gradvac.experiment.view.run_view import RunView
from gradvac.geometry.statistics import LEAST_VALUES, half_width
from gradvac.tables import decimal

_MOST = 4  # more differences than this are in the tables alone


def summary(rows: Sequence[Row], views: Sequence[RunView]) -> str:
    """One or two sentences for the first screen; ``views`` are those of the rows, in order.

    The baseline is the first row of joint training, or the first one. Differences are of the same
    seeds and directions.
    """
    scored = [(r, v) for r, v in zip(rows, views, strict=True) if r.scores]
    if not scored:
        return "Nothing is scored yet: there is no result to compare."
    metric = metrics_of([r for r, _ in scored])[0]
    if len(scored) == 1:
        return _alone(scored[0][0], metric)
    base = next((r for r, v in scored if v.recipe.method.name == "joint"), scored[0][0])
    others = [r for r, _ in scored if r is not base]
    found = {r.name: _differences(r, base, metric) for r in others}
    found = {name: gaps for name, gaps in found.items() if gaps}
    if not found:
        return f"No run shares a seed and a direction with {base.name}: there is no difference."
    return _compared(base, metric, found)


def _alone(row: Row, metric: Metric) -> str:
    values = list(row.values(sorted(row.directions), metric[0]).values())
    mean = f"{metric[1]} {decimal(statistics.fmean(values), metric[2])}" if values else "no score"
    return (
        f"{row.name} alone, compared with nothing: {mean}, mean of {_many(row)}"
        f"{_interval_of_mean(values, metric[2])}."
    )


def _many(row: Row) -> str:
    seeds = len(row.scores)
    directions = f"{len(row.directions)} direction{'s' * (len(row.directions) != 1)}"
    return directions + (f" and {seeds} seeds" if seeds > 1 else ", one seed")


def _interval_of_mean(values: Sequence[float], digits: int) -> str:
    if len(values) < LEAST_VALUES:
        return ""
    return f", \N{PLUS-MINUS SIGN}{half_width(values):.{digits}f} (95 %)"


def _differences(row: Row, base: Row, metric: Metric) -> dict[int, float]:
    """Row minus baseline by seed, mean over the directions that both have."""
    both = sorted(row.directions & base.directions)
    own, other = (r.values(both, metric[0]) for r in (row, base))
    if len(row.scores) == len(base.scores) == 1:  # runs of different seeds, compared all the same
        own, other = (dict(enumerate(values.values())) for values in (own, other))
    return {seed: own[seed] - other[seed] for seed in own if seed in other}


def _compared(base: Row, metric: Metric, found: Mapping[str, Mapping[int, float]]) -> str:
    seeds = min(len(gaps) for gaps in found.values())
    said = [
        f"{name} {_of(list(gaps.values()), metric)}" for name, gaps in list(found.items())[:_MOST]
    ]
    if len(found) > _MOST:
        said.append(f"{len(found) - _MOST} more are in the tables")
    text = f"{metric[1]} compared with {base.name}, mean of {_many(base)}: {'; '.join(said)}."
    if seeds < LEAST_VALUES:
        few = "One seed has no" if seeds == 1 else "Two seeds are too few for an"
        return f"{text} {few} interval: this does not show which is better."
    if len(found) > 1:
        text += " Each interval is for itself, not corrected for their number."
    return text


def _of(gaps: Sequence[float], metric: Metric) -> str:
    """A difference, its interval, and what that means."""
    mean, digits = statistics.fmean(gaps), metric[2]
    text = decimal(mean, digits, "+").replace("-", "\N{MINUS SIGN}")
    if len(gaps) < LEAST_VALUES:
        return text
    half = half_width(gaps)
    ends = " to ".join(decimal(x, digits, "+") for x in (mean - half, mean + half))
    verdict = "not told from chance"
    if abs(mean) > half and not math.isclose(mean, 0):
        verdict = "better" if mean > 0 else "worse"
    return f"{text} (95 %: {ends}, {verdict})".replace("-", "\N{MINUS SIGN}")
