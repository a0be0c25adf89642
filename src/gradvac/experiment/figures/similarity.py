"""Figures of cosines: heat maps, by layer, by kind of parameter, pairs over steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gradvac.experiment.figures.base import LINES, PAIRS, Picture, line_rows, pair_rows
from gradvac.experiment.figures.training import seeds_in_words
from gradvac.experiment.view.geometry import SIDES, Geometry, Missing, Subject, among
from gradvac.experiment.view.run_view import FROM_ENGLISH, LANGUAGES, TO_ENGLISH, TaskView
from gradvac.geometry.heatmaps import Matrix, Scale, heatmap_and_tree, heatmaps, tables
from gradvac.geometry.panels import Panel, line_panels, strips
from gradvac.geometry.plots import Line
from gradvac.geometry.record import cosine
from gradvac.geometry.similarity import alignment, cluster, mean_similarity, norm_similarity

WHOLE = "whole_model"
ENGLISH = (TO_ENGLISH, FROM_ENGLISH)


def as_matrix(values: np.ndarray, tasks: Sequence[TaskView], title: str = "") -> Matrix:
    """Values ``[K, K]`` with the names and families of their tasks."""
    return Matrix(values, [t.partner for t in tasks], [t.family for t in tasks], title)


def clustered(name: str, group: str, side: str) -> Callable[[Subject], list[Picture]]:
    """A heat map of one part of the model for the directions of one side, and its tree."""

    def draw(subject: Subject) -> list[Picture]:
        tasks = subject.of_side(side)
        granularity = WHOLE if group == WHOLE else "enc_dec"
        values = subject.mean_of(granularity, group, tasks)
        tree = cluster(values)
        part = "the whole model" if group == WHOLE else f"the {group}"
        caption = (
            f"Cosines of gradients of {part} between directions {side}, mean "
            f"{subject.at(granularity).words}; families in brackets. Right: average-linkage "
            f"clustering, cophenetic correlation {tree.cophenetic:.2f}."
        )
        figure = heatmap_and_tree(as_matrix(values, tasks), tree)
        return [Picture(name, caption, figure, PAIRS, pair_rows(values, tasks))]

    return draw


def whole_model(subject: Subject) -> list[Picture]:
    """GradVac figure 8: the whole model, each side separately."""
    pictures, reasons = [], []
    for side, short in SIDES.items():
        try:
            pictures += clustered(f"gradvac-fig-08-whole-model-{short}", WHOLE, side)(subject)
        except Missing as e:
            reasons.append(str(e))
    if not pictures:
        raise Missing("; ".join(reasons))
    return pictures


def both_sides(subject: Subject) -> list[Picture]:
    """GradVac figure 2a: Any to English and English to any in one model, on one scale."""
    sides = {side: subject.of_side(side) for side in ENGLISH}
    values = {side: subject.mean_of(WHOLE, WHOLE, tasks) for side, tasks in sides.items()}
    figure = heatmaps([as_matrix(values[side], sides[side], side) for side in ENGLISH])
    means = [f"{side} {_mean(values[side]):.3f}" for side in ENGLISH]
    caption = (
        "Cosines of gradients of the whole model, both sides of one model on one scale, mean "
        f"{subject.at(WHOLE).words}. Mean over pairs: {', '.join(means)}."
    )
    rows = [row for side in ENGLISH for row in pair_rows(values[side], sides[side], side)]
    return [Picture("gradvac-fig-02a-both-sides", caption, figure, ("side", *PAIRS), rows)]


def encoder_minus_decoder(subject: Subject) -> list[Picture]:
    """GradVac figure 4a."""
    matrices, rows, means = [], [], []
    reasons = []
    for side in ENGLISH:
        try:
            tasks = subject.of_side(side)
        except Missing as e:
            reasons.append(str(e))
            continue
        parts = [subject.mean_of("enc_dec", group, tasks) for group in ("encoder", "decoder")]
        values = parts[0] - parts[1]
        matrices.append(as_matrix(values, tasks, side))
        rows += pair_rows(values, tasks, side)
        means.append(f"{side} {_mean(values):+.3f}")
    if not matrices:
        raise Missing("; ".join(reasons))
    off = np.concatenate([m.values[~np.eye(len(m.values), dtype=bool)] for m in matrices])
    reach = Scale.over(np.abs(off)).high
    figure = heatmaps(
        matrices, "cosine in the encoder \N{MINUS SIGN} decoder", Scale(-reach, reach)
    )
    caption = (
        "Cosine in the encoder less cosine in the decoder; blue: the encoder's gradients are the "
        f"more similar. Mean {subject.at('enc_dec').words}. Over pairs: {', '.join(means)}."
    )
    header = ("side", *PAIRS[:-1], "difference")
    return [Picture("gradvac-fig-04a-encoder-minus-decoder", caption, figure, header, rows)]


def through_layers(subject: Subject) -> list[Picture]:
    """GradVac figure 4b."""
    found = subject.at("all_layer").mean("all_layer")
    lines, rows, spread = [], [], []
    for number, side in enumerate(SIDES):
        tasks = [t for t in subject.tasks if t.side == side and t.name in found.tasks]
        if len(tasks) < 2:
            continue
        values = among(found, tasks).by_group().tolist()
        lines.append((side, number, values))
        seeds = [
            among(s.at("all_layer").mean("all_layer"), tasks) for s in subject.seeds if s.geometry
        ]
        each = np.array([s.by_group() for s in seeds if s.groups == found.groups])
        spread.append(list(zip(each.min(0), each.max(0), strict=True)) if len(each) else [])
        rows += [(side, g, v) for g, v in zip(found.groups, values, strict=True)]
    if not lines:
        raise Missing("a run with two or more directions on one side of English")
    names = [layer_name(g) for g in found.groups]
    figure = strips(names, lines, "mean cosine of two directions", spread=spread)
    caption = (
        "Mean cosine over pairs of directions in each group of parameters, from bottom to top, "
        f"{subject.at('all_layer').words}." + seeds_in_words([subject])
    )
    header = ("side", "layer", "mean_cosine")
    return [Picture("gradvac-fig-04b-layers", caption, figure, header, rows)]


def layer_name(group: str) -> str:
    """``encoder.layers.0``, counted from 1: ``enc 1``."""
    parts = group.split(".")
    side = next((p[:3] for p in parts if p in ("encoder", "decoder")), None)
    if parts[-1].isdigit():
        return f"{side or 'layer'} {int(parts[-1]) + 1}"
    return {"embedding": "emb"}.get(group, group)


def pairs_over_steps(subject: Subject) -> list[Picture]:
    """GradVac figure 4c: a close and a distant pair, in the first layer of encoder and decoder."""
    geometry = subject.at("all_layer")
    mean = geometry.mean("all_layer")
    layers = [
        next((g for g in mean.groups if side in g.split(".") and g[-1].isdigit()), None)
        for side in ("encoder", "decoder")
    ]
    shown = [layer for layer in layers if layer]
    if not shown or len(geometry.steps) < 2:
        raise Missing("two or more measured steps, of a model of layers")
    pictures, series = [], geometry.over_time("all_layer")
    for side, short in SIDES.items():
        tasks = [t for t in subject.tasks if t.side == side and t.name in mean.tasks]
        if len(tasks) < 3:
            continue
        pairs = _chosen_pairs(among(mean, tasks).mean(), tasks)
        panels = []
        for layer in shown:
            lines = []
            for number, (a, b) in enumerate(pairs):
                points = [
                    (
                        s.steps[0],
                        s.cosine[s.groups.index(layer), s.tasks.index(a), s.tasks.index(b)],
                    )
                    for s in series
                    if layer in s.groups and a in s.tasks and b in s.tasks
                ]
                known = [(x, y) for x, y in points if not np.isnan(y)]
                name = f"{a}, {b}"
                lines.append(Line(name, [x for x, _ in known], [y for _, y in known], number))
            panels.append(Panel(lines, "cosine", layer_name(layer)))
        caption = f"Cosine of two pairs of directions over training, {geometry.words}."
        name = f"gradvac-fig-04c-pairs-over-steps-{short}"
        pictures.append(Picture(name, caption, line_panels(panels), LINES, line_rows(panels)))
    if not pictures:
        raise Missing("a run with three or more directions on one side of English")
    return pictures


def _chosen_pairs(mean: np.ndarray, tasks: Sequence[TaskView]) -> list[tuple[str, str]]:
    """The paper's pairs, French with Spanish and with Hindi; or the closest and most distant."""
    named = {t.partner: t.name for t in tasks}
    if {"fr", "es", "hi"} <= named.keys():
        return [(named["fr"], named["es"]), (named["fr"], named["hi"])]
    rows, columns = np.triu_indices(len(tasks), 1)
    values = np.nan_to_num(mean[rows, columns])
    ends = int(values.argmax()), int(values.argmin())
    return [(tasks[rows[n]].name, tasks[columns[n]].name) for n in ends]


