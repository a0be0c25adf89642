"""`gradvac compare`: means over seeds with intervals, significant differences, and costs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from scipy.stats import t as student_t

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.prepare import run_recipe
from gradvac.experiment.sweep import DESCRIPTION
from gradvac.experiment.variants import row_of
from gradvac.translation.languages import Direction
from gradvac.translation.scoring import family_of, side, tokenizer
from gradvac.translation.significance import Test, holm, majority, paired_test

Metric = Literal["bleu", "chrf", "nll"]
METRICS: tuple[Metric, ...] = ("bleu", "chrf", "nll")
LEVEL = 0.05  # of significance
_SIDES = {"any-en": "Any->En", "en-any": "En->Any", "other": "X->Y"}


@dataclass
class Result:
    """What one seed of a row found: a run, or several that make up a row together.

    ``scores[metric][direction]``; ``outputs[direction]`` is (hypotheses, references).
    """

    scores: dict[Metric, dict[str, float]]
    outputs: dict[str, tuple[list[str], list[str]]]
    levels: dict[str, str]
    tokens: int
    seconds: float
    parameters: int
    signatures: dict[str, str]

    def add(self, other: Result) -> None:
        """Take in another part of the same row."""
        for metric in METRICS:
            self.scores[metric] |= other.scores[metric]
        self.outputs |= other.outputs
        self.levels |= other.levels
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.parameters += other.parameters


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    ``values`` are those of the seeds, ``half`` half the width of the 95% interval of their mean
    (NaN for one seed), ``p`` the corrected p-value of the difference from the baseline (NaN: not
    tested).
    """

    values: tuple[float, ...]
    half: float
    p: float = math.nan
    better: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def star(self) -> bool:
        """Whether it is significantly better than the baseline."""
        return self.better and self.p < LEVEL


@dataclass
class Row:
    """A method: its cells by metric and column, and what it cost (means over seeds)."""

    name: str
    seeds: tuple[int, ...]
    tokens: float
    seconds: float
    parameters: int
    several_models: bool
    cost: float = math.nan
    cells: dict[Metric, dict[str, Cell]] = field(default_factory=dict)


@dataclass
class Comparison:
    """The table: rows, columns (column -> its directions), and what it rests on."""

    rows: list[Row]
    directions: list[str]
    averages: dict[str, list[str]]
    baseline: str
    test: Test | None
    signatures: dict[str, str]
    missing: list[Path]

    def best(self, metric: Metric, column: str, *, several_models: bool) -> float:
        """The best mean of a column, with or without rows that are several models."""
        means = [
            row.cells[metric][column].mean
            for row in self.rows
            if column in row.cells[metric] and (several_models or not row.several_models)
        ]
        return (min if metric == "nll" else max)(means, default=math.nan)


def compare(
    folders: Sequence[Path], *, baseline: str | None, test: Test | None, samples: int = 0
) -> Comparison:
    """Compare runs, or the runs of sweep folders, with a baseline.

    Per direction and seed the outputs are tested against the baseline's of that seed by sacreBLEU's
    paired tests; a seed on which the difference has the other sign than the mean counts as
    p = 1; seeds are combined by :func:`majority`, and :func:`holm` corrects for the directions of a
    row. Raises RunError if there is nothing to compare or no such baseline.
    """
    results, several, described, missing = _collect(folders)
    if not results:
        raise RunError(f"no scored run in {', '.join(map(str, folders))}; try gradvac evaluate")
    name = baseline or described or next(iter(results))
    if name not in results:
        there = ", ".join(results)
        raise RunError(f"baseline: {name!r} has no scored run; rows: {there}")
    base = results[name]
    first = next(iter(base.values()))
    directions = list(first.scores["bleu"])
    levels = {k: v for runs in results.values() for r in runs.values() for k, v in r.levels.items()}
    averages = _groups(directions, levels | first.levels)
    rows = []
    for row_name, runs in results.items():
        parts = list(runs.values())
        tokens = statistics.fmean(r.tokens for r in parts)
        seconds = statistics.fmean(r.seconds for r in parts)
        size = max(r.parameters for r in parts)
        row = Row(row_name, tuple(runs), tokens, seconds, size, row_name in several)
        for metric in METRICS:
            row.cells[metric] = _cells(parts, metric, directions, averages)
        if test and row_name != name:
            _test(row, runs, base, directions, test, samples)
        rows.append(row)
    own = next(row for row in rows if row.name == name)
    for row in rows:
        if own.seconds and own.tokens and row.tokens:
            row.cost = (row.seconds / row.tokens) / (own.seconds / own.tokens)
    return Comparison(rows, directions, averages, name, test, first.signatures, missing)


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


def _collect(
    folders: Sequence[Path],
) -> tuple[dict[str, dict[int, Result]], set[str], str | None, list[Path]]:
    """Results by row and seed, rows of several models, a sweep's baseline, runs without scores."""
    runs: list[tuple[str, Path]] = []
    several: set[str] = set()
    baseline = None
    for folder in folders:
        description = folder / DESCRIPTION
        if description.exists():
            tree = json.loads(description.read_text(encoding="utf-8"))
            baseline = baseline or tree["baseline"]
            for variant in tree["variants"]:
                several |= {row_of(variant)} - {variant}
                found = sorted((folder / variant).glob("seed-*"), key=_seed)
                runs += [(row_of(variant), run) for run in found]
        else:
            runs.append((row_of(run_recipe(folder).variant or folder.name), folder))
    results: dict[str, dict[int, Result]] = {}
    missing = []
    for name, run in runs:
        if not (run / "scores.json").exists():
            missing.append(run)
            continue
        seed = run_recipe(run).seed
        result = read_run(run)
        if seed in results.setdefault(name, {}):
            results[name][seed].add(result)
        else:
            results[name][seed] = result
    return results, several, baseline, missing


