"""What the files in evidence/ say: scores, similarities and tests of the runs, as figures."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from gradvac.experiment.recipe.variants import row_of
from gradvac.geometry.statistics import correlation
from gradvac.translation.significance import majority

from .figures import Absent, Figure, Flaw, jackknifed, moderate, more_languages, seeds
from .statistics import LEVEL, POWER, detectable_correlation
from .tagged import as_comparison

PERMUTATIONS = 99_999
MORE = 1.1
"""How many times the tokens or parameters of another row make a comparison unfair."""


@dataclass(frozen=True)
class Choice:
    """The learning rate of a row: of how many seeds, where in its grid, by what margin."""

    rate: float
    seeds: int
    border: str
    margin: float


@dataclass(frozen=True)
class Evidence:
    """The files of one size; those of a study NAME-real are of the size real."""

    folder: Path
    size: str

    def file(self, name: str, part: str = "") -> Path:
        """Where a file of evidence/ is or would be, ``name`` without its size."""
        own = name.removesuffix("-real")
        return self.folder / f"{own}{part}-{self.size if own == name else 'real'}.json"

    def read(self, name: str, part: str = "") -> dict[str, Any]:
        """A file of evidence/, ``name`` without its size; Absent if it is not there."""
        file = self.file(name, part)
        if not file.exists():
            raise Absent(file.name)
        return _read(file)

    def has(self, name: str, part: str = "") -> bool:
        """Whether there is such a file."""
        return self.file(name, part).exists()

    def studies(self) -> list[str]:
        """Every study that has a file, of its runs or of its learning rates."""
        found = {
            file.name.removesuffix(f"-{size}.json").removesuffix("-rates") + end
            for size, end in ((self.size, ""), ("real", "-real"))
            for file in self.folder.glob(f"*-{size}.json")
        }
        return sorted(found)

    def seconds(self, name: str, part: str = "") -> tuple[int, float]:
        """How many runs of a file have kept their CPU time in training, and how much it is."""
        tree = self.read(name, part)
        if "costs" in tree:
            kept = [(len(c["seeds"]), c.get("cpu_seconds")) for c in tree["costs"].values()]
        else:
            kept = [(1, run.get("cpu_seconds")) for run in tree["runs"]]
        known = [(n, mean) for n, mean in kept if mean is not None]
        return sum(n for n, _ in known), sum(n * mean for n, mean in known)

    def runs(self, name: str, variant: str) -> list[dict[str, Any]]:
        """Collected runs of a variant, by seed."""
        found = [run for run in self.read(name)["runs"] if run["variant"] == variant]
        if not found:
            raise Absent(f"{name}: {variant}")
        return sorted(found, key=lambda run: run["seed"])

    def rows(self, name: str) -> list[str]:
        """The rows of a comparison, or of collected runs, in the order of the file."""
        tree = self.read(name)
        if "costs" in tree:
            return list(tree["costs"])
        return list(dict.fromkeys(row_of(run["variant"]) for run in tree["runs"]))

    def scores(self, name: str, row: str, metric: str, column: str) -> dict[int, float]:
        """Scores of a row by seed, from a comparison."""
        tree = self.read(name)
        for r in tree["records"]:
            if (r["row"], r["metric"], r["column"]) == (row, metric, column):
                return dict(zip(tree["costs"][row]["seeds"], r["values"], strict=True))
        raise Absent(f"{name}: {row} {metric} {column}")

    def gain(
        self,
        name: str,
        a: str,
        b: str,
        column: str = "avg",
        metric: str = "nll",
        given: Sequence[str] = (),
    ) -> Figure:
        """By how much row ``a`` is better than ``b``, seed by seed, and in another metric.

        ``given`` names what one row has more of in the papers too: "tokens" or "parameters".
        """
        figure = seeds(self._gains(name, a, b, column, metric), metric)
        figure = replace(figure, flaws=self.flaws(name, a, b, given))
        other = _BESIDE.get(metric)
        try:
            beside = seeds(self._gains(name, a, b, column, other), other) if other else None
        except Absent:
            return figure
        return replace(figure, beside=beside)

    def flaws(self, name: str, a: str, b: str, given: Sequence[str] = ()) -> tuple[Flaw, ...]:
        """Why row ``a`` may be better or worse, beside ``b``, than it seems.

        A rate at the border of its grid makes a row look worse than it is; more tokens or
        parameters make it look better.
        """
        costs = self.read(name)["costs"]
        had = {
            kind: {row: costs[row][kind] for row in (a, b)}
            for kind in ("tokens", "parameters")
            if kind in costs[a] and kind in costs[b] and kind not in given
        }
        return flaws_of(self.choices(name), a, b, had)

    def _gains(self, name: str, a: str, b: str, column: str, metric: str) -> list[float]:
        left, right = (self.scores(name, row, metric, column) for row in (a, b))
        sign = -1.0 if metric == "nll" else 1.0
        return [sign * (left[seed] - right[seed]) for seed in left if seed in right]

    def per_seed(
        self,
        name: str,
        a: str,
        b: str | None,
        of: Callable[[dict[str, Any]], float],
        kind: str,
        detail: str = "",
    ) -> Figure:
        """``of`` a run of variant ``a``, less that of variant ``b`` of the same seed."""
        right = {run["seed"]: of(run) for run in self.runs(name, b)} if b else {}
        values = [
            of(run) - (right[run["seed"]] if b else 0.0)
            for run in self.runs(name, a)
            if not b or run["seed"] in right
        ]
        return seeds(values, kind, detail)

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
        r, p = ([test[key] for test in known] for key in ("r", "p"))
        return Figure(
            statistics.fmean(r),
            len(r),
            "mantel",
            p=majority(p),
            test="Mantel",
            seen=(seen := _mantel_power(r, p)),
            takes=more_languages(seen, known[0]["n"]),
        )

    def partner_means(
        self, part: str, name: str = "partners"
    ) -> tuple[list[str], dict[str, np.ndarray]]:
        """Partner languages, and over their seeds the mean cosine and the scores of en-fr."""
        runs = self.read(name)["runs"]
        partners = sorted({run["partner"] for run in runs})
        of: dict[str, Callable[[dict[str, Any]], float]] = {
            "cosine": lambda run: run["similarity"][part],
            "bleu": lambda run: run["scores"]["bleu"],
            "nll": lambda run: run["scores"]["nll"],
            "tokens": lambda run: run["tokens"],
        }
        mean = lambda read, code: statistics.fmean(read(r) for r in runs if r["partner"] == code)
        return partners, {
            key: np.array([mean(read, code) for code in partners]) for key, read in of.items()
        }

    def partners(self, part: str, same_tokens: bool = False, name: str = "partners") -> Figure:
        """Over partner languages: similarity of gradients against the BLEU of en-fr, and its NLL.

        ``same_tokens`` correlates what a straight line through en-fr's tokens leaves of each. The
        p-values are of permuted partners, two-sided.
        """
        names, means = self.partner_means(part, name)
        if same_tokens:
            means = {key: _beyond(values, means["tokens"]) for key, values in means.items()}

        def of(scores: np.ndarray, words: str) -> Figure:
            found = correlation(means["cosine"], scores, resamples=PERMUTATIONS)
            n = len(names)
            return Figure(
                found.r,
                n,
                "r",
                p=found.p,
                test="permutation",
                detail=words,
                seen=detectable_correlation(n),
                takes=moderate(n),
            )

        return replace(of(means["bleu"], "with BLEU"), beside=of(-means["nll"], "with −NLL"))

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

    def rate_metric(self, name: str) -> str:
        """By what the learning rates were chosen: "nll" or "error"."""
        return self.read(name, "-rates")["runs"][0].get("metric", "nll")

    def choices(self, name: str) -> dict[str, Choice]:
        """By row: the learning rate that validation chose; none if none was searched for."""
        try:
            searched = self._rate_runs(name)
        except Absent:
            return {}
        found = {}
        for row, reached in self.rates(name).items():
            if len(reached) > 1:
                best, second, *_ = sorted(reached, key=reached.__getitem__)
                border = {min(reached): "smallest", max(reached): "largest"}.get(best, "")
                count = len({run["seed"] for run in searched[row]})
                found[row] = Choice(best, count, border, reached[second] - reached[best])
        return found

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
        for run in self.read(name, "-rates")["runs"]:
            found.setdefault(row_of(run["variant"]), []).append(run)
        return found

    def front(self, row: str, name: str = "imbalance") -> Figure:
        """How far outside the swept front of NLL a row lies.

        Beyond an end of the front, better than all of it on one side and worse on the other, the
        distance is to the last point that was swept: further ones might be nearer.
        """
        tree = self.read(name)
        for found in (f for f in tree.get("fronts", []) if f["metric"] == "nll"):
            own = [p for p in found["rows"] if p["row"] == row]
            if not own or own[0]["distance"]["half_width"] is None:
                continue
            (place,) = own
            value, half = (place["distance"][key] for key in ("value", "half_width"))
            n = len(place["seeds"])
            swept = [p["mean"] for p in found["rows"] if p["swept"]]
            flaws = self.flaws(name, row, tree["baseline"]) + beyond(row, place["mean"], swept)
            return jackknifed(value, half, n, "front", flaws)
        raise Absent(f"{name}: front, {row}")


def beyond(row: str, mean: Sequence[float], swept: Sequence[Sequence[float]]) -> tuple[Flaw, ...]:
    """What is unfair where a row is better than all of a front on one side, and worse on the other.

    Its distance is then to the last point that was swept.
    """
    sides = {
        (all(x < s[k] for s in swept), all(x > s[k] for s in swept)) for k, x in enumerate(mean)
    }
    if sides != {(True, False), (False, True)}:
        return ()
    return (Flaw(False, f"{row} lies beyond the last point of the sweep: go on"),)


def flaws_of(
    choices: Mapping[str, Choice], a: str, b: str, had: Mapping[str, Mapping[str, float]]
) -> tuple[Flaw, ...]:
    """What is unfair between rows ``a`` and ``b``: rates at a border, more of what each ``had``."""
    found = []
    for row, other, larger in ((a, b, True), (b, a, False)):
        if row in choices and (border := choices[row].border):
            further = border.replace("st", "r")
            words = f"the rate of {row} is the {border} tried: try {further} ones"
            found.append(Flaw(larger, words))
        times: dict[str, list[str]] = {}
        for kind, of in had.items():
            if of[row] > MORE * of[other]:
                times.setdefault(f"{of[row] / of[other]:.1f}", []).append(kind)
        if times:
            more = [f"{ratio} times the {' and '.join(kinds)}" for ratio, kinds in times.items()]
            found.append(Flaw(not larger, f"{row} had {' and '.join(more)}: give both as much"))
    return tuple(found)


def _mantel_power(r: Sequence[float], p: Sequence[float]) -> float:
    """The r that a majority of seeds would find with 80 % power, where the permuted r are normal.

    Their deviation is that with which ``r`` has the one-sided ``p``; the median over seeds.
    """
    deviations = [a / float(norm.isf(b)) for a, b in zip(r, p, strict=True) if b != 0.5]
    count = len(p)
    level = LEVEL * (count // 2 + 1) / count  # as majority() corrects
    return statistics.median(deviations) * float(norm.isf(level) + norm.ppf(POWER))


def _seconds_a_token(runs: Sequence[dict[str, Any]]) -> float:
    return sum(r["cpu_seconds"] or math.nan for r in runs) / sum(r["tokens"] for r in runs)


def _beyond(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """What least squares on ``of`` leaves of ``values``, ``[n]`` each."""
    centred = of - of.mean()
    rest = values - values.mean()
    return rest - centred * (rest @ centred) / (centred @ centred)


@cache
def _read(file: Path) -> dict[str, Any]:
    tree = json.loads(file.read_text(encoding="utf-8"))
    return as_comparison(tree) if tree.get("study") == "tagged" else tree


_BESIDE = {"nll": "bleu", "f1": "accuracy"}