SETTINGS = {TO_ENGLISH: "M2O", FROM_ENGLISH: "O2M", LANGUAGES: "languages"}


def _settings(subject: Subject) -> dict[str, list[TaskView]]:
    """Task settings a run can show: many to one, one to many, both in one model; languages."""
    found = {s: [t for t in subject.tasks if t.side == side] for side, s in SETTINGS.items()}
    found = {s: tasks for s, tasks in found.items() if len(tasks) > 1}
    return {**found, "M2M": subject.tasks} if len(found) > 1 else found


def by_kind(
    subjects: Sequence[Subject], measures: Sequence[Callable[[np.ndarray], np.ndarray]]
) -> tuple[list[str], list[str], list[np.ndarray], str]:
    """Rows (settings), columns (kinds of parameters), means over pairs of each measure, words."""
    rows, columns, values, words = [], [], [], []
    reasons: list[str] = []
    found: list[tuple[Subject, Geometry]] = []
    for subject in subjects:
        try:
            found.append((subject, subject.at("parameter_kind")))
        except Missing as e:
            reasons.append(str(e))
    for subject, geometry in found:
        means = [mean_similarity(geometry.frames("parameter_kind"), of) for of in measures]
        for setting, tasks in _settings(subject).items():
            parts = [among(m, tasks).by_group() for m in means if m is not None]
            columns = columns or list(means[0].groups if means[0] else ())
            rows.append(setting if len(found) == 1 else f"{setting} {subject.run.name}")
            values.append(parts)
        words.append(geometry.words)
    if not rows:
        raise Missing("; ".join(dict.fromkeys(reasons)) or "two directions on one side of English")
    return rows, columns, [np.array(v) for v in zip(*values, strict=True)], words[0]


