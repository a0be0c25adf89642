"""Joins runs that differ only in their seed: the means of their measurements and scores."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradvac.experiment.view.geometry import Geometry, Subject
from gradvac.experiment.view.run_view import RunView
from gradvac.geometry.similarity import EditCounts


def over_seeds(subjects: Sequence[Subject]) -> list[Subject]:
    """Join the runs whose recipes differ only in the seed; others stay unchanged.

    A joined subject has the mean over seeds of losses at the steps that all have, of scores, and of
    everything computed from Gram matrices; edits are summed. Its ``seeds`` are the runs joined.
    """
    alike: dict[str, list[Subject]] = {}
    for subject in subjects:
        recipe = subject.run.recipe.model_dump(exclude={"seed"})
        alike.setdefault(f"{recipe} {sorted(subject.run.tasks)}", []).append(subject)
    joined = []
    for group in alike.values():
        if len(group) == 1 or len({s.run.recipe.seed for s in group}) < len(group):
            joined += group
        else:
            joined.append(_joined(sorted(group, key=lambda s: s.run.recipe.seed)))
    return joined


def of_seed(subject: Subject, seed: int) -> Subject | None:
    """One seed of a joined subject, under the joint name; a single run counts for every seed."""
    if not subject.seeds:
        return subject
    found = next((s for s in subject.seeds if s.run.recipe.seed == seed), None)
    return found and Subject(replace(found.run, name=subject.run.name), found.geometry)


def recorded(subject: Subject) -> Subject:
    """The subject with its recorded geometry instead of the measured one, if it has both."""
    if subject.seeds:
        return _joined([recorded(s) for s in subject.seeds])
    found = Geometry.recorded_of(subject.run.folder, subject.run.recipe)
    return replace(subject, geometry=found or subject.geometry)


def _joined(group: Sequence[Subject]) -> Subject:
    views = [s.run for s in group]
    run = replace(
        views[0],
        name=_name(views),
        train=_mean_lines([v.train for v in views]),
        valid=_mean_lines([v.valid for v in views]),
        scores=_mean_scores([v.scores for v in views]),
        translations={},
        edits=_sum_of_edits([v.edits for v in views]),
    )
    members, geometry = _one_kind(group)
    return Subject(run, geometry, tuple(members))


def _name(views: Sequence[RunView]) -> str:
    """The leading parts that their names share; if none, the parent folder of the first."""
    parts = [view.name.split("/") for view in views]
    n = 0
    while all(len(p) > n and p[n] == parts[0][n] for p in parts):
        n += 1
    return "/".join(parts[0][:n]) or views[0].folder.parent.name


def _one_kind(group: Sequence[Subject]) -> tuple[list[Subject], Geometry | None]:
    """The group with geometry of one kind, and the mean of that geometry.

    Measured if all seeds have that, else recorded if all have that, else of the measured seeds.
    """
    kinds = [list(group), [recorded(s) for s in group]]
    all_measured, all_recorded = (
        all(s.geometry and (s.geometry.measured is None) == n for s in kind)
        for n, kind in enumerate(kinds)
    )
    members = kinds[1] if all_recorded and not all_measured else kinds[0]
    if not all_measured and not all_recorded:
        kept = lambda g: g if g and g.measured else None
        members = [replace(s, geometry=kept(s.geometry)) for s in members]
    there = tuple(s.geometry for s in members if s.geometry is not None)
    if len(there) < 2:
        return members, there[0] if there else None
    first = min(there, key=lambda g: len(g.granularities))  # others may have finer granularities
    steps = sorted({step for g in there for step in g.steps})
    return members, replace(first, steps=tuple(steps), seeds=there)


def _mean_lines(logs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The log lines of steps that all logs have; numbers and mappings of numbers are averaged."""
    by_step = [{line["step"]: line for line in log} for log in logs]
    steps = [s for s in by_step[0] if all(s in lines for lines in by_step)]
    return [_mean_of([lines[s] for lines in by_step]) for s in steps]


def _mean_of(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys that all trees have, with numbers averaged; counts stay integers."""
    out: dict[str, Any] = {}
    for key, first in trees[0].items():
        values = [tree.get(key) for tree in trees]
        if all(isinstance(v, dict) for v in values):
            out[key] = _mean_of(values)  # pyright: ignore[reportArgumentType]
        elif all(isinstance(v, int) for v in values):
            out[key] = round(statistics.fmean(values))  # pyright: ignore[reportArgumentType]
        elif all(isinstance(v, int | float) for v in values):
            out[key] = statistics.fmean(values)  # pyright: ignore[reportArgumentType]
        elif all(v == first for v in values):
            out[key] = first
    return out


def _mean_scores(scores: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    found = [s for s in scores if s is not None]
    return _mean_of(found) if len(found) == len(scores) else None


def _sum_of_edits(counts: Sequence[EditCounts | None]) -> EditCounts | None:
    """Sums at the steps that all have, if all have the same groups."""
    found = [c for c in counts if c is not None]
    if len(found) < len(counts) or len({c.groups for c in found}) > 1:
        return None
    steps = [s for s in found[0].steps if all(s in c.steps for c in found)]
    total = lambda name: np.sum(
        [getattr(c, name)[[c.steps.index(s) for s in steps]] for c in found], axis=0
    )
    parts = [total(name) for name in ("edits", "pcgrad", "comparisons")]
    return EditCounts(tuple(steps), found[0].groups, *parts)
