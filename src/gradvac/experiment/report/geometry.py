"""Sections of a report on loss geometry: similarity of gradients, conflicts, edits by methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from gradvac.experiment.report.explorer import explorer
from gradvac.experiment.report.markup import (
    Pictures,
    element,
    missing,
    paragraph,
    series,
    table,
)
from gradvac.experiment.view.geometry import Geometry, Subject
from gradvac.experiment.view.numbers import chance, findings, in_words, words
from gradvac.experiment.view.run_view import RunView, TaskView
from gradvac.experiment.view.seeds import recorded
from gradvac.geometry.heatmaps import tree
from gradvac.geometry.plots import Line, curves, dots
from gradvac.geometry.similarity import ConflictCounts, cluster, conflict_counts, contrast
from gradvac.tables import decimal

RECORDED, MEASURED = "recorded while training", "measured on the same sentences"


def similarity_section(
    subjects: Sequence[Subject],
    tasks: Sequence[TaskView],
    pictures: Pictures,
    *,
    tests: bool = True,
) -> str:
    """Heat map, tree and tests of each run or mean of seeds, and the profile over groups.

    ``tests=False`` omits the tests: they take seconds, and the numbers of a run in progress change.
    """
    markup, unsaid, profiles = "", "", {}
    groups: tuple[str, ...] = ()
    for n, subject in enumerate(subjects):
        view, sources = subject.run, _sources(subject)
        if not sources:
            text = f"{view.name} has no record of gradients"
            unsaid += missing(
                f"{text}: joint training never sees the gradient of a single task. gradvac "
                "geometry measures them at its checkpoints."
                if view.recipe.method.name == "joint"
                else f"{text} of two or more tasks yet."
            )
            continue
        markup += element("h3", series(view.name, n)) if len(subjects) > 1 else ""
        first = next(iter(sources.values()))
        seen = {t for g in sources.values() for t in g.mean("whole_model").tasks}
        shown = [t for t in tasks if t.name in seen]
        markup += _one_run(sources, first, shown, n, pictures)
        markup += _numbers(subject) if tests else ""
        layers = first.mean("all_layer" if "all_layer" in first.granularities else _finest(first))
        groups = groups or layers.groups
        if layers.groups == groups:
            profiles[view.name] = (n, layers.by_group().tolist())
    if profiles and len(groups) > 1:
        figure = dots(groups, profiles, "mean cosine of two tasks")
        markup += element("h3", "Through the model")
        markup += pictures(figure, "Mean cosine over all pairs of tasks in each parameter group.")
    return markup + unsaid


def _sources(subject: Subject) -> dict[str, Geometry]:
    """The available geometries of a run or of its seeds, by name, the best first."""
    kept = recorded(subject).geometry
    found = {}
    if subject.geometry is not None and subject.geometry.measured is not None:
        found[MEASURED] = subject.geometry
    if kept is not None and kept.measured is None:
        found[RECORDED] = kept
    return found


def _finest(geometry: Geometry) -> str:
    return next(iter(geometry.granularities))


def _one_run(
    sources: dict[str, Geometry],
    first: Geometry,
    tasks: Sequence[TaskView],
    run: int,
    pictures: Pictures,
) -> str:
    known = [t for t in tasks if t.name in first.mean("whole_model").tasks]
    mean = first.mean("whole_model").ordered([t.name for t in known]).whole_model
    says = paragraph(_families_in_words(mean, known))
    maps = explorer(sources, tasks, run, pictures)
    clustering = cluster(mean)
    caption = "Tasks clustered by the mean cosine of the whole model (average linkage)."
    if not math.isnan(clustering.cophenetic):
        caption += f" Cophenetic correlation {clustering.cophenetic:.2f}; 1 is a perfect tree."
    grown = pictures(tree(clustering, [t.short for t in known]), caption)
    return says + element("div", maps + grown, class_="row")


def _families_in_words(mean: np.ndarray, tasks: Sequence[TaskView]) -> str:
    """Mean cosine within and across families, for each side of English, and between the sides."""
    parts = []
    for side in dict.fromkeys(t.side for t in tasks):
        rows = [n for n, t in enumerate(tasks) if t.side == side]
        same, other = contrast(mean[np.ix_(rows, rows)], [tasks[n].family for n in rows])
        where = f"{side}: " if side else ""
        named = [(same, "within a family"), (other, "across families")]
        said = [f"{_signed(value)} {what}" for value, what in named if not math.isnan(value)]
        parts += [where + ", ".join(said)] if said else []
    between = contrast(mean, [t.side for t in tasks])[1]
    if not math.isnan(between):
        parts.append(f"{_signed(between)} between the two sides")
    return f"Mean cosine of two tasks, whole model. {'; '.join(parts)}."


def _signed(value: float) -> str:
    return decimal(value, 2).replace("-", "\N{MINUS SIGN}")


def _numbers(subject: Subject) -> str:
    """Tests of what explains the similarity, null results included, and why others are missing."""
    found, notes = findings(subject)
    unsaid = "".join(missing(note) for note in notes)
    if not found:
        return unsaid
    names = ("Where", "Is it about \N{HORIZONTAL ELLIPSIS}", "r", "p", "n", "Result")
    kinds = (None, None, "number", "number", "number", None)
    head = "".join(
        element("th", name, scope="col", class_=kind)
        for name, kind in zip(names, kinds, strict=True)
    )
    body = [
        element("th", escape(f"{f.side} {f.part.replace('_', ' ')}"), scope="row")
        + element("td", escape(f.question), class_="words")
        + element("td", escape(in_words(f)), class_="number")
        + element("td", escape(chance(f)), class_="number")
        + element("td", f.count, class_="number")
        + element("td", escape(f.verdict))
        for f in found
    ]
    summary = "What the similarity is about"
    if subject.seeds and subject.geometry:
        seeds = len(subject.geometry.seeds) or 1
        source = MEASURED if subject.geometry.measured else RECORDED
        summary += f" (mean of {seeds} seeds of {subject.run.name}, {source})"
    summary += ": tests, with their null results"
    summary = element("summary", escape(summary))
    return element("details", summary + table([head], body, words(found)) + unsaid)


def conflicts_section(subjects: Sequence[Subject], pictures: Pictures) -> str:
    """How many pairs of tasks had a negative cosine, over training and by group."""
    markup, lines, shares = "", [], {}
    groups: tuple[str, ...] = ()
    for n, subject in enumerate(subjects):
        view, sources = subject.run, _sources(subject)
        if not sources:
            continue
        name, geometry = next(iter(sources.items()))
        layer = "all_layer" if "all_layer" in geometry.granularities else _finest(geometry)
        counts = _conflicts(geometry, layer)
        if counts is None or not counts.pairs.sum():
            continue
        total, all_ = int(counts.conflicts.sum()), int(counts.pairs.sum())
        markup += paragraph(
            f"{view.name}, {name}{_seeds_in_words(len(geometry.seeds))}: in "
            f"{len(counts.steps):,} steps and {len(counts.groups)} parameter groups, {total:,} of "
            f"{all_:,} pairs of task gradients were in conflict (a negative cosine): "
            f"{total / all_:.1%}."
        )
        share = 100 * counts.conflicts.sum(1) / np.maximum(1, counts.pairs.sum(1))
        lines.append(Line(view.name, counts.steps, share.tolist(), n))
        each = 100 * counts.conflicts.sum(0) / np.maximum(1, counts.pairs.sum(0))
        groups = groups or counts.groups
        if counts.groups == groups:
            shares[view.name] = (n, each.tolist())
    if not lines:
        return missing("No run has gradients of two or more tasks on record.")
    figures = pictures(curves(lines, "pairs in conflict, %", zero=True), "Conflicts, step by step.")
    if len(groups) > 1:
        figure = dots(groups, shares, "pairs in conflict, %")
        figures += pictures(figure, "Conflicts in each parameter group, over all steps.")
    return markup + element("div", figures, class_="grid")


def _conflicts(geometry: Geometry, granularity: str) -> ConflictCounts | None:
    """The counts of a run; of several seeds their sum, at the steps that all have."""
    each = [conflict_counts(g.frames(granularity)) for g in geometry.seeds or (geometry,)]
    known = [c for c in each if c is not None]
    if len(known) < 2 or len({c.groups for c in known}) > 1:
        return known[0] if known else None
    steps = [s for s in known[0].steps if all(s in c.steps for c in known)]
    rows = [[c.steps.index(s) for s in steps] for c in known]
    both = list(zip(known, rows, strict=True))
    conflicts = np.sum([c.conflicts[row] for c, row in both], axis=0)
    pairs = np.sum([c.pairs[row] for c, row in both], axis=0)
    return ConflictCounts(tuple(steps), known[0].groups, conflicts, pairs)


def _seeds_in_words(count: int) -> str:
    return f", {count} seeds together" if count else ""


def edits_section(subjects: Sequence[Subject], pictures: Pictures) -> str:
    """How many pairs the method edited, with PCGrad's count, in words and over training."""
    markup, lines = "", []
    for n, subject in enumerate(subjects):
        view = subject.run
        counts = view.edits
        if counts is None or not np.nansum(counts.comparisons):
            continue
        markup += paragraph(edits_in_words(view, len(subject.seeds)))
        lines.append(Line(view.name, counts.steps, counts.edits.sum(1).tolist(), n))
        counted = ~np.isnan(counts.pcgrad.sum(1))
        if view.recipe.method.name != "pcgrad" and counted.any():
            steps = [s for s, yes in zip(counts.steps, counted, strict=True) if yes]
            pcgrad = counts.pcgrad[counted].sum(1).tolist()
            lines.append(Line(f"PCGrad, gradients of {view.name}", steps, pcgrad, n, dashed=True))
    if not lines:
        return missing("No run edited gradients on record.")
    figure = curves(lines, "ordered pairs edited per step", zero=True)
    return markup + pictures(figure, "Edits in all parameter groups together, step by step.")


def edits_in_words(view: RunView, seeds: int = 0) -> str:
    """What a run's method edited and what PCGrad would have edited, in one or two sentences.

    ``seeds``: how many runs the counts are the sum of, 0 for one.
    """
    counts = view.edits
    assert counts is not None
    compared, made = (int(np.nansum(a)) for a in (counts.comparisons, counts.edits))
    words = (
        f"{view.name}{_seeds_in_words(seeds)}: in {len(counts.steps):,} recorded steps and "
        f"{len(counts.groups)} parameter groups, {view.method} compared {compared:,} "
        f"ordered pairs of task gradients and edited {made:,} of them ({made / compared:.1%})."
    )
    if view.recipe.method.name == "pcgrad":
        return words
    if np.isnan(counts.pcgrad).any():
        return words + " PCGrad's edits were not counted."
    pcgrad = int(counts.pcgrad.sum())
    words += (
        f" PCGrad, which edits only pairs in conflict, would have edited {pcgrad:,} on the same "
        f"gradients ({pcgrad / compared:.1%})."
    )
    return words + (f" That is {made / pcgrad:.1f} edits to one." if pcgrad else "")
