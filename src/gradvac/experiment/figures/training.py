"""Figures of training: losses by resource level, edits, curvature, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradvac.experiment.figures.base import LINES, Picture, line_rows
from gradvac.experiment.training.measuring import TOTAL, curvature_lines
from gradvac.experiment.view.geometry import Missing, Subject
from gradvac.geometry.panels import Panel, bars, line_panels
from gradvac.geometry.plots import Line
from gradvac.geometry.record import cosine
from gradvac.geometry.similarity import between

LEVELS = {"low": "low resource", "high": "high resource"}
COLOURS = {"high": 0, "low": 1, "medium": 2, TOTAL: 3}


def active_edits(subject: Subject) -> list[Picture]:
    """GradVac figure 3: pairs edited, by PCGrad on the same gradients and by GradVac."""
    run = subject.run
    if run.recipe.method.name != "gradvac" or run.edits is None:
        raise Missing("a run of GradVac with a record")
    counts = run.edits
    compared = counts.comparisons.sum(1)
    known = (compared > 0) & ~np.isnan(counts.pcgrad.sum(1))
    if not known.any():
        raise Missing("a record of what PCGrad would have edited")
    steps = np.array(counts.steps)[known].tolist()
    panels, rows = [], []
    for number, (title, made) in enumerate((("PCGrad", counts.pcgrad), ("GradVac", counts.edits))):
        edited = made.sum(1)[known]
        line = Line("", steps, edited.tolist(), number)
        panels.append(Panel([line], "ordered pairs edited", title, zero=True))
        share = 100 * edited / compared[known]
        rows += [(title, *each) for each in zip(steps, share.tolist(), line.y, strict=True)]
    total = [np.nansum(a[known]) for a in (counts.pcgrad, counts.edits, counts.comparisons)]
    caption = (
        f"Ordered pairs of task gradients edited in a step, in all {len(counts.groups)} parameter "
        f"groups: by PCGrad on the same gradients ({total[0] / total[2]:.1%} of the pairs "
        f"compared) and by GradVac ({total[1] / total[2]:.1%})."
    )
    header = ("method", "step", "percent_of_pairs", "pairs")
    return [Picture("gradvac-fig-03-active-edits", caption, line_panels(panels), header, rows)]


def data_sizes(subject: Subject) -> list[Picture]:
    """GradVac figure 7: training pairs per language, on a logarithmic scale."""
    pairs: dict[str, int] = {}
    level: dict[str, str] = {}
    for t in subject.tasks:
        if (t.pairs or 0) > pairs.get(t.partner, 0):
            pairs[t.partner], level[t.partner] = t.pairs or 0, t.level
    if not pairs:
        raise Missing("training pairs in tasks.json")
    names = sorted(pairs, key=lambda code: -pairs[code])
    kinds = [level[n] for n in names]
    figure = bars(names, [pairs[n] for n in names], "training pairs", kinds, log=True)
    rows = [(n, pairs[n], level[n]) for n in names]
    caption = "Training pairs of each language with English, on a logarithmic scale."
    return [
        Picture("gradvac-fig-07-data-sizes", caption, figure, ("language", "pairs", "level"), rows)
    ]


def losses(
    subjects: Sequence[Subject], *, train: bool = True, tokens: bool = False
) -> tuple[list[Panel], str]:
    """Train (dashed) and validation NLL of the low- and high-resource directions of each run.

    ``tokens`` draws against target tokens seen instead of steps. Returns panels and the name of
    their horizontal axis.
    """
    panels = []
    for level, title in LEVELS.items():
        lines = []
        for number, subject in enumerate(subjects):
            own = [t.name for t in subject.tasks if t.level == level]
            place = _tokens_seen(subject) if tokens else {}
            for kind, dashed in (("train", True), ("valid", False)):
                points = _nll(getattr(subject.run, kind), kind, level, own)
                if not points or (dashed and not train):
                    continue
                x = [place.get(step, step) if tokens else step for step, _ in points]
                name = subject.run.name + (", train" if dashed else "")
                band = ([], []) if dashed else _band(subject, [step for step, _ in points], level)
                lines.append(Line(name, x, [y for _, y in points], number, dashed, *band))
        if lines:
            panels.append(Panel(lines, "NLL per target token", title))
    if not panels:
        raise Missing("a training log with low- or high-resource directions")
    return panels, "target tokens seen" if tokens else "step"


def _band(subject: Subject, steps: Sequence[int], level: str) -> tuple[list[float], list[float]]:
    """Lowest and highest validation NLL of the seeds at each step; empty for one run."""
    logs = [dict(_nll(s.run.valid, "valid", level, ())) for s in subject.seeds]
    each = [[log[step] for log in logs] for step in steps] if logs else []
    return [min(values) for values in each], [max(values) for values in each]


def _nll(
    lines: Sequence[Mapping[str, Any]], kind: str, level: str, own: Sequence[str]
) -> list[tuple[int, float]]:
    """(step, mean NLL over the directions of a level) for each logged step."""
    points = []
    for line in lines:
        if kind == "valid":
            value = line.get(f"nll/{level}")
        else:
            found = [line["task_nll"][t] for t in own if t in line.get("task_nll", {})]
            value = sum(found) / len(found) if found else None
        if value is not None:
            points.append((line["step"], value))
    return points


def _tokens_seen(subject: Subject) -> dict[int, int]:
    """Target tokens seen up to a step, at every step of the log."""
    seen, total = {}, 0
    for line in subject.run.train:
        total += line["tokens"]
        seen[line["step"]] = total
    steps = sorted(seen)
    at = [line["step"] for line in subject.run.valid]
    found = np.interp(at, [0, *steps], [0, *(seen[s] for s in steps)])
    return {**seen, **dict(zip(at, (int(n) for n in found), strict=True))}


def seeds_in_words(subjects: Sequence[Subject]) -> str:
    """What bands and bars mean, if any subject is the mean of several seeds."""
    counts = sorted({len(s.seeds) for s in subjects if s.seeds})
    if not counts:
        return ""
    return (
        f" Means of {' or '.join(map(str, counts))} seeds, bands and bars from lowest to highest."
    )


def train_and_validation(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 1: both losses of low- and high-resource directions; over- and underfitting."""
    panels, x = losses(_alike(subjects))
    caption = (
        "Train (dashed; with dropout, each direction as often as it is drawn) and validation NLL "
        "per target token, mean over the directions of a resource level."
        + seeds_in_words(_alike(subjects))
        + _coincident(panels)
    )
    figure = line_panels(panels, x)
    return [Picture("cats-fig-01-train-validation", caption, figure, LINES, line_rows(panels))]


