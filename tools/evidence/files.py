"""What the files in evidence/ say: scores, similarities and tests of the runs, as figures.

A figure is written so that a positive one is what a paper claims. The claim holds where its 95 %
interval lies above zero, does not hold where it lies below, and cannot be told at this size
otherwise. Of each claim that rests on a test there is a p-value instead, and a null result of a
test is "cannot tell", not "does not hold".
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gradvac.experiment.recipe.variants import row_of
from gradvac.geometry.statistics import correlation, half_width
from gradvac.translation.significance import majority

LEVEL = 0.05
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell at this size"


class Absent(Exception):
    """A file or a row that is not in the evidence (yet)."""


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval; ``p`` decides instead where it is not NaN.

    ``also`` are other readings of the same runs, shown beside it.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str
    p: float = math.nan
    also: str = ""

    @property
    def verdict(self) -> str:
        """What it allows to say of the claim."""
        if not math.isnan(self.p):
            return HOLDS if self.p <= LEVEL and self.value > 0 else UNKNOWN
        return HOLDS if self.low > 0 else FAILS if self.high < 0 else UNKNOWN

    @property
    def words(self) -> str:
        """The figure as the table shows it."""
        if math.isnan(self.p):
            text = f"{self.unit} {_signed(self.value)} [{_signed(self.low)}, {_signed(self.high)}]"
        else:
            text = f"{self.unit} {_signed(self.value)}, p {_chance(self.p)}"
        return text + (f"; {self.also}" if self.also else "")


def seeds(values: Sequence[float], unit: str) -> Figure:
    """The mean over seeds with Student's t interval; two seeds at least."""
    if len(values) < 2:
        raise Absent(f"{unit}: {len(values)} seeds")
    mean, half = statistics.fmean(values), half_width(values)
    return Figure(mean, mean - half, mean + half, len(values), unit)


