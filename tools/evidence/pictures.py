"""The pictures of docs/evidence.md: each returns a figure and its caption, or raises Absent."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from gradvac.geometry.heatmaps import Matrix, heatmaps
from gradvac.geometry.panels import Panel, line_panels, scatter
from gradvac.geometry.plots import INK, MUTED, RULE, Line, axes, colour, legend, styled

from . import curves
from .figures import MEASURES, Absent
from .figures import Figure as Finding
from .files import Evidence
from .laboratory import SIDES


def heat_maps(
    name: str, *panels: tuple[str, str, str, str]
) -> Callable[[Evidence], tuple[Figure, str]]:
    """Mean cosines over steps and seeds; a panel has a variant, a side, a part and words for it."""

    def draw(e: Evidence) -> tuple[Figure, str]:
        found = []
        for variant, side, part, words in panels:
            runs = [run["sides"][side] for run in e.runs(name, variant)]
            values = np.mean([run["matrices"][part] for run in runs], 0)
            labels = [task.replace("en-", "").replace("-en", "") for task in runs[0]["tasks"]]
            found.append(Matrix(values, labels, runs[0]["families"], f"{words}, {len(runs)} seeds"))
        return heatmaps(found), "Mean cosines of gradients on the same sentences, by family"

    return draw


def layers(e: Evidence) -> tuple[Figure, str]:
    """Mean cosine by layer, one line a seed."""
    panels = []
    for side in ("any-en", "en-any"):
        lines, names = [], []
        for run in e.runs("geometry", side):
            own = run["sides"][side]["layers"]
            names = [n for n in own if n.startswith(("encoder", "decoder"))]
            line = Line(
                f"seed {run['seed']}", range(len(names)), [own[n] for n in names], len(lines)
            )
            lines.append(line)
        panels.append(Panel(lines, "mean cosine", side))
    return line_panels(
        panels, "layer, encoder then decoder"
    ), "Similarity of gradients from the first layer to the last"


def steps(e: Evidence) -> tuple[Figure, str]:
    """Mean cosine by checkpoint of encoder and decoder layers, means over layers and seeds."""
    panels = []
    for side in ("any-en", "en-any"):
        runs = [run["sides"][side]["steps"] for run in e.runs("geometry", side)]
        lines = []
        for n, half in enumerate(("encoder", "decoder")):
            of = lambda step, half=half: [
                value for name, value in step["layers"].items() if name.startswith(half)
            ]
            values = np.mean([[statistics.fmean(of(step)) for step in run] for run in runs], 0)
            lines.append(Line(half, [step["step"] for step in runs[0]], values.tolist(), n))
        panels.append(Panel(lines, "mean cosine", side))
    return line_panels(panels), "Similarity of gradients from the first checkpoint to the last"


def partners(score: str, words: str) -> Callable[[Evidence], tuple[Figure, str]]:
    """Figure 2b: similarity with the partner against a score of en-fr, means over seeds."""

    def draw(e: Evidence) -> tuple[Figure, str]:
        names, means = e.partner_means("whole_model")
        labels = ("cosine of en-fr and its partner", f"{words} of en-fr")
        figure = scatter(names, means["cosine"].tolist(), means[score].tolist(), *labels)
        beside = "beside partners whose gradients are more or less similar to its own"
        return figure, f"{words} of en-fr {beside}"

    return draw


def differences(
    name: str,
    baseline: str,
    words: str,
    against: Mapping[str, str] | None = None,
    far: str | None = None,
) -> Callable[[Evidence], tuple[Figure, str]]:
    """NLL or F1 of every row less the baseline's: 95 % intervals over seeds.

    ``against`` has the rows to show, each with its own baseline. The row ``far`` is given in the
    caption: beside it the others could not be told from zero.
    """

    def draw(e: Evidence) -> tuple[Figure, str]:
        tree = e.read(name)
        pairs = against or {row: baseline for row in tree["costs"] if row != baseline}
        rows = [row for row in pairs if row != far]
        averages = tree["averages"]
        levels = [g for g in ("high", "low") if averages.get(g, averages["avg"]) != averages["avg"]]
        groups = ["avg", *levels]
        metric = "f1" if "f1" in {r["metric"] for r in tree["records"]} else "nll"
        found = {
            group: [e.gain(name, row, pairs[row], group, metric) for row in rows]
            for group in groups
        }
        unit = "F1 above" if metric == "f1" else "NLL below"
        xlabel = f"{unit} {baseline} (right is better)"
        caption = f"{words}: {_INTERVALS}"
        if far:
            there = e.gain(name, far, pairs[far], "avg", metric)
            caption += f". Not drawn: {far}, {there.value:+.1f} ± {there.half:.1f}"
        return _intervals(rows, found, metric, xlabel), caption

    return draw


def curve_gains(name: str, words: str) -> Callable[[Evidence], tuple[Figure, str]]:
    """The laboratory's endpoint: every row beside joint training, 95 % intervals over seeds."""

    def draw(e: Evidence) -> tuple[Figure, str]:
        rows = [row for row in curves.complete(e, name) if row != "joint"]
        levels = {"all": "avg", "high": "high", "low": "low"}
        found = {
            label: [curves.gain(e, name, row, "joint", level) for row in rows]
            for label, level in levels.items()
        }
        xlabel = "log NLL below joint training, mean of checkpoints (right is better)"
        return _intervals(rows, found, "curve", xlabel), f"{words}: {_INTERVALS}"

    return draw


