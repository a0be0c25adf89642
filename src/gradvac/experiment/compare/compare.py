"""`gradvac compare`: means over seeds with intervals, significant differences, and costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.compare.results import LOWER_IS_BETTER, METRICS, Metric, Result, collect
from gradvac.experiment.compare.tagging import p_values_of_tags
from gradvac.geometry.statistics import LEAST_VALUES, half_width
from gradvac.translation.scoring import SIDES, family_of, side
from gradvac.translation.significance import (
    FEW,
    Test,
    differing,
    holm,
    majority,
    paired_test,
)

LEVEL = 0.05  # significance level
Clock = Literal["cpu_seconds", "seconds"]


@dataclass(frozen=True)
class Mean:
    """One number of the table, a mean over seeds.

    ``values`` are those of ``seeds``, ``half`` half the width of the 95% interval of their mean
    (NaN for one seed), ``p`` the corrected p-value of the difference from the baseline (NaN: not
    tested).
    """

    values: tuple[float, ...]
    half: float
    p: float = math.nan
    better: bool = False
    seeds: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def known_half(self) -> float:
        """The half width; NaN with too few seeds for an interval that says anything."""
        return self.half if len(self.values) >= LEAST_VALUES else math.nan

    @property
    def star(self) -> bool:
        """Whether it is significantly better than the baseline."""
        return self.better and self.p < LEVEL


@dataclass
class Row:
    """A method: its cells by metric and column, and its cost (means over seeds).

    ``first`` is the result of its first seed. ``few`` maps each direction with fewer than `FEW`
    outputs that differ from the baseline's to their number, on the seed with the fewest.
    """

    name: str
    first: Result
    seeds: tuple[int, ...]
    tokens: float
    seconds: float
    cpu_seconds: float
    parameters: int
    several_models: bool
    cost: float = math.nan
    cells: dict[Metric, dict[str, Mean]] = field(default_factory=dict)
    few: dict[str, int] = field(default_factory=dict)


@dataclass
class Comparison:
    """The table: rows, columns (average -> its directions), and how it was computed.

    ``directions`` are trained ones; ``zero_shot`` were never trained and have a separate average.
    ``cost_of`` is CPU time if every row has it, because wall time depends on the other load of the
    machine. ``front`` names the rows that a sweep's recipe declares as its front, ``test_set`` the
    test set if it has a name.
    """

    rows: list[Row]
    directions: list[str]
    zero_shot: list[str]
    averages: dict[str, list[str]]
    cost_of: Clock
    metrics: tuple[Metric, ...]
    baseline: str
    test: Test | None
    signatures: dict[str, str]
    identifier_errors: dict[str, float]
    front: list[str]
    missing: list[Path]
    test_set: str = ""

    def best(self, metric: Metric, column: str, *, several_models: bool) -> float:
        """The best mean of a column, with or without rows made of several models."""
        means = [
            row.cells[metric][column].mean
            for row in self.rows
            if column in row.cells[metric] and (several_models or not row.several_models)
        ]
        return (min if metric in LOWER_IS_BETTER else max)(means, default=math.nan)

    def difference(self, row: Row, metric: Metric, column: str) -> Mean | None:
        """Row minus baseline, on the seeds that both have.

        Their runs share initial parameters and batches, so the interval is far narrower than those
        of the two means. None without a shared seed.
        """
        base = next(r for r in self.rows if r.name == self.baseline)
        own, other = (r.cells[metric].get(column) for r in (row, base))
        if own is None or other is None or row is base:
            return None
        before = dict(zip(other.seeds, other.values, strict=True))
        gaps = {
            seed: value - before[seed]
            for seed, value in zip(own.seeds, own.values, strict=True)
            if seed in before
        }
        values = tuple(gaps.values())
        return Mean(values, half_width(values), seeds=tuple(gaps)) if gaps else None


def compare(
    folders: Sequence[Path],
    *,
    baseline: str | None,
    test: Test | None,
    samples: int = 0,
    comet: Mapping[Path, Mapping[str, float]] | None = None,
    test_set: str = "",
) -> Comparison:
    """Compare runs, or the runs of sweep folders, with a baseline.

    Per direction and seed the outputs are tested against the baseline's of that seed by a
    :func:`paired_test`; a seed whose difference has the opposite sign of the mean counts as p = 1;
    seeds are combined by :func:`majority`, and :func:`holm` corrects for the directions of a row,
    separately for trained and zero-shot ones. ``comet`` has COMET scores by run folder and
    direction, ``test_set`` is the name of a test set, "" for the first of each run.

    Raises RunError if there is nothing to compare, the baseline does not exist, or runs
    were scored on different sentences or with BLEU of different tokenizers.
    """
    found = collect(folders, comet, test_set)
    results = found.results
    if not results:
        raise RunError(f"no scored run in {', '.join(map(str, folders))}; try gradvac evaluate")
    name = baseline or found.baseline or next(iter(results))
    if name not in results:
        there = ", ".join(results)
        raise RunError(f"baseline: {name!r} has no scored run; rows: {there}")
    _same_bleu(results)
    _same_sentences(results)
    base = results[name]
    first = next(iter(base.values()))
    scored = first.scores["bleu"] or first.scores["f1"]
    directions = [d for d in scored if d not in first.zero_shot]
    zero_shot = [d for d in scored if d in first.zero_shot]
    levels = {k: v for runs in results.values() for r in runs.values() for k, v in r.levels.items()}
    averages = _groups(directions, levels | first.levels)
    if zero_shot:
        averages["zero-shot"] = zero_shot
    rows = []
    for row_name, runs in results.items():
        row = _row(row_name, runs, row_name in found.several)
        for metric in METRICS:
            row.cells[metric] = _cells(runs, metric, [*directions, *zero_shot], averages)
        if test and row_name != name:
            for family in (directions, zero_shot):
                _test(row, runs, base, family, test, samples)
        rows.append(row)
    cost_of = _fill_in_costs(rows, name)
    return Comparison(
        rows=rows,
        directions=directions,
        zero_shot=zero_shot,
        averages=averages,
        cost_of=cost_of,
        metrics=tuple(m for m in METRICS if m == "nll" or any(r.cells[m] for r in rows)),
        baseline=name,
        test=test,
        signatures=first.signatures,
        identifier_errors=first.identifier_errors,
        front=found.front,
        missing=found.missing,
        test_set=test_set,
    )


def _row(name: str, runs: Mapping[int, Result], several: bool) -> Row:
    parts = list(runs.values())
    return Row(
        name,
        parts[0],
        tuple(runs),
        tokens=statistics.fmean(r.tokens for r in parts),
        seconds=statistics.fmean(r.seconds for r in parts),
        cpu_seconds=statistics.fmean(r.cpu_seconds for r in parts),
        parameters=max(r.parameters for r in parts),
        several_models=several,
    )


def _fill_in_costs(rows: Sequence[Row], baseline: str) -> Clock:
    """Fill in the cost of each row relative to the baseline's; return the clock used."""
    own = next(row for row in rows if row.name == baseline)
    clock: Clock = "cpu_seconds" if all(row.cpu_seconds > 0 for row in rows) else "seconds"
    for row in rows:
        spent, base_spent = getattr(row, clock), getattr(own, clock)
        if base_spent and own.tokens and row.tokens:
            row.cost = (spent / row.tokens) / (base_spent / own.tokens)
    return clock


