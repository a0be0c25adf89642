"""Pictures of a run: heat maps of similarity, trees, curves, dots.

Every function returns a Matplotlib ``Figure`` that belongs to nobody (no pyplot state): save it
with :func:`save` (SVG, PDF, PNG) or embed :func:`svg`, whose text is the same in every process.
The palette is Okabe and Ito's, made to be told apart with any colour vision.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from scipy.cluster.hierarchy import dendrogram

from gradvac.geometry.similarity import Clustering

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, RULE = "#1d2126", "#5d6772", "#d3d7db"
ANNOTATED = 16  # more tasks than this, and numbers in the cells are too small to read
_POINTS = 120  # of a curve: more are narrower than the line that joins them

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with Matplotlib: the same metrics everywhere
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "gradvac",
}


@contextmanager
def _styled() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A script the font lacks is drawn by whoever shows the SVG: its text stays text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def colour(n: int) -> str:
    """The colour of the n-th series of a report."""
    return PALETTE[n % len(PALETTE)]


def svg(figure: Figure) -> str:
    """The figure as SVG with text as text, without date; equal figures give equal text."""
    out = io.StringIO()
    with _styled():
        figure.savefig(
            out,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.04,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    return out.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a file of the kind its name ends with: ``.svg``, ``.pdf`` or ``.png``."""
    with _styled():
        figure.savefig(path, bbox_inches="tight", dpi=200)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


# -- heat maps and trees ------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Colours of a range of cosines, so that several heat maps can be compared."""

    low: float
    high: float

    @classmethod
    def of(cls, cosines: np.ndarray) -> Scale:
        """The range of nearly everything off the diagonal, ``[..., K, K]``, to the next 0.05.

        All positive: from 0 up. Otherwise as far below 0 as above, since 0 is where tasks begin
        to conflict. The outer 2 % do not count, so that one odd pair does not pale all others.
        """
        values = cosines[..., ~np.eye(cosines.shape[-1], dtype=bool)]
        values = values[~np.isnan(values)]
        if not values.size:
            return cls(0.0, 1.0)
        low, high = np.quantile(values, [0.02, 0.98])
        reach = max(0.1, math.ceil(max(-low, high) * 20 - 1e-9) / 20)
        return cls(0.0 if low >= 0 else -reach, reach)

    @property
    def map(self) -> Colormap:
        """Sequential, or diverging with 0 in the middle; both safe for colour-blind eyes."""
        # 41 colours: finer steps cannot be seen, and each is a shape in the SVG of the colour bar.
        return matplotlib.colormaps["Blues" if self.low == 0 else "RdBu"].resampled(41)


def heatmap(
    cosine: np.ndarray, labels: Sequence[str], families: Sequence[str], scale: Scale | None = None
) -> Figure:
    """Heat map of cosines [K, K]; neighbours of the same family share a bracket.

    The diagonal says nothing and is left blank; pairs that never met are crossed out.
    """
    k = len(labels)
    scale = scale or Scale.of(cosine)
    side = max(2.2, 0.34 * k if k <= ANNOTATED else 0.2 * k)
    with _styled():
        figure, ax = _axes(side * 1.12, side)
        shown = np.ma.masked_invalid(np.where(np.eye(k, dtype=bool), np.nan, cosine))
        mesh = ax.pcolormesh(
            shown, cmap=scale.map, vmin=scale.low, vmax=scale.high, edgecolors="none"
        )
        ax.set(xlim=(0, k), ylim=(k, 0), aspect="equal")
        ax.set_xticks(np.arange(k) + 0.5, labels, rotation=90, fontsize=8)
        ax.set_yticks(np.arange(k) + 0.5, labels, fontsize=8)
        ax.tick_params(length=0, pad=9)
        ax.spines[:].set_visible(False)
        _cells(ax, cosine, scale, numbers=k <= ANNOTATED)
        widest = max((len(label) for label in labels), default=0)
        _brackets(ax, families, 16 + widest * 5.4)
        beyond = bool((shown < scale.low).any()), bool((shown > scale.high).any())
        extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
        bar = figure.colorbar(
            mesh, ax=ax, fraction=0.035, pad=0.03, aspect=28, extend=extend.get(beyond, "neither")
        )
        bar.solids.set(rasterized=False, edgecolor="face")  # type: ignore[union-attr]
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(length=2, labelsize=8)
        bar.set_label("cosine", fontsize=8)
    return figure


