"""Pictures of a run: common parts, curves and dots; see also `heatmaps` and `panels`.

Every function returns a Matplotlib ``Figure`` outside pyplot's state: save it
with :func:`save` (SVG, PDF, PNG) or embed :func:`svg`, whose text is the same in every process.
The palette is Okabe and Ito's, which can be distinguished with any colour vision.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = ["Line", "curves", "dots", "save", "svg"]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, RULE = "#1d2126", "#5d6772", "#d3d7db"
MARKERS = "osD^vP"  # by the number of a colour: for readers who cannot distinguish colours
STYLES: tuple[Any, ...] = ("-", (0, (3, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
"""Of lines: the next one each time the colours begin again."""
ROUND = (1, 2, 2.5, 5, 10)  # steps between the numbers on an axis, times a power of ten
_POINTS = 120  # of a curve: more would be narrower than the line

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
def styled() -> Iterator[None]:
    """Use the style of all pictures inside."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that the font lacks are drawn by the viewer of the SVG: its text stays text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def colour(n: int) -> str:
    """The colour of the n-th series of a report."""
    return PALETTE[n % len(PALETTE)]


def svg(figure: Figure) -> str:
    """Return the figure as SVG, with text as text and without date; equal figures give equal text.

    Example:
        >>> from gradvac.geometry.plots import dots, svg
        >>> text = svg(dots(["fr", "hi"], {"joint": (0, [20.0, 30.0])}, "BLEU"))
        >>> text.startswith("<?xml"), "BLEU" in text
        (True, True)
    """
    out = io.StringIO()
    with styled():
        figure.savefig(
            out,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.04,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    return out.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a file in the format of its suffix: ``.svg``, ``.pdf`` or ``.png``.

    The same figure gives the same bytes. PNG has a white background, the others have none.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from gradvac.geometry.plots import dots, save
        >>> file = Path(tempfile.mkdtemp(), "scores.png")
        >>> save(dots(["fr", "hi"], {"joint": (0, [20.0, 30.0])}, "BLEU"), file)
        >>> file.read_bytes()[:4]
        b'\x89PNG'
    """
    if path.suffix == ".svg":
        path.write_text(svg(figure), encoding="utf-8")
        return
    no_date: dict[str, Any] = {"CreationDate": None} if path.suffix == ".pdf" else {}
    paper = "#ffffff" if path.suffix == ".png" else "none"
    with styled():
        figure.savefig(path, bbox_inches="tight", dpi=200, metadata=no_date, facecolor=paper)


def axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes; the size is in inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, points, number of its colour, and whether dashed.

    ``low`` and ``high``, if given, are the edges of a band around it, such as of several seeds.

    Example:
        >>> from gradvac.geometry.plots import Line
        >>> Line("joint", x=[0, 100], y=[3.0, 2.5], colour=0).dashed
        False
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dashed: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def curves(lines: Sequence[Line], ylabel: str, *, zero: bool = False) -> Figure:
    """Curves over training steps; many points are averaged to about a hundred.

    ``zero`` makes the vertical axis begin at 0, for counts.

    Example:
        >>> from gradvac.geometry.plots import Line, curves
        >>> figure = curves([Line("joint", [0, 100], [3.0, 2.5], colour=0)], "loss", zero=True)
        >>> float(figure.axes[0].get_ylim()[0])
        0.0
    """
    with styled():
        figure, ax = axes(4.7, 2.9)
        handles = draw_lines(ax, lines)
        ax.set_xlabel("step")
        ax.set_ylabel(ylabel)
        if zero:
            ax.set_ylim(bottom=0)
        legend(ax, handles, [line.name for line in lines])
    return figure


def draw_lines(ax: Axes, lines: Sequence[Line]) -> list[Line2D]:
    """Draw curves onto axes; returns the handles for a legend."""
    handles: list[Line2D] = []
    for line in lines:
        x, y = _thinned(line.x), _thinned(line.y)
        again = line.colour // len(PALETTE)  # how often the colours have begun again
        handles += ax.plot(
            x,
            y,
            color=colour(line.colour),
            linestyle=STYLES[max(again, int(line.dashed)) % len(STYLES)],
            linewidth=1.5,
            marker=MARKERS[(line.colour + again) % len(MARKERS)] if len(x) <= 12 else None,
            markersize=3.2,
        )
        if line.low:
            ends = _thinned(line.low), _thinned(line.high)
            ax.fill_between(x, *ends, color=colour(line.colour), alpha=0.18, linewidth=0)
    ax.grid(axis="y", color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
    ax.xaxis.set_major_formatter(FuncFormatter(_count))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    return handles


def _count(value: float, _: object) -> str:
    """A number of steps or tokens, short enough for an axis: 400, 80k, 1.5M."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:,.0f}"


def _thinned(values: Sequence[float]) -> np.ndarray:
    """Means of consecutive parts, at most about ``_POINTS`` of them."""
    array = np.asarray(values, dtype=float)
    width = max(1, round(len(array) / _POINTS))
    whole = len(array) // width * width
    return array[:whole].reshape(-1, width).mean(1)


def dots(
    rows: Sequence[str], series: Mapping[str, tuple[int, Sequence[float]]], xlabel: str
) -> Figure:
    """One row per name, one dot per series: (number of its colour, or -1 for ink; values).

    Example:
        >>> from gradvac.geometry.plots import dots
        >>> figure = dots(["fr", "hi"], {"joint": (0, [20.0, 30.0])}, "BLEU")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['fr', 'hi']
    """
    with styled():
        figure, ax = axes(4.7, 0.7 + 0.23 * max(2, len(rows)))
        table = np.array([values for _, values in series.values()], dtype=float)
        for n, row in enumerate(table.T):
            known = row[~np.isnan(row)]
            if known.size:
                ax.plot([known.min(), known.max()], [n, n], color=RULE, linewidth=2, zorder=1)
        handles: list[Line2D] = []
        for (number, values), marker in zip(series.values(), cycle(MARKERS), strict=False):
            handles += ax.plot(
                values,
                range(len(rows)),
                marker,
                color=MUTED if number < 0 else colour(number),
                markerfacecolor="none" if number >= len(PALETTE) else None,
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
        legend(ax, handles, list(series))
    return figure


def legend(
    onto: Axes | Figure, handles: Sequence[Any], names: Sequence[str], wide: int = 62
) -> None:
    """A legend above axes or a figure, in one row if that is at most ``wide`` letters."""
    letters = [len(name) + 6 for name in names]
    onto.legend(
        handles,
        [f"\u2009{name}" for name in names],  # a name that began with _ would be left out
        loc="lower left",
        bbox_to_anchor=(0.02, 0.965) if isinstance(onto, Figure) else (0, 1.0),
        ncols=len(names) if sum(letters) < wide else max(1, wide // max(letters)),
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.6,
        handletextpad=0.3,
        fontsize=8,
    )