def _same_bleu(results: Mapping[str, Mapping[int, Result]]) -> None:
    """Refuse BLEU scores of different tokenizers: they are not comparable."""
    seen: dict[str, tuple[str, Path]] = {}
    for runs in results.values():
        for result in runs.values():
            for direction, tokenize in result.tokenizers.items():
                other, folder = seen.setdefault(direction, (tokenize, result.folders[0]))
                if other != tokenize:
                    raise RunError(
                        f"{direction}: BLEU of {folder} has tokenizer {other!r}, that of "
                        f"{result.folders[0]} {tokenize!r}; score both again with gradvac evaluate "
                        "--bleu-tokenize"
                    )


def _same_sentences(results: Mapping[str, Mapping[int, Result]]) -> None:
    """Refuse scores of different test sentences, before the slow tests run."""
    seen: dict[str, tuple[Sequence[object], Path]] = {}
    for result in (r for runs in results.values() for r in runs.values()):
        expected: dict[str, Sequence[object]] = {d: o[1] for d, o in result.outputs.items()}
        expected |= {language: tags[0] for language, tags in result.tags.items()}
        for task, own in expected.items():
            other, folder = seen.setdefault(task, (own, result.folders[0]))
            if own != other:
                raise RunError(
                    f"{task}: the runs were scored on different sentences: {len(other):,} in "
                    f"{folder}, {len(own):,} in {result.folders[0]}; score both again with "
                    "gradvac evaluate"
                )


