"""The claims of the papers, each with what the files in evidence/ say of it.

A figure is written so that a positive one is what the paper claims. It holds where its 95 %
interval lies above zero, does not hold where it lies below, and cannot be told at this size
otherwise. Of each claim that rests on a test there is a p-value instead, and a null result of a
test is "cannot tell", not "does not hold".
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gradvac.experiment.compare import half_width
from gradvac.geometry.statistics import correlation
from gradvac.translation.significance import majority

LEVEL = 0.05
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell at this size"
GRADVAC, CATS = "GradVac", "CATS"
_HALVES = ("encoder", "decoder")


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


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper: the study it belongs to, where it stands, what decides it."""

    study: str
    text: str
    source: str
    figure: Callable[[], Figure]


def seeds(values: Sequence[float], unit: str, also: str = "") -> Figure:
    """The mean over seeds with Student's t interval; two seeds at least."""
    if len(values) < 2:
        raise Absent(f"{unit}: {len(values)} seeds")
    mean, half = statistics.fmean(values), half_width(values)
    return Figure(mean, mean - half, mean + half, len(values), unit, also=also)


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
        """By how much row ``a`` is better than ``b``, seed by seed, and the other metrics'."""
        other = {"nll": "bleu", "f1": "accuracy"}.get(metric)
        figure = seeds(self._gains(name, a, b, column, metric), _UNITS[metric])
        try:
            beside = seeds(
                self._gains(name, a, b, column, other or ""), _UNITS.get(other or "", "")
            )
        except Absent:
            return figure
        half = (beside.high - beside.low) / 2
        also = f"{beside.unit} {beside.value:+.1f} ± {half:.1f}"
        return Figure(figure.value, figure.low, figure.high, figure.n, figure.unit, also=also)

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
        }
        return names, {
            key: np.array(
                [statistics.fmean(read(r) for r in runs if r["partner"] == name) for name in names]
            )
            for key, read in of.items()
        }

    def partners(self, part: str) -> Figure:
        """Over partner languages: similarity of gradients against the NLL of en-fr."""
        names, means = self.partner_means(part)
        found = correlation(means["cosine"], -means["nll"])
        bleu = correlation(means["cosine"], means["bleu"])
        also = f"with BLEU {bleu.r:+.2f} [{bleu.low:+.2f}, {bleu.high:+.2f}]"
        return Figure(found.r, found.low, found.high, len(names), "r with -NLL", also=also)

    def rates(self, name: str) -> dict[str, dict[float, float]]:
        """By row and learning rate, ascending: what it reached in validation, of a seed apart."""
        found: dict[str, dict[float, list[float]]] = {}
        for run in sorted(self.read(f"{name}-rates")["runs"], key=lambda r: r["learning_rate"]):
            row = found.setdefault(run["variant"].partition("/")[0], {})
            row.setdefault(run["learning_rate"], []).append(run["best"])
        return {
            row: {rate: statistics.fmean(own) for rate, own in rates.items()}
            for row, rates in found.items()
        }

    def front(self, row: str) -> Figure:
        """How far outside the swept front of NLL a row lies."""
        fronts = self.read("imbalance").get("fronts", [])
        for place in (p for f in fronts if f["metric"] == "nll" for p in f["rows"]):
            if place["row"] == row and place["distance"]["half_width"] is not None:
                value, half = (place["distance"][key] for key in ("value", "half_width"))
                n = len(place["seeds"])
                return Figure(value, value - half, value + half, n, "NLL, outside by")
        raise Absent(f"imbalance: front, {row}")


@cache
def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


_UNITS = {
    "nll": "NLL lower by",
    "bleu": "BLEU",
    "chrf": "chrF++",
    "f1": "F1 higher by",
    "accuracy": "accuracy",
}


def claims(e: Evidence) -> Iterator[Claim]:
    """Every claim that is looked at, in the order of the page."""
    yield from _geometry(e)
    yield from _table1(e)
    yield from _own_choices(e)
    yield from _imbalance(e)
    yield from _mechanism(e)
    yield from _tagging(e)


