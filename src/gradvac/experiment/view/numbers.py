"""Tests whether gradient similarity reflects languages or quality, null results included.

One table per run: for each side of English and part of the model, the Mantel test of the mean
cosines against distances between languages, how tree-like the cosines are, and whether directions
more similar to the others score better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from gradvac.experiment.view.geometry import SIDES, Missing, Subject, subjects_of
from gradvac.experiment.view.proximity import families, typological_distances
from gradvac.experiment.view.run_view import LANGUAGES, TaskView, load_runs
from gradvac.experiment.view.seeds import over_seeds
from gradvac.geometry.statistics import cophenetic_test, correlation, mantel, residual, same
from gradvac.tables import Table, decimal
from gradvac.writing import write_csv

LEVEL = 0.05
"""p-values up to this are called evidence, by the usual convention."""
FAMILY, SCRIPT, SIZE = "same family", "same script", "similar data size"
QUALITY = {"bleu": "BLEU", "chrf": "chrF++", "f1": "F1", "accuracy": "accuracy"}
PARTS = (("whole_model", "whole_model"), ("enc_dec", "encoder"), ("enc_dec", "decoder"))
PARTS_OF = {side: PARTS[:2] if side == LANGUAGES else PARTS for side in SIDES}
"""Granularity and group of what is tested, by side; a model of tagging has no decoder."""


@dataclass(frozen=True)
class Finding:
    """One question asked of one part of the model on one side of English.

    ``r`` is a correlation, ``low`` and ``high`` its 95 % interval (NaN where there is none), ``p``
    the p-value, ``n`` the number of points and ``unit`` what they are: pairs of tasks, directions
    or languages. ``seeds`` are the correlations of each seed if this is the mean of several.
    """

    side: str
    part: str
    question: str
    r: float
    p: float
    n: int
    low: float = math.nan
    high: float = math.nan
    seeds: tuple[float, ...] = ()
    unit: str = "pairs"

    @property
    def count(self) -> str:
        """The number of points, and what they are."""
        return f"{self.n:,} {self.unit}"

    @property
    def verdict(self) -> str:
        """The result in words."""
        if math.isnan(self.p):
            return "cannot be asked: no variation"
        return "evidence" if self.p <= LEVEL else "not told from chance"


HEADER = ("side", "part", "question", "r", "low", "high", "p", "n", "verdict", "r_of_seeds", "n_of")


def row(f: Finding) -> tuple[object, ...]:
    """A finding as a row under `HEADER`."""
    seeds = " ".join(map(repr, f.seeds))
    return (f.side, f.part, f.question, f.r, f.low, f.high, f.p, f.n, f.verdict, seeds, f.unit)


def findings(subject: Subject) -> tuple[list[Finding], list[str]]:
    """All findings for a run's geometry, and why others are missing.

    For several seeds the mean is tested, with each seed's correlation beside it.
    """
    found: list[Finding] = []
    notes: list[str] = []
    for side in SIDES:
        try:
            tasks = subject.of_side(side)
        except Missing:
            continue
        if len(tasks) < 4:
            of = "" if side == LANGUAGES else "directions "
            notes.append(f"{side}: {len(tasks)} {of}are too few to test anything")
            continue
        known, said = _proximities(subject, tasks)
        notes += [note for note in said if note not in notes]
        for granularity, part in PARTS_OF[side]:
            try:
                values = subject.mean_of(granularity, part, tasks)
            except Missing as e:
                if (note := f"{side}, {part}: needs {e}") not in notes:
                    notes.append(note)
                continue
            found += _of_matrix(side, part, values, known)
            found += _of_quality(subject, side, part, values, tasks)
    return _beside_seeds(found, subject), notes


def _beside_seeds(found: list[Finding], subject: Subject) -> list[Finding]:
    each = [findings(s)[0] for s in subject.seeds if s.geometry is not None]
    of = lambda f: (f.side, f.part, f.question)
    correlations = [{of(f): f.r for f in own} for own in each]
    seeds = [tuple(own.get(of(f), math.nan) for own in correlations) for f in found]
    return [replace(f, seeds=own) for f, own in zip(found, seeds, strict=True)]


def _proximities(
    subject: Subject, tasks: Sequence[TaskView]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Possible explanations of similarity, by name: closeness ``[K, K]``, larger is closer."""
    codes = [t.partner for t in tasks]
    known = {FAMILY: same(families(codes))}
    scripts = _scripts(subject, codes)
    if scripts:
        known[SCRIPT] = same([scripts.get(c, c) for c in codes])
    pairs = np.array([max(t.pairs or 1, 1) for t in tasks], dtype=float)
    known[SIZE] = -np.abs(np.log(pairs)[:, None] - np.log(pairs))
    distances = typological_distances(tuple(codes))
    if isinstance(distances, str):
        return known, [distances]
    return known | {f"{kind} closeness (URIEL+)": -d for kind, d in distances.items()}, []