@dataclass(frozen=True)
class Evidence:
    """The files of one size."""

    folder: Path
    size: str

    def read(self, name: str) -> dict[str, Any]:
        """A file of evidence/, ``name`` without its size; Absent if it is not there."""
        file = self.folder / f"{name}-{self.size}.json"
        if not file.exists():
            raise Absent(file.name)
        return _json(file)

    def runs(self, name: str, variant: str) -> list[dict[str, Any]]:
        """Collected runs of a variant, by seed."""
        found = [run for run in self.read(name)["runs"] if run["variant"] == variant]
        if not found:
            raise Absent(f"{name}: {variant}")
        return sorted(found, key=lambda run: run["seed"])

    def scores(self, name: str, row: str, metric: str, column: str) -> dict[int, float]:
        """Scores of a row by seed, from a comparison."""
        tree = self.read(name)
        for r in tree["records"]:
            if (r["row"], r["metric"], r["column"]) == (row, metric, column):
                return dict(zip(tree["costs"][row]["seeds"], r["values"], strict=True))
        raise Absent(f"{name}: {row} {metric} {column}")

    def gain(self, name: str, a: str, b: str, column: str = "avg", metric: str = "nll") -> Figure:
        """By how much row ``a`` is better than ``b``, seed by seed, and in another metric."""
        figure = seeds(self._gains(name, a, b, column, metric), _UNITS[metric])
        other = _BESIDE[metric]
        try:
            beside = seeds(self._gains(name, a, b, column, other), _UNITS[other])
        except Absent:
            return figure
        half = (beside.high - beside.low) / 2
        return replace(figure, also=f"{beside.unit} {beside.value:+.1f} ± {half:.1f}")

    def _gains(self, name: str, a: str, b: str, column: str, metric: str) -> list[float]:
        left, right = (self.scores(name, row, metric, column) for row in (a, b))
        sign = -1.0 if metric == "nll" else 1.0
        return [sign * (left[seed] - right[seed]) for seed in left if seed in right]

    def per_seed(
        self, name: str, a: str, b: str | None, of: Callable[[dict[str, Any]], float], unit: str
    ) -> Figure:
        """``of`` a run of variant ``a``, less that of variant ``b`` of the same seed."""
        right = {run["seed"]: of(run) for run in self.runs(name, b)} if b else {}
        values = [
            of(run) - (right[run["seed"]] if b else 0.0)
            for run in self.runs(name, a)
            if not b or run["seed"] in right
        ]
        return seeds(values, unit)

    def mantel(
        self, variant: str, side: str, part: str, question: str, name: str = "geometry"
    ) -> Figure:
        """Mean r of a test over seeds; p that a majority of the seeds supports."""
        tests = [
            test
            for run in self.runs(name, variant)
            for test in run["tests"]
            if (test["side"], test["part"]) == (side, part) and test["question"] == question
        ]
        known = [test for test in tests if test["r"] is not None]
        if not known:
            raise Absent(f"{name}: {question}")
        r = [test["r"] for test in known]
        p = majority([test["p"] for test in known])
        return Figure(statistics.fmean(r), math.nan, math.nan, len(r), "Mantel r", p=p)

    def partner_means(self, part: str) -> tuple[list[str], dict[str, np.ndarray]]:
        """Partner languages, and over their seeds the mean cosine and the scores of en-fr."""
        runs = self.read("partners")["runs"]
        names = sorted({run["partner"] for run in runs})
        of: dict[str, Callable[[dict[str, Any]], float]] = {
            "cosine": lambda run: run["similarity"][part],
            "bleu": lambda run: run["scores"]["bleu"],
            "nll": lambda run: run["scores"]["nll"],
            "tokens": lambda run: run["tokens"],
        }
        return names, {
            key: np.array(
                [statistics.fmean(read(r) for r in runs if r["partner"] == name) for name in names]
            )
            for key, read in of.items()
        }

    def partners(self, part: str, same_tokens: bool = False) -> Figure:
        """Over partner languages: similarity of gradients against the NLL of en-fr.

        ``same_tokens`` correlates what a straight line through en-fr's tokens leaves of each.
        """
        names, means = self.partner_means(part)
        if same_tokens:
            means = {key: _beyond(values, means["tokens"]) for key, values in means.items()}
        found = correlation(means["cosine"], -means["nll"])
        bleu = correlation(means["cosine"], means["bleu"])
        also = f"with BLEU {bleu.r:+.2f} [{bleu.low:+.2f}, {bleu.high:+.2f}]"
        return Figure(found.r, found.low, found.high, len(names), "r with -NLL", also=also)

    def rates(self, name: str) -> dict[str, dict[float, float]]:
        """By row and learning rate, ascending: what it reached in validation, of a seed apart."""
        found: dict[str, dict[float, list[float]]] = {}
        for row, runs in self._rate_runs(name).items():
            for run in sorted(runs, key=lambda run: run["learning_rate"]):
                found.setdefault(row, {}).setdefault(run["learning_rate"], []).append(run["best"])
        return {
            row: {rate: statistics.fmean(own) for rate, own in rates.items()}
            for row, rates in found.items()
        }

    def costs(self, name: str) -> dict[str, float | None]:
        """CPU time of a token by row, beside the baseline's.

        Of the runs that chose the learning rates, where all rows have some, since they were made
        one after the other; of the compared ones otherwise.
        """
        tree = self.read(name)
        try:
            runs = self._rate_runs(name)
            per_token = {row: _seconds_a_token(runs[row]) for row in tree["costs"]}
        except (Absent, KeyError):
            return {row: cost["cost"] for row, cost in tree["costs"].items()}
        return {row: seconds / per_token[tree["baseline"]] for row, seconds in per_token.items()}

    def _rate_runs(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """By row, the runs that chose its learning rate."""
        found: dict[str, list[dict[str, Any]]] = {}
        for run in self.read(f"{name}-rates")["runs"]:
            found.setdefault(row_of(run["variant"]), []).append(run)
        return found

    def front(self, row: str) -> Figure:
        """How far outside the swept front of NLL a row lies."""
        fronts = self.read("imbalance").get("fronts", [])
        for place in (p for f in fronts if f["metric"] == "nll" for p in f["rows"]):
            if place["row"] == row and place["distance"]["half_width"] is not None:
                value, half = (place["distance"][key] for key in ("value", "half_width"))
                n = len(place["seeds"])
                return Figure(value, value - half, value + half, n, "NLL, outside by")
        raise Absent(f"imbalance: front, {row}")


def _seconds_a_token(runs: Sequence[dict[str, Any]]) -> float:
    return sum(r["cpu_seconds"] or math.nan for r in runs) / sum(r["tokens"] for r in runs)


def _beyond(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """What least squares on ``of`` leaves of ``values``, ``[n]`` each."""
    centred = of - of.mean()
    rest = values - values.mean()
    return rest - centred * (rest @ centred) / (centred @ centred)


@cache
def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


_UNITS = {
    "nll": "NLL lower by",
    "bleu": "BLEU",
    "f1": "F1 higher by",
    "accuracy": "accuracy",
}
_BESIDE = {"nll": "bleu", "f1": "accuracy"}


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
