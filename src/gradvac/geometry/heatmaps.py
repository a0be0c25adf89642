"""Pictures of matrices: heat maps of similarity with brackets for families, trees, tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from scipy.cluster.hierarchy import dendrogram

from gradvac.geometry.plots import MUTED, ROUND, RULE, axes, styled
from gradvac.geometry.similarity import Clustering

__all__ = ["Matrix", "Scale", "heatmap", "heatmap_and_tree", "heatmaps", "tables", "tree"]

NEGATIVE = "#f4a582"
"""The colour of conflict on a scale without negative values: a light red of the diverging scale."""
FAINT = 0.4
"""Where on a diverging scale the faintest conflict lies: nearer to the middle it would be white."""
ANNOTATED = 16  # with more tasks the numbers in the cells would be too small to read


@dataclass(frozen=True)
class Scale:
    """Colours for a range of cosines, so that several heat maps can be compared.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.heatmaps import Scale
        >>> Scale.of(np.array([[1.0, -0.3], [0.2, 1.0]]))  # symmetric where one is negative
        Scale(low=-0.3, high=0.3)
    """

    low: float
    high: float

    @classmethod
    def of(cls, cosines: np.ndarray) -> Scale:
        """Return the range of nearly all entries off the diagonal [..., K, K], rounded to 0.05.

        If all are positive, it starts at 0, or at the next 0.05 below if all are more than half of
        the largest; if they are closer together, it is rounded to 0.005 or 0.0005. Otherwise it is
        symmetric about 0, where tasks begin to conflict. The outer 2 % do not count, so that one
        odd pair does not make all others pale; a negative one still has its own colour.
        """
        return cls.over(cosines[..., ~np.eye(cosines.shape[-1], dtype=bool)])

    @classmethod
    def over(cls, values: np.ndarray) -> Scale:
        """Return the range of values that all count."""
        values = values[~np.isnan(values)]
        if not values.size:
            return cls(0.0, 1.0)
        low, high = np.quantile(values, [0.02, 0.98])
        reach = max(0.1, math.ceil(max(-low, high) * 20 - 1e-9) / 20)
        if low > reach / 2:
            step = 0.05
            while 0 < high - low < step / 2 and step > 0.001:
                step /= 10
            top = math.ceil(high / step - 1e-9) * step
            bottom = min(math.floor(low / step + 1e-9) * step, top - 2 * step)
            return cls(round(bottom, 4), round(top, 4))
        return cls(0.0 if low >= 0 else -reach, reach)

    @property
    def map(self) -> Colormap:
        """Sequential, or diverging with 0 in the middle; both are safe for colour-blind readers."""
        # 41 colours: finer steps are invisible, and each is a shape in the SVG of the colour bar.
        name = "Blues" if self.low >= 0 else "RdBu"
        colours = matplotlib.colormaps[name].resampled(41)
        return colours.with_extremes(under=NEGATIVE) if self.low == 0 else colours

    @property
    def digits(self) -> int:
        """Digits after the decimal point that distinguish values of this range."""
        width = self.high - self.low
        return 2 if width >= 0.05 else 3 if width >= 0.005 else 4

    def colour(self, value: float) -> tuple[float, float, float, float]:
        """Return the colour of a value, as red, green, blue and opacity."""
        place = float(Normalize(self.low, self.high)(max(value, self.low)))
        if value <= -0.005:  # what is not written as 0
            if self.low >= 0:
                return to_rgba(NEGATIVE)
            place = min(place, FAINT)
        return self.map(place)


@dataclass(frozen=True)
class Matrix:
    """A value for every pair of tasks: ``values`` [K, K], with the tasks' labels and families.

    Neighbours of the same family share a bracket.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.heatmaps import Matrix
        >>> Matrix(np.eye(2), labels=["fr", "hi"], families=["Romance", "Indic"]).values.shape
        (2, 2)
    """

    values: np.ndarray
    labels: Sequence[str]
    families: Sequence[str]
    title: str = ""


def heatmap(
    cosine: np.ndarray,
    labels: Sequence[str],
    families: Sequence[str],
    scale: Scale | None = None,
    *,
    named: bool = False,
) -> Figure:
    """Heat map of cosines [K, K]; neighbours of the same family share a bracket.

    The diagonal is left blank; pairs that were never in one batch are crossed out. ``named``
    gives every cell of the SVG, and the number in it, an id for scripts: ``c0-1``, ``t0-1``.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.heatmaps import heatmap
        >>> from gradvac.geometry.plots import svg
        >>> cosine = np.array([[1.0, 0.42], [0.42, 1.0]])
        >>> ".42" in svg(heatmap(cosine, ["fr", "hi"], ["Romance", "Indic"]))
        True
    """
    scale = scale or Scale.of(cosine)
    side = _side(len(labels))
    with styled():
        figure, ax = axes(side * 1.12, side)
        draw_heatmap(ax, Matrix(cosine, labels, families), scale, named=named)
        _colour_bar(figure, [ax], scale, [cosine], "cosine")
    return figure


def heatmap_and_tree(matrix: Matrix, clustering: Clustering, scale: Scale | None = None) -> Figure:
    """A heat map, and the tree of its hierarchical clustering beside it.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.heatmaps import Matrix, heatmap_and_tree
        >>> from gradvac.geometry.similarity import cluster
        >>> cosine = np.array([[1.0, 0.42], [0.42, 1.0]])
        >>> figure = heatmap_and_tree(Matrix(cosine, ["fr", "hi"], ["", ""]), cluster(cosine))
        >>> len(figure.axes)  # heat map, tree, colours
        3
    """
    scale = scale or Scale.of(matrix.values)
    side = _side(len(matrix.labels))
    with styled():
        figure = Figure(figsize=(side * 1.12 + 3.4, side))
        left, right = figure.subplots(
            1, 2, width_ratios=(side * 1.12, 2.1), gridspec_kw={"wspace": 0.42}
        )
        draw_heatmap(left, matrix, scale)
        _colour_bar(figure, [left], scale, [matrix.values], "cosine")
        draw_tree(right, clustering, matrix.labels)
    return figure


def heatmaps(
    matrices: Sequence[Matrix],
    label: str = "cosine",
    scale: Scale | None = None,
    trees: Sequence[Clustering] = (),
) -> Figure:
    """Several heat maps side by side, on one scale; ``trees``, if given, below their heat maps.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.heatmaps import Matrix, heatmaps
        >>> matrix = Matrix(np.array([[1.0, 0.42], [0.42, 1.0]]), ["fr", "hi"], ["", ""])
        >>> len(heatmaps([matrix, matrix]).axes)  # two heat maps and their colours
        3
    """
    values = [m.values for m in matrices]
    scale = scale or Scale.over(np.concatenate([v[~np.eye(len(v), dtype=bool)] for v in values]))
    side = _side(max(len(m.labels) for m in matrices))
    with styled():
        below = [_tree_height(max(len(m.labels) for m in matrices)) + 1.0] if trees else []
        figure = Figure(figsize=((side + 1.4) * len(matrices), side + sum(below)))
        row, *under = figure.subplots(
            1 + len(below),
            len(matrices),
            squeeze=False,
            height_ratios=[side, *below],
            gridspec_kw={"wspace": 0.55, "hspace": 1.2 / side},
        )
        for ax, matrix in zip(row, matrices, strict=True):
            draw_heatmap(ax, matrix, scale)
        for axes_below in under:
            for ax, clustering, matrix in zip(axes_below, trees, matrices, strict=True):
                draw_tree(ax, clustering, matrix.labels)
        _colour_bar(figure, list(row), scale, values, label)
    return figure


def tree(clustering: Clustering, labels: Sequence[str]) -> Figure:
    """The clusters of K tasks as a tree; the height of a node is 1 - cosine.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.heatmaps import tree
        >>> from gradvac.geometry.similarity import cluster
        >>> figure = tree(cluster(np.array([[1.0, 0.42], [0.42, 1.0]])), ["fr", "hi"])
        >>> figure.axes[0].get_xlabel()
        '1 − cosine'
    """
    with styled():
        figure, ax = axes(3.6, _tree_height(len(labels)))
        draw_tree(ax, clustering, labels)
    return figure


def tables(
    panels: Sequence[tuple[str, np.ndarray]], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Tables of numbers as colours, one below the other: ``values`` [rows, columns] each.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.heatmaps import tables
        >>> figure = tables([("cosine", np.array([[0.1, 0.2]]))], rows=["fr"], columns=["en", "de"])
        >>> figure.axes[0].get_title(loc="left")
        'cosine'
    """
    with styled():
        height = 0.34 * len(rows) + 0.75
        figure = Figure(figsize=(0.36 * len(columns) + 1.6, height * len(panels) + 1.2))
        column = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for ax, (title, values) in zip(column, panels, strict=True):
            scale = Scale.over(values)
            for i, j in np.ndindex(*values.shape):
                _cell(ax, i, j, float(values[i, j]), scale, numbers=True)
            ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
            ax.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8)
            ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90, fontsize=8)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
            ax.set_title(title, fontsize=9, loc="left")
            _colour_bar(figure, [ax], scale, [values], "")
    return figure