def _scripts(subject: Subject, codes: Sequence[str]) -> dict[str, str]:
    """The script of each language, from the measured text or from the run's own."""
    geometry = subject.geometry
    if geometry is not None and geometry.measured is not None:
        return geometry.measured.scripts
    return subject.run.kind.scripts(subject.run.folder, codes)


def _of_matrix(
    side: str, part: str, values: np.ndarray, known: dict[str, np.ndarray]
) -> list[Finding]:
    found = []
    for name, closeness in known.items():
        test = mantel(values, closeness)
        found.append(Finding(side, part, name, test.r, test.p, test.pairs))
    controls = [name for name in (SCRIPT, SIZE) if name in known]
    test = mantel(residual(values, [known[name] for name in controls]), known[FAMILY])
    question = f"{FAMILY}, given {' and '.join(controls)}"
    found.append(Finding(side, part, question, test.r, test.p, test.pairs))
    r, p = cophenetic_test(values)
    pairs = len(values) * (len(values) - 1) // 2
    return [*found, Finding(side, part, "like a tree (cophenetic)", r, p, pairs)]


def _of_quality(
    subject: Subject, side: str, part: str, values: np.ndarray, tasks: Sequence[TaskView]
) -> list[Finding]:
    """Correlation of a direction's mean cosine with the others and its score, if scored."""
    scores = (subject.run.scores or {}).get("directions", {})
    known = ~np.eye(len(values), dtype=bool) & ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, values, 0.0).sum(1) / known.sum(1)
    found = []
    what = "language" if side == LANGUAGES else "direction"
    for key, name in QUALITY.items():
        y = [scores.get(t.name, {}).get(key, math.nan) for t in tasks]
        if all(map(math.isnan, y)):
            continue
        c = correlation(mean, np.array(y, dtype=float))
        question, unit = f"{name} of the {what}", f"{what}s"
        found.append(Finding(side, part, question, c.r, c.p, c.n, c.low, c.high, unit=unit))
    return found


def words(found: Sequence[Finding]) -> str:
    """How to read the table."""
    asked = [f for f in found if not math.isnan(f.p)]
    passed = sum(f.p <= LEVEL for f in asked)
    return (
        f"{len(asked)} tests, not corrected for their number: about {LEVEL * len(asked):.0f} would "
        f"reach p \N{LESS-THAN OR EQUAL TO} {LEVEL} by chance; {passed} do. Languages: one-sided "
        "Mantel test of the mean cosines. Quality: a direction's mean cosine with the others and "
        "its score, 95 % bootstrap interval, two-sided permutation test."
    )


def numbers_table(title: str, found: Sequence[Finding]) -> Table:
    """The findings, one per row."""
    heads = ("where", "is it about ...", "r", "p", "n", "result")
    rows = [
        [
            f"{f.side} {f.part.replace('_', ' ')}",
            *(f.question, in_words(f), chance(f), f.count, f.verdict),
        ]
        for f in found
    ]
    return Table(heads, rows, title, words=("is it about ...", "result"))


def in_words(f: Finding) -> str:
    """The correlation, with its interval if it has one."""
    interval = "" if math.isnan(f.low) else f" [{_number(f.low)}, {_number(f.high)}]"
    own = [r for r in f.seeds if not math.isnan(r)]
    seeds = f" (seeds {_number(min(own))} to {_number(max(own))})" if own else ""
    return _number(f.r) + interval + seeds


def chance(f: Finding) -> str:
    """The p-value, rounded to its precision."""
    return "<.001" if f.p < 0.001 else _number(f.p, 3)


def _number(value: float, digits: int = 2) -> str:
    if math.isnan(value):
        return "\N{EN DASH}"
    return decimal(value, digits).replace("-", "\N{MINUS SIGN}")


def print_numbers(run: Path, measured: Path, console: Console) -> None:
    """Print the findings of a measurement, and write them to ``numbers.csv`` in its folder."""
    (subject,) = subjects_of(load_runs([run]), measured)
    found = _print(subject, run.name, console)
    if found:
        write_csv(measured / "numbers.csv", [HEADER, *map(row, found)])


def print_numbers_of(runs: Sequence[Path], console: Console) -> None:
    """Print the findings of several measured runs, joined over their seeds."""
    for subject in over_seeds(subjects_of(load_runs(runs))):
        seeds = f", mean of {len(subject.seeds)} seeds" if subject.seeds else ""
        _print(subject, f"{subject.run.name}{seeds}", console)


def _print(subject: Subject, name: str, console: Console) -> list[Finding]:
    found, notes = findings(subject)
    if found:
        title = f"{name}: what the similarity of gradients is about"
        console.print(numbers_table(title, found).terminal(whole=()))
        console.print(words(found), markup=False)
    for note in notes:
        console.print(note, markup=False)
    return found