def _cells(ax: Axes, cosine: np.ndarray, scale: Scale, *, numbers: bool) -> None:
    """Write the numbers into the cells, and mark those without one."""
    tint = Normalize(scale.low, scale.high)
    for i, j in np.ndindex(*cosine.shape):
        if i == j:
            ax.fill_between([j, j + 1], i, i + 1, color=RULE, alpha=0.5, linewidth=0)
        elif np.isnan(cosine[i, j]):
            ax.plot([j + 0.35, j + 0.65], [i + 0.65, i + 0.35], color=MUTED, linewidth=0.7)
        elif numbers:
            red, green, blue, _ = scale.map(tint(cosine[i, j]))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{cosine[i, j]:.2f}".replace("0.", ".").replace("-.00", ".00")
            ax.text(
                j + 0.5,
                i + 0.52,
                text.replace("-", "\N{MINUS SIGN}"),
                ha="center",
                va="center",
                fontsize=7,
                color="#ffffff" if dark else "#111111",
            )


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


def tree(clustering: Clustering, labels: Sequence[str]) -> Figure:
    """The clusters of K tasks as a tree; the height of a fork is 1 - cosine."""
    k = len(labels)
    drawn = dendrogram(clustering.linkage, no_plot=True)
    with _styled():
        figure, ax = _axes(3.6, max(1.6, 0.24 * k))
        for heights, places in zip(drawn["dcoord"], drawn["icoord"], strict=True):
            ax.plot(heights, [(p - 5) / 10 for p in places], color=MUTED, linewidth=1.2)
        ax.set_yticks(range(k), [labels[n] for n in clustering.order], fontsize=8)
        ax.set(ylim=(k - 0.5, -0.5), xlabel="1 \N{MINUS SIGN} cosine")
        low = min(float(clustering.linkage[:, 2].min()), 1.0)
        high = float(clustering.linkage[:, 2].max())
        ax.set_xlim(max(0.0, low - 0.25 * (high - low) - 0.02), high + 0.02)
        ax.yaxis.tick_left()
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    return figure


# -- curves and dots ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, points, number of its colour, and whether dashed."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dashed: bool = False


def curves(lines: Sequence[Line], ylabel: str, *, zero: bool = False) -> Figure:
    """Curves over training steps; many points are averaged to about a hundred.

    ``zero`` lets the vertical axis begin there, as counts should.
    """
    with _styled():
        figure, ax = _axes(4.7, 2.9)
        handles: list[Line2D] = []
        for line in lines:
            x, y = _thinned(line.x), _thinned(line.y)
            handles += ax.plot(
                x,
                y,
                color=colour(line.colour),
                linestyle=(0, (3, 2)) if line.dashed else "-",
                linewidth=1.5,
                marker="o" if len(x) <= 12 else None,
                markersize=3.2,
            )
        ax.set_xlabel("step")
        ax.set_ylabel(ylabel)
        ax.grid(axis="y", color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(6))
        if zero:
            ax.set_ylim(bottom=0)
        _legend(ax, handles, [line.name for line in lines])
    return figure


def _thinned(values: Sequence[float]) -> np.ndarray:
    """Means of consecutive stretches, at most about ``_POINTS`` of them."""
    array = np.asarray(values, dtype=float)
    width = max(1, round(len(array) / _POINTS))
    whole = len(array) // width * width
    return array[:whole].reshape(-1, width).mean(1)


def dots(
    rows: Sequence[str], series: Mapping[str, tuple[int, Sequence[float]]], xlabel: str
) -> Figure:
    """One row per name, one dot per series: (number of its colour, or -1 for ink; values)."""
    with _styled():
        figure, ax = _axes(4.7, 0.7 + 0.23 * max(2, len(rows)))
        table = np.array([values for _, values in series.values()], dtype=float)
        for n, row in enumerate(table.T):
            known = row[~np.isnan(row)]
            if known.size:
                ax.plot([known.min(), known.max()], [n, n], color=RULE, linewidth=2, zorder=1)
        handles: list[Line2D] = []
        for (number, values), marker in zip(series.values(), cycle("osD^vP"), strict=False):
            handles += ax.plot(
                values,
                range(len(rows)),
                marker,
                color=MUTED if number < 0 else colour(number),
                markersize=5,
                zorder=2,
            )
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel(xlabel)
        ax.grid(axis="x", color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        _legend(ax, handles, list(series))
    return figure


def _legend(ax: Axes, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    """A legend above the axes, in one row if it fits."""
    letters = [len(name) + 6 for name in names]
    ax.legend(
        handles,
        [f"\u2009{name}" for name in names],  # a name that began with _ would be left out
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(names) if sum(letters) < 62 else max(1, 62 // max(letters)),
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.6,
        handletextpad=0.3,
        fontsize=8,
    )