_INTERVALS = "the interval of each difference alone; grey: below the bound"


def _intervals(
    rows: Sequence[str], found: Mapping[str, Sequence[Finding]], kind: str, xlabel: str
) -> Figure:
    """Intervals of figures, by group: one for each row."""
    with styled():
        figure, ax = axes(5.2, 0.9 + 0.34 * len(rows))
        handles = [
            ax.errorbar(
                [f.value for f in own],
                np.arange(len(rows)) + 0.2 * (n - (len(found) - 1) / 2),
                xerr=[f.half for f in own],
                fmt="osD"[n],
                color=colour(n),
                markersize=4,
                linewidth=1.2,
            )
            for n, own in enumerate(found.values())
        ]
        bound = MEASURES[kind].bound
        ax.axvspan(-bound, bound, color=RULE, alpha=0.6, linewidth=0)
        ax.axvline(0, color=MUTED, linewidth=0.8)
        ax.set_yticks(range(len(rows)), rows, fontsize=8, color=INK)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel(xlabel)
        ax.grid(axis="x", color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        legend(ax, handles, list(found))
    return figure


def learning(e: Evidence) -> tuple[Figure, str]:
    """NLL by step of the laboratory's main rows, means over seeds."""
    name = "lab-table1-from-en"
    panels = []
    for level in ("high", "low"):
        lines = []
        for n, row in enumerate(("joint", "pcgrad-all-layer", "gradvac-all-layer")):
            runs = e.runs(name, row)
            of_runs = np.mean([run["nll"][level] for run in runs], 0)
            lines.append(Line(row, runs[0]["steps"], of_runs.tolist(), n))
        panels.append(Panel(lines, "NLL", level))
    return line_panels(panels), "NLL of validation text by step, means over seeds"


_MARKERS = "Ds^vPX<>"


def front(name: str) -> Callable[[Evidence], tuple[Figure, str]]:
    """High- against low-resource NLL, the swept front and the methods."""

    def draw(e: Evidence) -> tuple[Figure, str]:
        fronts = [f for f in e.read(name).get("fronts", []) if f["metric"] == "nll"]
        if not fronts:
            raise Absent(f"{name}: front")
        found = fronts[0]
        with styled():
            figure, ax = axes(4.9, 3.7)
            (line,) = ax.plot(*zip(*found["front"], strict=True), color=MUTED, linewidth=1.2)
            marks = {"swept front": line}
            for place in found["rows"]:
                n = len(marks)
                tint, marker = (
                    (MUTED, "o")
                    if place["swept"]
                    else (colour(n), _MARKERS[(n - 1) % len(_MARKERS)])
                )
                for point in place["seeds"].values():
                    ax.plot(*point, marker, color=tint, markersize=2.2, alpha=0.4)
                (mark,) = ax.plot(*place["mean"], marker, color=tint, markersize=5)
                if place["swept"]:
                    ax.annotate(
                        place["row"], place["mean"], (5, 4), textcoords="offset points", fontsize=8
                    )
                else:  # methods often lie on each other
                    marks[place["row"]] = mark
            ax.invert_xaxis()
            ax.invert_yaxis()
            ax.margins(0.12)
            ax.set_xlabel(f"NLL, {found['axes'][0]} (reversed: right is better)")
            ax.set_ylabel(f"NLL, {found['axes'][1]} (reversed: up is better)")
            ax.grid(color=RULE, linewidth=0.6)
            ax.set_axisbelow(True)
            legend(ax, list(marks.values()), list(marks))
        return figure, "High- against low-resource directions; small marks are single seeds"

    return draw


def curvature(setting: str) -> Callable[[Evidence], tuple[Figure, str]]:
    """Top eigenvalue of the summed loss, and cosine of high- and low-resource gradients."""

    def draw(e: Evidence) -> tuple[Figure, str]:
        lines: tuple[list[Line], list[Line]] = [], []
        for n, variant in enumerate(("t1", "t5", "cats")):
            runs = e.runs("curvature", variant + setting)
            steps = sorted({v["step"] for run in runs for v in run["eigenvalues"]})
            top = [
                statistics.fmean(
                    v["value"]
                    for run in runs
                    for v in run["eigenvalues"]
                    if (v["step"], v["group"]) == (step, "sum")
                )
                for step in steps
            ]
            cosines = [
                statistics.fmean(run["high_low_cosine"][str(step)] for run in runs)
                for step in steps
            ]
            lines[0].append(Line(variant + setting, steps, top, n))
            lines[1].append(Line(variant + setting, steps, cosines, n))
        panels = [Panel(lines[0], "top eigenvalue"), Panel(lines[1], "cosine, high and low")]
        words = "Curvature of the summed loss, and agreement of high- and low-resource gradients"
        return line_panels(panels, same_y=False), f"{words}, by step"

    return draw


def edits(e: Evidence) -> tuple[Figure, str]:
    """Share of pairs that GradVac edited and PCGrad would have."""
    runs = e.runs("edits", "gradvac-all-layer")
    lines = [
        Line(name, runs[0]["steps"], np.mean([run[key] for run in runs], 0).tolist(), n)
        for n, (key, name) in enumerate((("gradvac", "GradVac"), ("pcgrad", "PCGrad would")))
    ]
    panel = Panel(lines, "share of pairs edited", zero=True)
    return line_panels([panel]), "Pairs edited while training, mean over seeds"


OWN_CHOICES = (
    *("hrl-only", "all-task"),
    *("gradvac-whole-model", "enc-dec", "all-matrix"),
    *("beta-1e-1", "beta-1e-3"),
)
SETTINGS = ("", "-large-batch", "-large-model")  # of the rows of CATS

PICTURES: dict[str, Callable[[Evidence], tuple[Figure, str]]] = {
    "geometry": heat_maps(
        "geometry",
        ("any-en", "any-en", "encoder", "encoder, into English"),
        ("en-any", "en-any", "decoder", "decoder, out of English"),
    ),
    "layers": layers,
    "steps": steps,
    "partners": partners("nll", "NLL"),
    "partners-bleu": partners("bleu", "BLEU"),
    "table1-to-en": differences("table1-to-en", "multilingual", "Table 1 into English"),
    "table1-from-en": differences("table1-from-en", "multilingual", "Table 1 out of English"),
    **{
        f"continued-{side}": differences(
            f"continued-{side}", "joint", f"Table 1 from a model that translates, {words}"
        )
        for side, words in SIDES.items()
    },
    **{f"continued-{side}-front": front(f"continued-{side}") for side in SIDES},
    "edits": edits,
    "ablations": differences(
        "ablations",
        "gradvac-all-layer",
        "Tables 6 to 8",
        dict.fromkeys(OWN_CHOICES, "gradvac-all-layer"),
    ),
    "front": front("imbalance"),
    "curvature": curvature(""),
    "cats": differences(
        "cats",
        "t1",
        "High- and low-resource directions, each row less T=1 of its own setting",
        {f"{row}{s}": f"t1{s}" for s in SETTINGS for row in ("t5", "cats")},
    ),
    "lab-table1-from-en": curve_gains("lab-table1-from-en", "Table 1 in number words"),
    "lab-curves": learning,
    "table3-ner-real": differences("table3-ner-real", "joint", "Named entities", far="mgda"),
    "table9-pos-real": differences("table9-pos-real", "joint", "Parts of speech"),
    "parallel-pos": heat_maps(
        "parallel-pos-real",
        ("joint", "languages", "encoder", "pretrained encoder, parts of speech"),
    ),
    "table3-ner": differences("table3-ner", "joint", "Named entities", far="mgda"),
    "table9-pos": differences("table9-pos", "joint", "Parts of speech"),
}
