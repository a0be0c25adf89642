"""The tables of the page that are not claims: scores, learning rates, power."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gradvac.experiment.compare.comparison_view import DIGITS, NAMES
from gradvac.experiment.compare.results import Metric
from gradvac.geometry.statistics import half_width

from . import curves as seen
from .cost import empty_corpus
from .cost import table as cost_table
from .figures import MEASURES, Absent, Figure, Measure
from .files import Choice, Evidence
from .statistics import detectable, seeds_for

SEEDS = (3, 6, 10)


def bars(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def cost(size: str) -> str:
    """What has not been run would cost."""
    with tempfile.TemporaryDirectory() as folder:
        recipes = Path(__file__).parents[2] / "recipes"
        return cost_table(recipes, size, empty_corpus(Path(folder)))


def scores(e: Evidence, name: str) -> str:
    """Averages of every row of a comparison, as `gradvac compare` found them."""
    tree = e.read(name)
    metrics: tuple[Metric, ...] = ("bleu", "f1", "accuracy", "nll")
    groups = [g for g in ("avg", "high", "medium", "low") if g in tree["averages"]]
    cells = {(r["row"], r["metric"], r["column"]): r for r in tree["records"]}
    rows, costs = list(tree["costs"]), e.costs(name)
    columns = [
        (metric, group, f"{NAMES[metric]} {group}", DIGITS[metric])
        for metric in metrics
        for group in groups
        if any((row, metric, group) in cells for row in rows)
    ]
    lines = [
        bars(["", *(head for *_, head, _ in columns), "seeds", "cost"]),
        "|---" + "|---:" * (len(columns) + 2) + "|",
    ]
    for row in rows:
        own = [_cell(cells.get((row, metric, group)), n) for metric, group, _, n in columns]
        price = "" if costs[row] is None else f"{costs[row]:.2f}"
        lines.append(bars([row, *own, str(len(tree["costs"][row]["seeds"])), price]))
    return "\n".join(lines)


def languages(e: Evidence, name: str) -> str:
    """F1 or chrF++ by language of every row of a comparison, the best of each in bold.

    A star is that of `gradvac compare`: better than the baseline in the paired test.
    """
    tree = e.read(name)
    columns = [*tree["averages"]["avg"], "avg"]
    metric: Metric = "f1" if any(r["metric"] == "f1" for r in tree["records"]) else "chrf"
    cells = {(r["row"], r["column"]): r for r in tree["records"] if r["metric"] == metric}
    rows = list(tree["costs"])
    best = {c: max(rows, key=lambda row, c=c: cells[row, c]["mean"]) for c in columns}
    lines = [bars(["", *columns]), "|---" + "|---:" * len(columns) + "|"]
    for row in rows:
        own = [cells[row, column] for column in columns]
        shown = [_cell(cell, DIGITS[metric]) for cell in own]
        bold = [f"**{x}**" if best[c] == row else x for c, x in zip(columns, shown, strict=True)]
        stars = ["\\*" if cell.get("better") else "" for cell in own]
        lines.append(bars([row, *map(str.__add__, bold, stars)]))
    return "\n".join(lines)


def _cell(record: dict[str, Any] | None, digits: int) -> str:
    if record is None:
        return ""
    half = record["half_width"]
    return f"{record['mean']:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")


def rates(e: Evidence, name: str) -> str:
    """Validation NLL by learning rate, the best of each row in bold; then how it was chosen."""
    rows = e.rates(name)
    tried = sorted({rate for own in rows.values() for rate in own})
    lines = [bars(["", *(f"{rate:g}" for rate in tried)]), "|---" + "|---:" * len(tried) + "|"]
    for row, own in rows.items():
        best = min(own.values())
        cells = [own.get(rate) for rate in tried]
        bold = lambda x, best=best: f"**{x:.3f}**" if x == best else f"{x:.3f}"
        lines.append(bars([row, *("" if x is None else bold(x) for x in cells)]))
    return "\n".join([*lines, "", choices(e, name)])


def choices(e: Evidence, name: str) -> str:
    """How the rates of a study were chosen: of how many seeds, where in the grid, how clearly."""
    found = e.choices(name)
    if not found:
        return "No learning rates were searched for these rows."
    try:
        rows = set(e.rows(name))
    except Absent:
        rows = set(found)
    most = max(choice.seeds for choice in found.values())
    said = [f"Chosen on {most} seed{'s' * (most > 1)}"]
    if few := [row for row, choice in found.items() if choice.seeds < most]:
        said[0] += f" (on fewer: {', '.join(few)})"
    ends = [f"{row} (the {c.border}, {c.rate:g})" for row, c in found.items() if c.border]
    said.append(f"at the border of the grid: {', '.join(ends) or 'none'}")
    bound = MEASURES["f1" if e.rate_metric(name) == "error" else "nll"].bound
    close = [f"{row} ({c.margin:.3f})" for row, c in found.items() if c.margin < bound]
    said.append(f"by less than {bound:g}: {', '.join(close) or 'none'}")
    if missing := sorted(rows - set(found)):
        said.append(f"not searched: {', '.join(missing)}")
    return "; ".join(said) + "."


def curves(e: Evidence, name: str) -> str:
    """What each row of the laboratory reached, means over seeds with 95 % intervals."""
    levels = ("high", "low")
    heads = ["", "endpoint", *(f"last NLL {x}" for x in levels), *(f"exact {x}, %" for x in levels)]
    lines = [bars([*heads, "seeds", "CPU s a run"]), "|---" + "|---:" * 7 + "|"]
    shown = seen.complete(e, name)
    for row in shown:
        by_level = [list(seen.reached(e, name, row, level).values()) for level in levels]
        every = list(seen.reached(e, name, row).values())
        cells = [_mean([s.endpoint for s in every], 3)]
        cells += [_mean([s.last for s in own], 3) for own in by_level]
        cells += [_mean([s.exact for s in own], 1) for own in by_level]
        seconds = statistics.fmean(s.seconds for s in every)
        lines.append(bars([row, *cells, str(len(every)), f"{seconds:.0f}"]))
    hours = (
        f"{seen.hours(e, name):.1f} CPU hours of training; a row of several models has their sum."
    )
    if begun := [row for row in e.rows(name) if row not in shown]:
        hours += f" Begun, with fewer than two seeds: {', '.join(begun)}."
    return "\n".join([*lines, "", hours])


def _mean(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) < 3:
        return mean
    half = half_width(values)
    return f"{mean} ±{half:.{digits}f}"


def pilot(e: Evidence, name: str) -> str:
    """How much methods differ by seed in a pilot, and what so many seeds will see."""
    bound = MEASURES["curve"].bound
    heads = ["", "deviation", "pairs", "seen with 10 seeds", "with 20", f"seeds for {bound:g}"]
    lines = [bars(heads), "|---" + "|---:" * 5 + "|"]
    for row in e.rows(name)[1:]:
        deviation, pairs = seen.pilot(e, name, row)
        with_n = [f"{detectable(deviation, n):.2f}" for n in (10, 20)]
        need = str(seeds_for(deviation, bound))
        lines.append(bars([row, f"{deviation:.3f}", str(pairs), *with_n, need]))
    return "\n".join(lines)


def borders(e: Evidence) -> str:
    """How many of the rates that were searched lie at the border of their grid."""
    found: list[tuple[str, Choice]] = []
    for name in e.studies():
        found += [(f"{row} of {name}", choice) for row, choice in e.choices(name).items()]
    one = sum(choice.seeds == 1 for _, choice in found)
    many = "all" if one == len(found) else str(one)
    ends = [row for row, choice in found if choice.border]
    return (
        f"Of {len(found)} learning rates that were searched for, {many} were chosen on one seed "
        f"and {len(ends)} lie at the border of their grid ({', '.join(ends)})"
    )


def hours(e: Evidence) -> str:
    """CPU time of every study's training, and of the search for its learning rates."""
    heads = ["study", "runs", "CPU hours", "runs for rates", "CPU hours"]
    lines, total, without = [bars(heads), "|---" + "|---:" * 4 + "|"], 0.0, []
    for name in e.studies():
        cells, known = [name], False
        for part in ("", "-rates"):
            runs, seconds = e.seconds(name, part) if e.has(name, part) else (0, 0.0)
            known |= runs > 0
            total += seconds / 3600
            cells += [str(runs), f"{seconds / 3600:.1f}"] if runs else ["", ""]
        if known:
            lines.append(bars(cells))
        else:
            without.append(name)
    said = f"Together {total:.1f}. Without a record of their own time: {', '.join(without)}."
    return "\n".join([*lines, "", said])