def _geometry(e: Evidence) -> Iterator[Claim]:
    def add(text: str, source: str, figure: Callable[[], Figure]) -> Claim:
        return Claim("geometry", text, f"{GRADVAC} {source}", figure)

    family, given = "same family", "same family, given same script and similar data size"
    into, out = ("any-en", "any-en", "encoder"), ("en-any", "en-any", "decoder")
    for words, where, source in (
        ("into English, encoder", into, "2.2, fig. 1"),
        ("out of English, decoder", out, "App. D, fig. 10"),
    ):
        yield add(
            f"Gradients cluster by family ({words})",
            source,
            lambda where=where: e.mantel(*where, family),
        )
        yield add(
            f"... also given script and data size ({words})",
            "(ours)",
            lambda where=where: e.mantel(*where, given),
        )
        for question, more in ((family, ""), (given, ", given script and data size")):
            yield add(
                f"... on text of the corpus, 22 languages{more} ({words})",
                "(ours)",
                lambda where=where, q=question: e.mantel(*where, q, "geometry-in-domain"),
            )
    part = lambda side, name: lambda run: run["sides"][side]["parts"][name]
    side = lambda s: part(s, "whole_model")
    yield add(
        "Out of English gradients agree less than into English, in one model",
        "2.2, fig. 2a",
        lambda: e.per_seed(
            "geometry", "both", None, lambda r: side("any-en")(r) - side("en-any")(r), "cosine"
        ),
    )
    gap = lambda s: lambda run: part(s, "decoder")(run) - part(s, "encoder")(run)
    yield add(
        "Into English they agree more in the decoder than in the encoder",
        "2.2, fig. 4a",
        lambda: e.per_seed("geometry", "any-en", None, gap("any-en"), "cosine"),
    )
    yield add(
        "Out of English they agree less in the decoder than in the encoder",
        "2.2, fig. 4a",
        lambda: e.per_seed("geometry", "en-any", None, lambda r: -gap("en-any")(r), "cosine"),
    )

    def rise(s: str) -> Callable[[dict[str, Any]], float]:
        def of(run: dict[str, Any]) -> float:
            layers = run["sides"][s]["layers"]
            encoder, decoder = ([n for n in layers if n.startswith(half)] for half in _HALVES)
            return layers[decoder[-1]] - layers[encoder[0]]

        return of

    yield add(
        "Into English they agree more from bottom to top",
        "2.2, fig. 4b",
        lambda: e.per_seed("geometry", "any-en", None, rise("any-en"), "cosine, top less bottom"),
    )
    yield add(
        "Out of English they agree less from bottom to top",
        "2.2, fig. 4b",
        lambda: e.per_seed(
            "geometry", "en-any", None, lambda r: -rise("en-any")(r), "cosine, bottom less top"
        ),
    )

    def closer(run: dict[str, Any]) -> float:
        found = [
            run["sides"]["en-any"][end][f"fr es {group}"] - value
            for end in ("first", "last")
            for key, value in run["sides"]["en-any"][end].items()
            if key.startswith("fr hi ") and (group := key.removeprefix("fr hi "))
        ]
        return statistics.fmean(found)

    yield add(
        "en-fr agrees more with en-es than with en-hi",
        "2.2, fig. 4c",
        lambda: e.per_seed("geometry", "en-any", None, closer, "cosine"),
    )
    yield add(
        "Smaller batches: less similar (out of English, decoder)",
        "App. D, fig. 11",
        lambda: e.per_seed(
            "geometry", "en-any", "en-any-small-batch", part("en-any", "decoder"), "cosine"
        ),
    )
    yield add(
        "Smaller model: less similar (into English)",
        "App. C.3, fig. 9",
        lambda: e.per_seed("geometry", "any-en", "any-en-small-model", side("any-en"), "cosine"),
    )
    yield Claim(
        "partners",
        "en-fr scores better the more its partner's gradients agree with its own",
        f"{GRADVAC} 2.2, fig. 2b",
        lambda: e.partners("whole_model"),
    )


def _table1(e: Evidence) -> Iterator[Claim]:
    for name, words in (("table1-from-en", "out of English"), ("table1-to-en", "into English")):

        def add(
            text: str, a: str, b: str, column: str = "avg", name: str = name, words: str = words
        ) -> Claim:
            return Claim(
                name,
                f"{text} ({words})",
                f"{GRADVAC} table 1",
                lambda: e.gain(name, a, b, column),
            )

        own = "multilingual"
        yield add("Joint beats bilingual for low-resource directions", own, "bilingual", "low")
        yield add("Bilingual beats joint for high-resource directions", "bilingual", own, "high")
        yield add("PCGrad beats joint", "pcgrad", own)
        yield add("PCGrad by layer beats PCGrad", "pcgrad-all-layer", "pcgrad")
        yield add("GradVac beats joint", "gradvac-all-layer", own)
        yield add("GradVac beats PCGrad by layer", "gradvac-all-layer", "pcgrad-all-layer")
        yield add("GradVac with a fixed target beats PCGrad", "gradvac-fixed", "pcgrad")
        yield add("Adaptive targets beat a fixed one", "gradvac-all-layer", "gradvac-fixed")
        if name == "table1-from-en":
            yield add("GradNorm is below joint", own, "gradnorm")
            yield add("MGDA is below joint", own, "mgda")
    yield Claim(
        "edits",
        "GradVac is active in more pairs than PCGrad would be",
        f"{GRADVAC} 3.2, fig. 3",
        lambda: e.per_seed(
            "edits",
            "gradvac-all-layer",
            None,
            lambda r: statistics.fmean(r["gradvac"]) - statistics.fmean(r["pcgrad"]),
            "share of pairs",
        ),
    )


