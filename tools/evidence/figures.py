"""A number of a study: what it measures, how it was tested, what may be wrong with it.

A figure is written so that a positive one is what a paper claims.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

from .statistics import (
    LEVEL,
    detectable,
    different,
    largest,
    points_for,
    seeds_for,
    seeds_to_exclude,
    within,
)


class Absent(Exception):
    """A file or a row that is not in the evidence (yet)."""


@dataclass(frozen=True)
class Measure:
    """A kind of number: the words before it, and the difference that is called none."""

    words: str
    bound: float
    why: str
    digits: int = 3


# Chosen here after these studies had been run, and before any later one.
MEASURES = {
    "nll": Measure("NLL lower by", 0.02, "2 % of perplexity"),
    "front": Measure("NLL, outside by", 0.02, "as of NLL"),
    "bleu": Measure("BLEU", 0.1, "the last digit that tables of papers have", 1),
    "f1": Measure("F1 higher by", 0.3, "the smaller of GradVac's two gains in the paper"),
    "accuracy": Measure("accuracy", 0.3, "as of F1", 1),
    "cosine": Measure("cosine", 0.05, "a twentieth of the way from orthogonal to equal"),
    "share": Measure("share of pairs", 0.05, "one pair in twenty"),
    "curvature": Measure("log top eigenvalue lower by", 0.1, "a tenth of the eigenvalue"),
    "curve": Measure("log NLL lower by", 0.1, "a tenth of NLL"),
    "lab-front": Measure("log NLL, outside by", 0.1, "as of log NLL"),
    "exact": Measure("exact", 1.0, "one translation in a hundred", 1),
    "pull": Measure("log ratio of pulls", 0.1, "a tenth of the ratio"),
    "mantel": Measure("Mantel r", math.nan, ""),
    "r": Measure("r", math.nan, "", 2),
}
MODERATE, WEAK = 0.5, 0.1
"""Correlations that a study should be able to see, over partners and over pairs of languages: a
quarter and a hundredth of the variance."""


@dataclass(frozen=True)
class Flaw:
    """Why the true number may be ``larger``, or smaller, than the one found."""

    larger: bool
    words: str


@dataclass(frozen=True)
class Figure:
    """A number, its test, and what may be wrong with the comparison.

    ``error`` is the standard error of the mean of ``n`` paired differences, tested by Student's t.
    Where it is NaN, ``p`` is the p-value of another test; ``seen`` the smallest effect that the
    test would find with 80 % power, and ``takes`` what more it would need. ``beside`` are other
    readings of the same runs.
    """

    value: float
    n: int
    kind: str
    error: float = math.nan
    p: float = math.nan
    test: str = "t"
    detail: str = ""
    beside: Figure | None = None
    flaws: tuple[Flaw, ...] = ()
    seen: float = math.nan
    takes: str = ""

    @property
    def measure(self) -> Measure:
        """What the number is."""
        return MEASURES[self.kind]

    @property
    def two_sided(self) -> bool:
        """Whether a negative number can speak against the claim; not in a Mantel test."""
        return self.test != "Mantel"

    @property
    def paired(self) -> bool:
        """Whether Student's t decides."""
        return not math.isnan(self.error)

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval; NaN if the test has none."""
        return self.error * float(student_t.ppf(1 - LEVEL / 2, self.n - 1))

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half

    @property
    def chance(self) -> float:
        """p-value of no effect, not corrected."""
        return different(self.value, self.error, self.n - 1) if self.paired else self.p

    @property
    def no_more(self) -> float:
        """p-value of a difference of the measure's bound or more; NaN if there is no such test."""
        bound = self.measure.bound
        if not self.paired or math.isnan(bound):
            return math.nan
        return within(self.value, self.error, self.n - 1, bound)

    @property
    def at_most(self) -> float:
        """The largest difference that the runs leave possible; NaN without a t test."""
        return largest(self.value, self.error, self.n - 1) if self.paired else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation of the paired differences."""
        return self.error * math.sqrt(self.n)

    @property
    def detectable(self) -> float:
        """The smallest true effect that the study finds with 80 % power."""
        return detectable(self.deviation, self.n) if self.paired else self.seen

    def more(self, tests: int) -> str:
        """What it would take to decide, in a study of so many ``tests``."""
        if not self.paired:
            return self.takes
        level = LEVEL / tests
        if self.chance <= LEVEL:
            n = seeds_for(self.deviation, abs(self.value), level)
            return f"p {chance(self.chance)} alone; {max(n, self.n + 1)} seeds if it is as large"
        bound = self.measure.bound
        n = max(of(self.deviation, bound, level) for of in (seeds_for, seeds_to_exclude))
        return f"{max(n, self.n + 1)} seeds for {bound:g}"

    @property
    def words(self) -> str:
        """The figure as the table shows it."""
        name = self.measure.words + (f", {self.detail}" if self.detail else "")
        digits = self.measure.digits
        text = f"{name} {signed(self.value, digits)}"
        if self.paired:
            text += f" [{signed(self.low, digits)}, {signed(self.high, digits)}]"
        return text + (f"; {self.beside.short}" if self.beside else "")

    @property
    def short(self) -> str:
        """The figure in few words, beside another."""
        digits = self.measure.digits
        half = f" ± {self.half:.{digits}f}" if self.paired else f", p {chance(self.p)}"
        of = f" {self.detail}" if self.detail else ""
        return f"{self.measure.words}{of} {signed(self.value, digits)}{half}"


def jackknifed(value: float, half: float, n: int, kind: str, flaws: tuple[Flaw, ...]) -> Figure:
    """A figure of n seeds with half the width of its 95 % interval by the jackknife."""
    error = half / float(student_t.ppf(1 - LEVEL / 2, n - 1))
    return Figure(value, n, kind, error, test="jackknife t", flaws=flaws)


def seeds(values: Sequence[float], kind: str, detail: str = "") -> Figure:
    """The mean over seeds and its standard error; two seeds at least."""
    if len(values) < 2:
        raise Absent(f"{MEASURES[kind].words}: {len(values)} seeds")
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Figure(statistics.fmean(values), len(values), kind, error, detail=detail)


def moderate(n: int) -> str:
    """What it would take to see a moderate correlation over points, of which there are ``n``."""
    return f"{points_for(MODERATE)} partners for r = {MODERATE:g}; here {n}"


def more_languages(seen: float, pairs: int) -> str:
    """How many languages would see a weak correlation, where those of ``pairs`` see ``seen``.

    The deviation of permuted correlations falls with the root of the number of pairs.
    """
    have = round((1 + math.sqrt(1 + 8 * pairs)) / 2)
    need = max(have + 1, math.ceil(have * seen / WEAK))
    return f"about {need} languages for r = {WEAK:g}; here {have}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign; one that rounds to zero has none to speak of."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def chance(p: float) -> str:
    """A p-value after its name."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