def _alike(subjects: Sequence[Subject]) -> Sequence[Subject]:
    """The largest set of subjects with the same directions and sizes, so comparable losses.

    Excludes bilingual models, which have one level each, unless there are no others.
    """
    groups: dict[object, list[Subject]] = {}
    for subject in [s for s in subjects if len({t.partner for t in s.tasks}) > 1] or subjects:
        recipe, tasks = subject.run.recipe, tuple(t.name for t in subject.tasks)
        key = (tasks, recipe.training.start_from, recipe.shape, subject.batch)
        groups.setdefault(key, []).append(subject)
    return max(groups.values(), key=len)


def _coincident(panels: Sequence[Panel]) -> str:
    """Pairs of curves that overlap: nowhere further apart than the width of a line."""
    reach = np.ptp([y for panel in panels for line in panel.lines for y in line.y])
    found = []
    for panel in panels:
        for n, a in enumerate(panel.lines):
            for b in panel.lines[:n]:
                same = list(a.x) == list(b.x) and a.dashed == b.dashed
                if same and np.abs(np.subtract(a.y, b.y)).max() < reach / 200:
                    found.append(f"{b.name} and {a.name} coincide ({panel.title})")
    return f" {'; '.join(found)}." if found else ""


def methods_compared(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 6: figure 1 with CATS beside sampling alone."""
    names = [s.run.recipe.method.name for s in _alike(subjects)]
    if "cats" not in names or len(set(names)) < 2:
        raise Missing("a run of CATS and one of another method, with the same directions and sizes")
    (picture,) = train_and_validation(subjects)
    return [Picture(**{**vars(picture), "name": "cats-fig-06-methods"})]


def sample_efficiency(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 7: validation NLL against the text seen."""
    if len(_alike(subjects)) < 2:
        raise Missing("a second run to compare with, of the same directions and sizes")
    panels, x = losses(_alike(subjects), train=False, tokens=True)
    caption = "Validation NLL per target token against target tokens seen in training."
    caption += seeds_in_words(_alike(subjects)) + _coincident(panels)
    figure = line_panels(panels, x)
    return [Picture("cats-fig-07-sample-efficiency", caption, figure, LINES, line_rows(panels))]


def curvature_and_similarity(subject: Subject) -> list[Picture]:
    """CATS figure 5: top Hessian eigenvalue, and cosine of high- and low-resource gradients."""
    geometry = subject.at("whole_model")
    levels = {t.name: t.level for t in subject.tasks}
    groups = [[t for t, level in levels.items() if level == wanted] for wanted in ("high", "low")]
    if not all(groups):
        raise Missing("high- and low-resource directions in one run")
    found: dict[str, dict[int, list[float]]] = {}
    for each in geometry.seeds or (geometry,):
        for line in curvature_lines(each.record.folder):
            own = found.setdefault(line["group"], {})
            own.setdefault(line["step"], []).append(line["value"])
    if not found:
        raise Missing("curvature: gradvac geometry RUN --curvature 4 measures it")
    top = [
        _over_steps(name if name == TOTAL else f"{name} resource", COLOURS[name], found[name])
        for name in sorted(found, key=list(COLOURS).index)
    ]
    cosines: dict[int, list[float]] = {}
    for frame in geometry.frames("whole_model"):
        gram = between(frame.gram.sum(0), frame.tasks, groups)
        if gram is not None:
            cosines.setdefault(frame.step, []).append(float(cosine(gram)[0, 1]))
    panels = [
        Panel(top, "top eigenvalue"),
        Panel([_over_steps("cosine of high and low", 4, cosines)], "cosine"),
    ]
    few = geometry.measured.curvature if geometry.measured else "a few"
    caption = (
        "Top: largest eigenvalue of the Hessian of the mean loss of each resource level, and of "
        f"their sum, on {few} sentences of each direction. Bottom: cosine of the gradients of the "
        f"high- and the low-resource directions, {geometry.words}." + seeds_in_words([subject])
    )
    figure = line_panels(panels, stacked=True, same_y=False)
    return [Picture("cats-fig-05-curvature", caption, figure, LINES, line_rows(panels))]


def _over_steps(name: str, number: int, values: Mapping[int, Sequence[float]]) -> Line:
    """Means by step, with the band of the seeds if a step has several values."""
    steps = sorted(values)
    mean = [sum(values[s]) / len(values[s]) for s in steps]
    several = any(len(values[s]) > 1 for s in steps)
    band = [[end(values[s]) for s in steps] for end in (min, max)] if several else ([], [])
    return Line(name, steps, mean, number, False, *band)
