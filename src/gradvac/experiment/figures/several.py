"""Figures that compare runs: multilingual with bilingual, model sizes, batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from gradvac.experiment.figures.base import LINES, PAIRS, Picture, line_rows, pair_rows
from gradvac.experiment.figures.similarity import as_matrix
from gradvac.experiment.figures.training import losses, seeds_in_words
from gradvac.experiment.view.geometry import Missing, Subject
from gradvac.experiment.view.run_view import FROM_ENGLISH, TO_ENGLISH, RunView, TaskView
from gradvac.experiment.view.seeds import of_seed, recorded
from gradvac.geometry.heatmaps import heatmaps
from gradvac.geometry.panels import line_panels, scatter, strips
from gradvac.geometry.similarity import cluster
from gradvac.geometry.statistics import correlation


def quality_and_similarity(subjects: Sequence[Subject]) -> list[Picture]:
    """GradVac figure 2b: BLEU of one direction in models that differ in their other direction."""
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
    title = f"r = {found.r:.2f}, 95 % of resamples {found.low:.2f} to {found.high:.2f}".replace(
        "-", "\N{MINUS SIGN}"
    )
    cosine_of = lambda s: float(s.mean_of("whole_model", "whole_model", s.tasks)[0, 1])
    across = [s.spread(cosine_of) for s in scored]
    up = [s.spread(lambda seed: _bleu(seed.run, name)) for s in scored]
    words = f"cosine of {name} and its partner", f"BLEU, {name}"
    figure = scatter(partners, x, y, *words, title, (across, up))
    caption = (
        f"BLEU of {name} in models trained on it and one other direction, against the mean cosine "
        f"of the two gradients. {found.n} models: {title}, permutation p = {found.p:.3f}."
        + seeds_in_words(scored)
    )
    rows = list(zip(partners, x, y, strict=True))
    header = ("partner", "cosine", "bleu")
    return [Picture("gradvac-fig-02b-quality", caption, figure, header, rows)]


def over_bilingual(subjects: Sequence[Subject]) -> list[Picture]:
    """GradVac figure 6: multilingual minus bilingual score per direction, by data size."""
    alone: dict[str, Subject] = {}
    several: list[Subject] = []
    for subject in subjects:
        scored = [t for t in subject.tasks if _bleu(subject.run, t.name) is not None]
        if len({t.partner for t in subject.tasks}) == 1:
            alone |= {task.name: subject for task in scored}
        elif scored:
            several.append(subject)
    fit = [_with_bilingual(s, alone) for s in several]
    most = max(map(len, fit), default=0)
    several = [s for s, own in zip(several, fit, strict=True) if len(own) == most > 0]
    tasks = {t.name: t for own in fit if len(own) == most for t in own}
    if not tasks:
        raise Missing(
            "a multilingual run and bilingual ones of its directions, of the same model and start, "
            f"all scored by gradvac evaluate: there are {len(fit)} and {len(alone)}"
        )
    bilingual = {name: _bleu(alone[name].run, name) or 0.0 for name in tasks}
    order = sorted(tasks, key=lambda n: -(tasks[n].pairs or 0))
    lines, rows, spread = [], [], []
    for number, subject in enumerate(several):
        gain = lambda seed, n: _gain(seed, alone[n], n)
        spread.append([subject.spread(partial(gain, n=n)) for n in order])
        found = [_bleu(subject.run, n) for n in order]
        gains = [
            f - bilingual[n] if f is not None else np.nan for n, f in zip(order, found, strict=True)
        ]
        lines.append((subject.run.name, number, gains))
        rows += [
            (subject.run.name, n, tasks[n].pairs, f, bilingual[n], g)
            for n, f, g in zip(order, found, gains, strict=True)
        ]
    names = [f"{tasks[n].short}\n{tasks[n].pairs or 0:,}" for n in order]
    figure = strips(names, lines, "BLEU over the bilingual model", joined=False, spread=spread)
    starts = {alone[n].run.recipe.training.start_from for n in order}
    begun = ", ".join(str(start) for start in starts if start)
    caption = (
        "BLEU of each multilingual model less that of the bilingual model of the direction, with "
        "its training pairs; the most on the left."
        + (f" All, the bilingual ones too, go on from {begun}." if begun else "")
        + seeds_in_words(several)
    )
    header = ("run", "direction", "pairs", "bleu", "bilingual_bleu", "difference")
    return [Picture("gradvac-fig-06-over-bilingual", caption, figure, header, rows)]


def _with_bilingual(subject: Subject, alone: Mapping[str, Subject]) -> list[TaskView]:
    """The directions of a run that a bilingual run of the same model and start has scores for."""
    same = lambda a, b: (a.training.start_from, a.model) == (b.training.start_from, b.model)
    return [
        t
        for t in subject.tasks
        if _bleu(subject.run, t.name) is not None
        and t.name in alone
        and same(subject.run.recipe, alone[t.name].run.recipe)
    ]


def _gain(seed: Subject, alone: Subject, task: str) -> float | None:
    """BLEU of one seed of a multilingual model minus that of the same seed of the bilingual one."""
    beside = of_seed(alone, seed.run.recipe.seed)
    own, other = (_bleu(s.run, task) if s else None for s in (seed, beside))
    return None if own is None or other is None else own - other


def _bleu(run: RunView, task: str) -> float | None:
    return ((run.scores or {}).get("directions", {}).get(task) or {}).get("bleu")


def smaller_model(subjects: Sequence[Subject]) -> list[Picture]:
    """GradVac figure 9: figure 8 for the smaller of two model sizes."""
    name = "gradvac-fig-09-smaller-model-any-en"
    return _smaller(subjects, PARAMETERS, name, ("whole_model", "whole_model"), TO_ENGLISH)


def smaller_batches(subjects: Sequence[Subject]) -> list[Picture]:
    """GradVac figure 11: figure 10 for the run with smaller batches."""
    name = "gradvac-fig-11-smaller-batches-en-any"
    return _smaller(subjects, BATCH, name, ("enc_dec", "decoder"), FROM_ENGLISH)


@dataclass(frozen=True)
class _Size:
    """A size in which runs may differ: its value, its unit, and what else must be equal."""

    of: Callable[[Subject], int]
    unit: str
    other: Callable[[Subject], int]


PARAMETERS = _Size(lambda s: s.parameters, "parameters", lambda s: s.batch)
BATCH = _Size(lambda s: s.batch, "target tokens a batch", lambda s: s.parameters)


def _smaller(
    subjects: Sequence[Subject], size: _Size, name: str, part: tuple[str, str], side: str
) -> list[Picture]:
    """The heat map of the smallest beside that of the largest, on one scale.

    Both measured or both recorded, because measured and recorded values are not comparable.
    """
    runs = sorted(_sizes(subjects, size)[0], key=lambda item: item[1])
    ends = [_alike(s, [s for s, _ in runs]) for s, _ in (runs[0], runs[-1])]
    matrices, rows, means, trees = [], [], [], []
    for subject, (_, number) in zip(ends, (runs[0], runs[-1]), strict=True):
        tasks = subject.of_side(side)
        values = subject.mean_of(*part, tasks)
        matrices.append(as_matrix(values, tasks, f"{subject.run.name}: {number:,} {size.unit}"))
        rows += pair_rows(values, tasks, subject.run.name, number)
        trees.append(cluster(values))
        off = values[~np.eye(len(values), dtype=bool)]
        means.append(f"{np.nanmean(off):.3f} with {number:,}")
    where = "the whole model" if part[1] == "whole_model" else f"the {part[1]}"
    words = dict.fromkeys(s.at(part[0]).words for s in ends)
    caption = (
        f"Cosines of gradients of {where} between directions {side}, mean {'; '.join(words)}, in "
        f"runs that differ in {size.unit}, on one scale. Mean over pairs: {', '.join(means)}. "
        "Below: average-linkage clustering, cophenetic correlation "
        f"{', '.join(f'{tree.cophenetic:.2f}' for tree in trees)}."
    )
    header = ("run", size.unit.replace(" ", "_"), *PAIRS)
    return [Picture(name, caption, heatmaps(matrices, trees=trees), header, rows)]


def _alike(subject: Subject, others: Sequence[Subject]) -> Subject:
    """The subject as it is, or with its record if not all of ``others`` were measured."""
    if all(s.geometry is None or s.geometry.measured is not None for s in others):
        return subject
    return recorded(subject)


def _sizes(subjects: Sequence[Subject], size: _Size) -> list[list[tuple[Subject, int]]]:
    """Groups of multilingual subjects that differ only in a size.

    Subjects of a group share directions, method, temperature, start and the other size. Missing if
    no group has two sizes.
    """
    found: dict[object, list[tuple[Subject, int]]] = {}
    for subject in subjects:
        recipe = subject.run.recipe
        if len({t.partner for t in subject.tasks}) < 2:
            continue
        with suppress(Missing):
            alike = (recipe.method.name, str(recipe.batches.temperature))
            tasks = tuple(t.name for t in subject.tasks)
            key = (tasks, *alike, recipe.training.start_from, size.other(subject))
            found.setdefault(key, []).append((subject, size.of(subject)))
    groups = [group for group in found.values() if len({n for _, n in group}) > 1]
    if not groups:
        raise Missing(f"two multilingual runs that differ in {size.unit} alone")
    return groups


def batch_sizes(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 8: losses of runs with batches of different size."""
    return _by_size(subjects, BATCH, "cats-fig-08-batch-sizes")


def model_sizes(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 9: losses of models of different size."""
    return _by_size(subjects, PARAMETERS, "cats-fig-09-model-sizes")


def _by_size(subjects: Sequence[Subject], size: _Size, name: str) -> list[Picture]:
    """Train and validation NLL of runs that differ in size."""
    runs = [run for group in _sizes(subjects, size) for run in group]
    panels, x = losses([s for s, _ in runs])
    said = ", ".join(f"{s.run.name} {n:,}" for s, n in runs)
    caption = (
        "Train (dashed) and validation NLL per target token, mean over the directions of a "
        f"resource level. {size.unit[0].upper()}{size.unit[1:]}: {said}."
        + seeds_in_words([s for s, _ in runs])
    )
    return [Picture(name, caption, line_panels(panels, x), LINES, line_rows(panels))]