def _seed(run: Path) -> int:
    number = run.name.removeprefix("seed-")
    return int(number) if number.isdigit() else -1


def read_run(run: Path) -> Result:
    """Read scores, translations, validation NLL and costs of one run; RunError if one is broken."""
    try:
        tree = json.loads((run / "scores.json").read_text(encoding="utf-8"))
        done = json.loads((run / "done.json").read_text(encoding="utf-8"))
        outputs: dict[str, tuple[list[str], list[str]]] = {}
        for line in _lines(run / "translations.jsonl"):
            hypotheses, references = outputs.setdefault(line["direction"], ([], []))
            hypotheses.append(line["hypothesis"])
            references.append(line["reference"])
        metrics = _lines(run / "metrics.jsonl")
        best = [
            line
            for line in metrics
            if line["kind"] in ("valid", "average") and line["step"] == done["best"]["step"]
        ]
        best = [line for line in best if line[done["metric"]] == done["best"]["value"]]
        scores: dict[Metric, dict[str, float]] = {
            "bleu": {k: v["bleu"] for k, v in tree["directions"].items()},
            "chrf": {k: v["chrf"] for k, v in tree["directions"].items()},
            "nll": {k: best[0][f"nll/{k}"] for k in tree["directions"] if best},
        }
        return Result(
            scores=scores,
            outputs=outputs,
            levels={k: v["level"] for k, v in tree["directions"].items() if v.get("level")},
            tokens=sum(line["tokens"] for line in metrics if line["kind"] == "train"),
            seconds=_seconds(run / "speed.jsonl"),
            parameters=count_parameters(run / "best" / "model.safetensors"),
            signatures=tree["signatures"],
        )
    except (OSError, ValueError, KeyError) as e:
        raise RunError(f"{run}: not a finished and scored run: {type(e).__name__} {e}") from e


def _lines(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="\n") as lines:  # a text may hold U+2028
        return [json.loads(line) for line in lines]


def count_parameters(file: Path) -> int:
    """Count the numbers in a file of tensors without reading them."""
    with safe_open(file, "pt") as tensors:
        names = tensors.keys()
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def _seconds(file: Path) -> float:
    """Training time; the clock of ``speed.jsonl`` begins anew when a run is resumed."""
    total, last = 0.0, 0.0
    for line in _lines(file) if file.exists() else []:
        total += line["seconds"] - (last if line["seconds"] >= last else 0.0)
        last = line["seconds"]
    return total


def _groups(directions: Sequence[str], levels: dict[str, str]) -> dict[str, list[str]]:
    """Averages to show, by name: all, each side, and within a side each level and family."""
    groups = {"avg": list(directions)}
    sides = list(dict.fromkeys(side(d) for d in directions))
    for where in sides:
        own = [d for d in directions if side(d) == where]
        label = _SIDES[where] + " " if len(sides) > 1 else ""
        if label:
            groups[label.strip()] = own
        for level in ("high", "medium", "low"):
            if members := [d for d in own if levels.get(d) == level]:
                groups[label + level] = members
        for family in sorted({family_of(d) for d in own}):
            groups[label + family] = [d for d in own if family_of(d) == family]
    return groups


def _cells(
    runs: Sequence[Result],
    metric: Metric,
    directions: Sequence[str],
    averages: dict[str, list[str]],
) -> dict[str, Cell]:
    cells = {}
    for column, members in [*((d, [d]) for d in directions), *averages.items()]:
        complete = [r.scores[metric] for r in runs if all(d in r.scores[metric] for d in members)]
        if complete:
            values = tuple(statistics.fmean(s[d] for d in members) for s in complete)
            cells[column] = Cell(values, half_width(values))
    return cells


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of a mean: Student's t with n - 1 degrees of freedom."""
    if len(values) < 2:
        return math.nan
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _test(
    row: Row,
    runs: dict[int, Result],
    base: dict[int, Result],
    directions: Sequence[str],
    test: Test,
    samples: int,
) -> None:
    """Fill in p-values of BLEU and chrF++ per direction."""
    raw: dict[Metric, dict[str, float]] = {"bleu": {}, "chrf": {}}
    better: dict[Metric, dict[str, bool]] = {"bleu": {}, "chrf": {}}
    for d in directions:
        seeds = [s for s in runs if s in base and d in runs[s].outputs and d in base[s].outputs]
        if not seeds:
            continue
        found = [_p_values(base[s].outputs[d], runs[s].outputs[d], d, test, samples) for s in seeds]
        for metric in raw:
            gaps = [runs[s].scores[metric][d] - base[s].scores[metric][d] for s in seeds]
            up = statistics.fmean(gaps) > 0
            # sacreBLEU's p of equal scores is the smallest there is: nothing exceeds 0 by chance.
            signed = [
                p[metric] if gap and (gap > 0) == up else 1.0
                for p, gap in zip(found, gaps, strict=True)
            ]
            raw[metric][d], better[metric][d] = majority(signed), up
    for metric, p_values in raw.items():
        cells = row.cells[metric]
        for d, p in zip(p_values, holm(list(p_values.values())), strict=True):
            cells[d] = Cell(cells[d].values, cells[d].half, p, better[metric][d])


def _p_values(
    base: tuple[list[str], list[str]],
    own: tuple[list[str], list[str]],
    direction: str,
    test: Test,
    samples: int,
) -> dict[str, float]:
    if base[1] != own[1]:
        raise RunError(f"{direction}: the runs were scored on different sentences")
    tokenize = tokenizer(Direction.parse(direction).target)
    return paired_test(base[0], own[0], own[1], test=test, samples=samples, tokenize=tokenize)