def chosen_test(name: str) -> Test | None:
    """The test of that name; None for "none". Raises RecipeError."""
    tests: dict[str, Test | None] = {
        "bootstrap": "bootstrap",
        "randomization": "randomization",
        "none": None,
    }
    if name not in tests:
        raise RecipeError(f"--test: found {name!r}, must be {', '.join(tests)}")
    return tests[name]


def _groups(directions: Sequence[str], levels: dict[str, str]) -> dict[str, list[str]]:
    """Averages to show, by name: all, each side, and within a side each level and family."""
    groups = {"avg": list(directions)}
    sides = list(dict.fromkeys(side(d) for d in directions))
    for where in sides:
        own = [d for d in directions if side(d) == where]
        label = SIDES[where] + " " if len(sides) > 1 else ""
        if label:
            groups[label.strip()] = own
        for level in ("high", "medium", "low"):
            if members := [d for d in own if levels.get(d) == level]:
                groups[label + level] = members
        families = sorted({family_of(d) for d in own})
        for family in families if len(families) < len(own) else ():  # else each is one direction
            groups[label + family] = [d for d in own if family_of(d) == family]
    return groups


def _cells(
    runs: Mapping[int, Result],
    metric: Metric,
    directions: Sequence[str],
    averages: dict[str, list[str]],
) -> dict[str, Mean]:
    cells = {}
    for column, members in [*((d, [d]) for d in directions), *averages.items()]:
        complete = {
            seed: r.scores[metric]
            for seed, r in runs.items()
            if all(d in r.scores[metric] for d in members)
        }
        if complete:
            values = tuple(statistics.fmean(s[d] for d in members) for s in complete.values())
            cells[column] = Mean(values, half_width(values), seeds=tuple(complete))
    return cells


def _test(
    row: Row,
    runs: dict[int, Result],
    base: dict[int, Result],
    directions: Sequence[str],
    test: Test,
    samples: int,
) -> None:
    """Fill in p-values of BLEU and chrF++ per direction, of F1 and accuracy per language."""
    tested: tuple[Metric, ...] = ("f1", "accuracy") if row.first.tags else ("bleu", "chrf")
    raw: dict[Metric, dict[str, float]] = {metric: {} for metric in tested}
    better: dict[Metric, dict[str, bool]] = {metric: {} for metric in tested}
    there = lambda r, d: d in r.outputs or d in r.tags
    for d in directions:
        seeds = [s for s in runs if s in base and there(runs[s], d) and there(base[s], d)]
        if not seeds:
            continue
        found = [_p_values(base[s], runs[s], d, test, samples) for s in seeds]
        few = min(differing(_outputs(base[s], d), _outputs(runs[s], d)) for s in seeds)
        if few < FEW:
            row.few[d] = few
        for metric in raw:
            gaps = [runs[s].scores[metric][d] - base[s].scores[metric][d] for s in seeds]
            up = statistics.fmean(gaps) > 0
            signed = [
                p[metric] if (gap > 0) == up else 1.0 for p, gap in zip(found, gaps, strict=True)
            ]
            raw[metric][d], better[metric][d] = majority(signed), up
    for metric, p_values in raw.items():
        cells = row.cells[metric]
        for d, p in zip(p_values, holm(list(p_values.values())), strict=True):
            cells[d] = replace(cells[d], p=p, better=better[metric][d])


def _outputs(result: Result, direction: str) -> Sequence[object]:
    found = result.tags if direction in result.tags else result.outputs
    own, other = found[direction]
    return other if direction in result.tags else own


def _p_values(
    base: Result, own: Result, direction: str, test: Test, samples: int
) -> dict[str, float]:
    if direction in own.tags:
        return p_values_of_tags(base, own, direction, samples)
    baseline, system = base.outputs[direction], own.outputs[direction]
    tokenize = own.tokenize[direction]
    return paired_test(
        baseline[0], system[0], system[1], test=test, samples=samples, tokenize=tokenize
    )