# -- onto axes ----------------------------------------------------------------------------------


def draw_heatmap(ax: Axes, matrix: Matrix, scale: Scale, *, named: bool = False) -> None:
    """Draw a heat map; see `heatmap`."""
    k = len(matrix.labels)
    for i, j in np.ndindex(k, k):
        if i == j:
            ax.add_patch(Rectangle((j, i), 1, 1, color=RULE, alpha=0.5, linewidth=0))
        else:
            value = float(matrix.values[i, j])
            _cell(ax, i, j, value, scale, numbers=k <= ANNOTATED, named=named)
    ax.set(xlim=(0, k), ylim=(k, 0), aspect="equal")
    ax.set_xticks(np.arange(k) + 0.5, matrix.labels, rotation=90, fontsize=8)
    ax.set_yticks(np.arange(k) + 0.5, matrix.labels, fontsize=8)
    ax.tick_params(length=0, pad=9)
    ax.spines[:].set_visible(False)
    ax.set_title(matrix.title, fontsize=9)
    widest = max((len(label) for label in matrix.labels), default=0)
    _brackets(ax, matrix.families, 16 + widest * 5.4)


def _cell(
    ax: Axes, i: int, j: int, value: float, scale: Scale, *, numbers: bool, named: bool = False
) -> None:
    """One cell: a colour and a number, or a line through it if the value is unknown."""
    known = not math.isnan(value)
    if known or named:
        red, green, blue, _ = colour = scale.colour(value if known else 0.0)
        cell = ax.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, linewidth=0))
        if numbers or named:
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            ink = "#ffffff" if dark else "#111111"
            blank = "\N{NO-BREAK SPACE}" if named else ""  # a script may change it later
            text = (short(value, scale.digits) or blank) if numbers else ""
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": ink}
            number = ax.text(j + 0.5, i + 0.52, text, **style)
            if named:
                cell.set_gid(f"c{i}-{j}")
                number.set_gid(f"t{i}-{j}")
    if not known:
        ax.plot([j + 0.35, j + 0.65], [i + 0.65, i + 0.35], color=MUTED, linewidth=0.7)


