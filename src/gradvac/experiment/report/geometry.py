"""Sections of a report on loss geometry: similarity of gradients, and edits made to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from gradvac.experiment.report.markup import Pictures, element, missing, paragraph, series
from gradvac.experiment.report.runs import RunView, TaskView
from gradvac.geometry.heatmaps import Scale, heatmap, tree
from gradvac.geometry.plots import Line, curves, dots
from gradvac.geometry.similarity import Similarity, cluster, contrast


def similarity_section(
    views: Sequence[RunView], tasks: Sequence[TaskView], pictures: Pictures
) -> str:
    """Heat map by group, tree and family contrast of each run, and the profile over groups."""
    markup, unsaid, profiles = "", "", {}
    groups: tuple[str, ...] = ()
    for n, view in enumerate(views):
        if view.similarity is None or len(view.similarity.tasks) < 2:
            text = f"{view.name} has no record of gradients"
            unsaid += missing(
                f"{text}: joint training never sees the gradient of a single task."
                if view.recipe.method.name == "joint"
                else f"{text} of two or more tasks yet."
            )
            continue
        markup += element("h3", series(view.name, n)) if len(views) > 1 else ""
        similarity = view.similarity.ordered([t.name for t in tasks])
        known = {t.name: t for t in tasks}
        markup += _one_run(similarity, [known[name] for name in similarity.tasks], n, pictures)
        groups = groups or similarity.groups
        if similarity.groups == groups:
            profiles[view.name] = (n, similarity.by_group().tolist())
    if profiles and len(groups) > 1:
        figure = dots(groups, profiles, "mean cosine of two tasks")
        markup += element("h3", "Through the model")
        markup += pictures(figure, "Mean cosine over all pairs of tasks in each parameter group.")
    return markup + unsaid


def _one_run(s: Similarity, tasks: Sequence[TaskView], run: int, pictures: Pictures) -> str:
    labels, families = [t.short for t in tasks], [t.family for t in tasks]
    mean = s.mean()
    maps = {"Mean of all groups": mean, "Whole model as one vector": s.whole_model}
    maps |= dict(zip(s.groups, s.cosine, strict=True)) if len(s.groups) > 1 else {}
    scale = Scale.of(np.stack(list(maps.values())))
    key = "blue is aligned, red in conflict" if scale.low < 0 else "darker is more aligned"
    figures = [
        pictures(
            heatmap(values, labels, families, scale),
            f"{name}: cosine of the gradients of two tasks, mean over {_steps(s.steps)}. Families "
            f"are bracketed; {key}; a stroke marks tasks that never met.",
            wide=True,
            hidden=n > 0,
        )
        for n, (name, values) in enumerate(maps.items())
    ]
    options = "".join(element("option", escape(name)) for name in maps)
    select = element("select", options, id=f"group-{run}")
    label = element("label", f"Parameter group {select}", hidden=True, class_="choose")
    words = paragraph(_families_in_words(mean, tasks))
    maps_box = element("div", label + "".join(figures), class_="choices")
    clustering = cluster(mean)
    caption = "Tasks clustered by the mean similarity (average linkage)."
    if not math.isnan(clustering.cophenetic):
        caption += f" Cophenetic correlation {clustering.cophenetic:.2f}; 1 is a perfect tree."
    grown = pictures(tree(clustering, labels), caption)
    return words + element("div", maps_box + grown, class_="row")


def _steps(steps: Sequence[int]) -> str:
    if len(steps) == 1:
        return f"the one recorded step ({steps[0]})"
    return f"{len(steps):,} recorded steps ({steps[0]:,} to {steps[-1]:,})"


def _families_in_words(mean: np.ndarray, tasks: Sequence[TaskView]) -> str:
    """How close tasks are within a family and across, side by side of English, and the sides."""
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
    return f"Mean cosine of two tasks. {'; '.join(parts)}."


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def edits_section(views: Sequence[RunView], pictures: Pictures) -> str:
    """How many pairs the method edited beside PCGrad's count, in words and over training."""
    markup, lines = "", []
    for n, view in enumerate(views):
        counts = view.edits
        if counts is None or not np.nansum(counts.comparisons):
            continue
        markup += paragraph(edits_in_words(view))
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


def edits_in_words(view: RunView) -> str:
    """What a run's method edited and what PCGrad would have, as a sentence or two."""
    counts = view.edits
    assert counts is not None
    compared, made = (int(np.nansum(a)) for a in (counts.comparisons, counts.edits))
    words = (
        f"{view.name}: in {len(counts.steps):,} recorded steps and {len(counts.groups)} parameter "
        f"groups, {view.method} compared {compared:,} ordered pairs of task gradients and edited "
        f"{made:,} of them ({made / compared:.1%})."
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