def kinds_and_settings(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 2: similarity of direction and of norm, by kind of parameter and setting."""
    rows, columns, values, words = by_kind(subjects, (cosine, norm_similarity))
    panels = [("Direction similarity (cosine)", values[0]), ("Norm similarity", values[1])]
    names = [kind_name(c) for c in columns]
    caption = (
        "Mean over pairs of directions: many to one (M2O), one to many (O2M), all (M2M), by kind "
        f"of parameter, {words}. Norm similarity is 2|a||b| / (|a|^2 + |b|^2)."
    )
    numbers = [
        (row, column, float(values[0][i, j]), float(values[1][i, j]))
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
    header = ("setting", "kind", "direction_similarity", "norm_similarity")
    figure = tables(panels, rows, names)
    return [Picture("cats-fig-02-kinds-and-settings", caption, figure, header, numbers)]


def alignment_by_setting(subjects: Sequence[Subject]) -> list[Picture]:
    """CATS figure 3."""
    rows, columns, (values,), words = by_kind(subjects, (alignment,))
    blocks = list(dict.fromkeys(_block(c) for c in columns))
    lines = []
    for block in blocks:
        members = [j for j, c in enumerate(columns) if _block(c) == block]
        lines.append((block, blocks.index(block), values[:, members].mean(1).tolist()))
    caption = (
        "Alignment 2 a.b / (|a|^2 + |b|^2), mean over pairs of directions and over the parameters "
        f"of a kind, {words}. The poster does not define its alignment; this is ours."
    )
    numbers = [
        (row, column, float(values[i, j]))
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
    header = ("setting", "kind", "alignment")
    figure = strips(rows, lines, "alignment")
    return [Picture("cats-fig-03-alignment", caption, figure, header, numbers)]


def kind_name(kind: str) -> str:
    """``decoder.cross_attention.q`` shortened for a column: ``dec cross q``."""
    short = {"encoder": "enc", "decoder": "dec", "self_attention": "self", "norm": "norms"}
    short |= {"cross_attention": "cross", "feed_forward": "ffn", "embedding": "embeddings"}
    return " ".join(short.get(part, part) for part in kind.split("."))


def _block(kind: str) -> str:
    return kind_name(kind.rpartition(".")[0] if kind[-2] == "." else kind)


def _mean(values: np.ndarray) -> float:
    """Mean over the pairs."""
    return float(np.nanmean(values[~np.eye(len(values), dtype=bool)]))