def _own_choices(e: Evidence) -> Iterator[Claim]:
    best = "gradvac-all-layer"
    for text, other, table in (
        ("Editing low-resource tasks beats editing high-resource ones", "hrl-only", 6),
        ("... beats editing all", "all-task", 6),
        ("By layer beats the whole model", "gradvac-whole-model", 7),
        ("... beats encoder and decoder", "enc-dec", 7),
        ("... beats each matrix", "all-matrix", 7),
        ("beta 1e-2 beats 1e-1", "beta-1e-1", 8),
        ("beta 1e-2 beats 1e-3", "beta-1e-3", 8),
    ):
        yield Claim(
            "ablations",
            text,
            f"{GRADVAC} table {table}",
            lambda other=other: e.gain("ablations", best, other),
        )


def _imbalance(e: Evidence) -> Iterator[Claim]:
    def add(text: str, source: str, a: str, b: str, column: str) -> Claim:
        return Claim("imbalance", text, source, lambda: e.gain("imbalance", a, b, column))

    table2, poster = f"{GRADVAC} table 2", f"{CATS} table 1"
    yield add("T=5 beats T=1 for low-resource directions", table2, "t5", "t1", "low")
    yield add("T=1 beats T=5 for high-resource directions", table2, "t1", "t5", "high")
    for level in ("high", "medium", "low"):
        yield add(f"GradVac beats T=5 ({level})", table2, "gradvac", "t5", level)
    yield add("CATS beats T=5 (low)", poster, "cats", "t5", "low")
    yield add("CATS beats T=5 (high)", poster, "cats", "t5", "high")
    yield add("CATS beats T=1 (low)", poster, "cats", "t1", "low")
    yield add("T=1 beats CATS (high)", poster, "t1", "cats", "high")
    yield add("CATS beats CLSR on average", poster, "cats", "clsr", "avg")
    for row, words in (
        ("gradvac", "GradVac"),
        ("cats", "CATS"),
        ("unimax", "UniMax"),
        ("clsr", "CLSR"),
    ):
        yield Claim(
            "imbalance",
            f"{words} leaves the front of swept temperatures and weights",
            "asked by Xin et al. 2022",
            lambda row=row: e.front(row),
        )


def _mechanism(e: Evidence) -> Iterator[Claim]:
    def late(run: dict[str, Any]) -> float:
        values = [v["value"] for v in run["eigenvalues"] if v["group"] == "sum"]
        return statistics.fmean(math.log(v) for v in values)

    agree = lambda run: statistics.fmean(run["high_low_cosine"].values())
    for other in ("t1", "t5"):
        yield Claim(
            "cats",
            f"CATS lowers the curvature against {other.upper()}",
            f"{CATS} fig. 5",
            lambda other=other: e.per_seed(
                "curvature", other, "cats", late, "log top eigenvalue lower by"
            ),
        )
        yield Claim(
            "cats",
            f"CATS makes high- and low-resource gradients agree more than {other.upper()}",
            f"{CATS} fig. 5",
            lambda other=other: e.per_seed("curvature", "cats", other, agree, "cosine"),
        )
    for text, source, suffix in (
        ("CATS beats {} ({})", "fig. 6", ""),
        ("... with four times the batch: beats {} ({})", "fig. 8", "-large-batch"),
        ("... with a wider model: beats {} ({})", "fig. 9", "-large-model"),
    ):
        for other in ("t1", "t5"):
            for level in ("low", "high"):
                yield Claim(
                    "cats",
                    text.format(other.upper(), level),
                    f"{CATS} {source}",
                    lambda other=other, level=level, suffix=suffix: e.gain(
                        "cats", f"cats{suffix}", f"{other}{suffix}", level
                    ),
                )


def _tagging(e: Evidence) -> Iterator[Claim]:
    for name, words, table in (("table3-ner", "NER", 3), ("table9-pos", "POS", 9)):
        for a, b in (("gradvac", "joint"), ("gradvac", "pcgrad"), ("pcgrad", "joint")):
            label = {"gradvac": "GradVac", "pcgrad": "PCGrad", "joint": "joint training"}
            yield Claim(
                name,
                f"{label[a]} beats {label[b]} ({words})",
                f"{GRADVAC} table {table}",
                lambda name=name, a=a, b=b: e.gain(name, a, b, "avg", "f1"),
            )
        for b in ("gradnorm", "mgda"):
            yield Claim(
                name,
                f"{'GradNorm' if b == 'gradnorm' else 'MGDA'} is below joint training ({words})",
                f"{GRADVAC} table {table}",
                lambda name=name, b=b: e.gain(name, "joint", b, "avg", "f1"),
            )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