def bounds() -> str:
    """The difference of each measure that is called none, and why."""
    lines = [bars(["measure", "bound", "which is"]), "|---|---:|---|"]
    named = [m for m in MEASURES.values() if m.why]
    return "\n".join([*lines, *(bars([_name(m), f"{m.bound:g}", m.why]) for m in named)])


def power(figures: Iterable[tuple[str, Figure]]) -> str:
    """By study and measure: the smallest difference that is seen, by number of seeds."""
    deviations: dict[tuple[str, str], list[float]] = {}
    for study, figure in figures:
        for f in (figure, figure.beside):
            if f is not None and f.paired:
                deviations.setdefault((study, f.kind), []).append(f.deviation)
    heads = ["study", "measure", *(f"{n} seeds" for n in SEEDS), "bound", "seeds for the bound"]
    lines = [bars(heads), "|---|---" + "|---:" * (len(SEEDS) + 2) + "|"]
    for (study, kind), own in deviations.items():
        measure, middle = MEASURES[kind], statistics.median(own)
        seen = [f"{detectable(middle, n):.{max(2, measure.digits)}f}" for n in SEEDS]
        need = str(seeds_for(middle, measure.bound))
        lines.append(bars([study, _name(measure), *seen, f"{measure.bound:g}", need]))
    return "\n".join(lines)


def _name(measure: Measure) -> str:
    return measure.words.removesuffix(" by")