def short(value: float, digits: int = 2) -> str:
    """A cosine in the width of a cell: ``.42``, ``−.07``; nothing for NaN."""
    if math.isnan(value):
        return ""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    if abs(float(text)) < 1:
        text = text.replace("0.", ".", 1)
    return text.replace("-", "\N{MINUS SIGN}")


def _colour_bar(
    figure: Figure, onto: list[Axes], scale: Scale, shown: Sequence[np.ndarray], label: str
) -> None:
    """The scale beside the axes, with a pointed end if values lie beyond it."""
    off = [v[~np.eye(len(v), dtype=bool)] if v.shape[0] == v.shape[-1] else v for v in shown]
    values = np.concatenate([v.ravel() for v in off])
    beyond = bool((values < scale.low).any()), bool((values > scale.high).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    mappable = ScalarMappable(Normalize(scale.low, scale.high), scale.map)
    bar = figure.colorbar(
        mappable,
        ax=onto,
        fraction=0.035,
        pad=0.03,
        aspect=28 if len(onto) == 1 and len(shown[0]) > 6 else 12,
        extend=extend.get(beyond, "neither"),
        ticks=MaxNLocator(5, steps=ROUND),
    )
    bar.solids.set(rasterized=False, edgecolor="face")  # type: ignore[union-attr]
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=2, labelsize=8)
    bar.set_label(label, fontsize=8)


def _brackets(ax: Axes, families: Sequence[str], points: float) -> None:
    """Bracket each family left of the rows and below the columns; name it left of the labels."""
    inches = ax.get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]
    left = ax.get_yaxis_transform() + ScaledTranslation(-5 / 72, 0, inches)
    below = ax.get_xaxis_transform() + ScaledTranslation(0, -5 / 72, inches)
    start = 0
    for name, members in groupby(families):
        end = start + len(list(members))
        if start:
            ax.axhline(start, color="#ffffff", linewidth=1.6)
            ax.axvline(start, color="#ffffff", linewidth=1.6)
        reach, flat = [start + 0.12, end - 0.12], [0, 0]
        style = {"color": MUTED, "linewidth": 1.6, "clip_on": False, "solid_capstyle": "butt"}
        ax.plot(flat, reach, transform=left, **style)
        ax.plot(reach, flat, transform=below, **style)
        ax.annotate(
            name,
            xy=(0, (start + end) / 2),
            xycoords=ax.get_yaxis_transform(),
            xytext=(-points, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=MUTED,
            annotation_clip=False,
        )
        start = end


def draw_tree(ax: Axes, clustering: Clustering, labels: Sequence[str]) -> None:
    """Draw a tree; see `tree`."""
    drawn = dendrogram(clustering.linkage, no_plot=True)
    for heights, places in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        ax.plot(heights, [(p - 5) / 10 for p in places], color=MUTED, linewidth=1.2)
    ax.set_yticks(range(len(labels)), [labels[n] for n in clustering.order], fontsize=8)
    ax.set(ylim=(len(labels) - 0.5, -0.5), xlabel="1 \N{MINUS SIGN} cosine")
    low = min(float(clustering.linkage[:, 2].min()), 1.0)
    high = float(clustering.linkage[:, 2].max())
    ax.set_xlim(max(0.0, low - 0.25 * (high - low) - 0.02), high + 0.02)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    ax.yaxis.tick_left()
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _side(k: int) -> float:
    """Inches of a heat map of K tasks."""
    return max(2.2, 0.34 * k if k <= ANNOTATED else 0.2 * k)


def _tree_height(k: int) -> float:
    """Inches of a tree of K tasks."""
    return max(1.6, 0.24 * k)
