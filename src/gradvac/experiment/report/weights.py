"""Section of a report on the weights of tasks at each step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from gradvac.experiment.report.markup import Pictures, element, missing, series
from gradvac.experiment.view.run_view import RunView, TaskView
from gradvac.geometry.plots import PALETTE, Line, curves, dots

MOST_LINES = len(PALETTE)  # with more, colours would begin again
CONSTANT = 1e-9


def weights_section(views: Sequence[RunView], tasks: Sequence[TaskView], pictures: Pictures) -> str:
    """A curve for every task of each run whose method changes weights; per level if many."""
    drawn, unsaid = "", ""
    for n, view in enumerate(views):
        logged = {p["step"]: p["task_weights"] for p in view.train if p.get("task_weights")}
        values = [w for each in logged.values() for w in each.values()]
        if not values:
            continue
        if max(values) - min(values) < CONSTANT:
            unsaid += missing(f"{view.name}: every task had the weight {values[0]:g} at all steps.")
            continue
        names = {t.name: t.short for t in tasks if any(t.name in each for each in logged.values())}
        groups = {short: [name] for name, short in names.items()}
        caption = "Weight of the gradient of each task, mean over the parameter groups."
        if len(groups) > MOST_LINES:
            levels = dict.fromkeys(t.level for t in tasks if t.name in names)
            groups = {v: [t.name for t in tasks if t.level == v] for v in levels}
            caption = "Weight of a task's gradient, mean over parameter groups, tasks of a level."
        figure = curves(_lines(logged, groups), "weight")
        heading = element("h3", series(view.name, n)) if len(views) > 1 else ""
        drawn += element("div", heading + pictures(figure, f"{caption} {view.method}."))
        if len(names) > MOST_LINES:
            means = [_mean(logged, name) for name in names]
            figure = dots(list(names.values()), {view.name: (n, means)}, "mean weight")
            drawn += element("div", pictures(figure, f"Mean over training. {view.method}."))
    if not drawn and not unsaid:
        return missing("No run has task weights in its log: joint training gives all the same.")
    return (element("div", drawn, class_="grid") if drawn else "") + unsaid


def _mean(logged: Mapping[int, Mapping[str, float]], task: str) -> float:
    return statistics.fmean(each[task] for each in logged.values() if task in each)


def _lines(
    logged: Mapping[int, Mapping[str, float]], groups: Mapping[str, Sequence[str]]
) -> list[Line]:
    """One line for each group of tasks, over the steps that have any of its tasks."""
    lines = []
    for n, (label, names) in enumerate(groups.items()):
        points = {
            step: statistics.fmean(each[name] for name in names if name in each)
            for step, each in logged.items()
            if any(name in each for name in names)
        }
        lines.append(Line(label, list(points), list(points.values()), n))
    return lines
