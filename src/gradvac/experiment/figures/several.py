"""Figures that compare runs: with bilingual ones, of other sizes, of other batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from gradvac.experiment.figures.base import LINES, Picture, line_rows
from gradvac.experiment.figures.similarity import clustered
from gradvac.experiment.figures.training import losses
from gradvac.experiment.geometry_view import Missing, Subject
from gradvac.experiment.run_view import FROM_ENGLISH, TO_ENGLISH, RunView
from gradvac.geometry.panels import line_panels, scatter, strips
from gradvac.geometry.statistics import correlation


def quality_and_similarity(subjects: Sequence[Subject]) -> list[Picture]:
    """GradVac figure 2b: BLEU of one direction in models that differ in their other one."""
    pairs = [s for s in subjects if len(s.tasks) == 2]
    shared: dict[str, list[Subject]] = {}
    for subject in pairs:
        for task in subject.tasks:
            shared.setdefault(task.name, []).append(subject)
    name, members = max(shared.items(), key=lambda item: len(item[1]), default=("", []))
    scored = [s for s in members if _bleu(s.run, name) is not None and s.geometry is not None]
    if len(scored) < 3:
        raise Missing(
            "three or more runs of two directions that share one, scored and measured: "
            f"there are {len(scored)}"
        )
    partners = [next(t.partner for t in s.tasks if t.name != name) for s in scored]
    x = [float(s.mean_of("whole_model", "whole_model", s.tasks)[0, 1]) for s in scored]
    y = [float(_bleu(s.run, name) or 0.0) for s in scored]
    found = correlation(np.array(x), np.array(y))
    title = f"r = {found.r:.2f}, 95 % of resamples {found.low:.2f} to {found.high:.2f}"
    figure = scatter(partners, x, y, f"cosine of {name} and its partner", f"BLEU, {name}", title)
    caption = (
        f"BLEU of {name} in models trained on it and one other direction, against the mean cosine "
        f"of the two gradients. {found.n} models: {title}, permutation p = {found.p:.3f}."
    )
    rows = list(zip(partners, x, y, strict=True))
    header = ("partner", "cosine", "bleu")
    return [Picture("gradvac-fig-02b-quality", caption, figure, header, rows)]


def over_bilingual(subjects: Sequence[Subject]) -> list[Picture]:
    """GradVac figure 6: multilingual less bilingual, direction by direction, by data size."""
    alone: dict[str, float] = {}
    several: list[Subject] = []
    for subject in subjects:
        if len({t.partner for t in subject.tasks}) == 1:
            for task in subject.tasks:
                if (score := _bleu(subject.run, task.name)) is not None:
                    alone[task.name] = score
        elif subject.run.scores is not None:
            several.append(subject)
    tasks = {t.name: t for s in several for t in s.tasks if t.name in alone}
    if not tasks:
        raise Missing(
            "a multilingual run and bilingual ones of its directions, all scored by gradvac "
            f"evaluate: there are {len(several)} and {len(alone)}"
        )
    order = sorted(tasks, key=lambda n: -(tasks[n].pairs or 0))
    lines, rows = [], []
    for number, subject in enumerate(several):
        found = [_bleu(subject.run, n) for n in order]
        gains = [
            f - alone[n] if f is not None else np.nan for n, f in zip(order, found, strict=True)
        ]
        lines.append((subject.run.name, number, gains))
        rows += [
            (subject.run.name, n, tasks[n].pairs, f, alone[n], g)
            for n, f, g in zip(order, found, gains, strict=True)
        ]
    figure = strips([tasks[n].short for n in order], lines, "BLEU over the bilingual model")
    caption = (
        "BLEU of each multilingual model less that of the bilingual model of the direction; "
        "directions with the most training pairs on the left."
    )
    header = ("run", "direction", "pairs", "bleu", "bilingual_bleu", "difference")
    return [Picture("gradvac-fig-06-over-bilingual", caption, figure, header, rows)]


def _bleu(run: RunView, task: str) -> float | None:
    return ((run.scores or {}).get("directions", {}).get(task) or {}).get("bleu")


def smaller_model(subjects: Sequence[Subject]) -> list[Picture]:
    """GradVac figure 9: figure 8 of the smallest of models that differ in size."""
    draw = clustered("gradvac-fig-09-smaller-model-any-en", "whole_model", TO_ENGLISH)
    return _smallest(subjects, lambda s: s.parameters, "parameters", draw)


def smaller_batches(subjects: Sequence[Subject]) -> list[Picture]:
    """GradVac figure 11: figure 10 of the run with the smallest batches."""
    draw = clustered("gradvac-fig-11-smaller-batches-en-any", "decoder", FROM_ENGLISH)
    return _smallest(subjects, lambda s: s.batch, "target tokens a batch", draw)


def _smallest(
    subjects: Sequence[Subject],
    size: Callable[[Subject], int],
    unit: str,
    draw: Callable[[Subject], list[Picture]],
) -> list[Picture]:
    """The figure of the smallest of subjects of different sizes."""
    sizes = _sizes(subjects, size, unit)
    small = min(sizes, key=lambda item: item[1])
    largest = max(n for _, n in sizes)
    words = f"{small[0].run.name}, with {small[1]:,} of {largest:,} {unit}: "
    return [Picture(**{**vars(p), "caption": words + p.caption}) for p in draw(small[0])]


def _sizes(
    subjects: Sequence[Subject], size: Callable[[Subject], int], unit: str
) -> list[tuple[Subject, int]]:
    """The multilingual subjects whose size is known; Missing if there are not two sizes."""
    found: list[tuple[Subject, int]] = []
    for subject in subjects:
        if len({t.partner for t in subject.tasks}) > 1:
            with suppress(Missing):
                found.append((subject, size(subject)))
    if len(found) < 2:
        raise Missing(f"a second multilingual run, with other {unit}")
    if len({n for _, n in found}) < 2:
        raise Missing(f"runs with different {unit}: all have {found[0][1]:,}")
    return found


def batch_sizes(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 8: losses of runs with batches of different size."""
    return _by_size(subjects, lambda s: s.batch, "target tokens a batch", "cats-fig-08-batch-sizes")


def model_sizes(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 9: losses of models of different size."""
    return _by_size(subjects, lambda s: s.parameters, "parameters", "cats-fig-09-model-sizes")


def _by_size(
    subjects: Sequence[Subject], size: Callable[[Subject], int], unit: str, name: str
) -> list[Picture]:
    """Train and validation NLL of runs that differ in size."""
    sizes = _sizes(subjects, size, unit)
    panels, x = losses([s for s, _ in sizes])
    said = ", ".join(f"{s.run.name} {n:,}" for s, n in sizes)
    caption = (
        "Train (dashed) and validation NLL per target token, mean over the directions of a "
        f"resource level. {unit[0].upper()}{unit[1:]}: {said}."
    )
    return [Picture(name, caption, line_panels(panels, x), LINES, line_rows(panels))]
