"""Pictures with several panels, and of named numbers: curves, points, bars, strips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from gradvac.geometry.plots import (
    INK,
    MUTED,
    PALETTE,
    ROUND,
    RULE,
    STYLES,
    Line,
    axes,
    colour,
    draw_lines,
    legend,
    styled,
)

__all__ = ["Panel", "bars", "line_panels", "scatter", "strips"]

Span = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """Curves on the same axes, with the label of the vertical axis and a title.

    Example:
        >>> from gradvac.geometry.panels import Panel
        >>> from gradvac.geometry.plots import Line
        >>> Panel([Line("joint", [0, 1], [3.0, 2.5], colour=0)], "loss").ylabel
        'loss'
    """

    lines: Sequence[Line]
    ylabel: str
    title: str = ""
    zero: bool = False


def line_panels(
    panels: Sequence[Panel], xlabel: str = "step", *, stacked: bool = False, same_y: bool = True
) -> Figure:
    """Panels side by side, or one below the other, under one legend of all that is drawn.

    Example:
        >>> from gradvac.geometry.panels import Panel, line_panels
        >>> from gradvac.geometry.plots import Line
        >>> lines = [Line("joint", [0, 1], [3.0, 2.5], colour=0)]
        >>> len(line_panels([Panel(lines, "loss", "fr"), Panel(lines, "loss", "hi")]).axes)
        2
    """
    n = len(panels)
    with styled():
        size = (4.7, 2.3 * n + 0.4) if stacked else (3.6 * n + 0.4, 2.9)
        figure = Figure(figsize=size)
        shape = (n, 1) if stacked else (1, n)
        grid = figure.subplots(*shape, squeeze=False, sharex=stacked, sharey=same_y)
        handles: dict[str, Line2D] = {}
        for ax, panel in zip(grid.ravel(), panels, strict=True):
            drawn = draw_lines(ax, panel.lines)
            handles |= dict(zip((line.name for line in panel.lines), drawn, strict=True))
            ax.set_title(panel.title, fontsize=9, loc="left")
            ax.set_ylabel(panel.ylabel)
        for ax, panel in zip(grid.ravel(), panels, strict=True):
            if panel.zero:  # after all panels have set the limits of a shared axis
                ax.set_ylim(0, ax.get_ylim()[1])
        for ax in grid[-1]:
            ax.set_xlabel(xlabel)
        if same_y and not stacked:
            for ax in grid[0, 1:]:
                ax.set_ylabel("")
        figure.align_ylabels()
        figure.tight_layout()
        if len(handles) > 1 or any(line.name for panel in panels for line in panel.lines):
            wide = 90 if not stacked and n > 1 else 62
            legend(figure, list(handles.values()), list(handles), wide)
    return figure


def scatter(
    names: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    xlabel: str,
    ylabel: str,
    title: str = "",
    spread: tuple[Sequence[Span | None], Sequence[Span | None]] | None = None,
) -> Figure:
    """Named points, with the least-squares line where there are three or more.

    ``spread`` has the ends of a bar through each point, first horizontal, then vertical.

    Example:
        >>> from gradvac.geometry.panels import scatter
        >>> figure = scatter(["fr", "hi"], [0.1, 0.4], [20.0, 30.0], "cosine", "BLEU")
        >>> figure.axes[0].get_ylabel()
        'BLEU'
    """
    with styled():
        figure, ax = axes(4.2, 3.2)
        ax.plot(x, y, "o", color=colour(0), markersize=5, zorder=3)
        for a, b, across, up in zip(x, y, *spread, strict=True) if spread else ():
            for ends in (across and (across, (b, b)), up and ((a, a), up)):
                if ends:
                    ax.plot(*ends, color=colour(0), linewidth=1, alpha=0.5)
        if len(set(x)) > 2:
            slope, start = np.polyfit(x, y, 1)
            ends = np.array([min(x), max(x)])
            ax.plot(ends, start + slope * ends, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        for name, a, b in zip(names, x, y, strict=True):
            ax.annotate(
                name, (a, b), xytext=(5, 3), textcoords="offset points", fontsize=8, color=INK
            )
        ax.margins(0.12)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.set_title(title, fontsize=9, loc="left")
        ax.grid(color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    return figure


def bars(
    names: Sequence[str],
    values: Sequence[float],
    ylabel: str,
    kinds: Sequence[str] | None = None,
    *,
    log: bool = False,
) -> Figure:
    """A bar per name; ``kinds`` gives their colours and a legend.

    Example:
        >>> from gradvac.geometry.panels import bars
        >>> figure = bars(["encoder", "decoder"], [0.4, 0.3], "cosine")
        >>> len(figure.axes[0].patches)
        2
    """
    kinds = kinds or [""] * len(names)
    order = list(dict.fromkeys(kinds))
    with styled():
        figure, ax = axes(max(2.6, 0.28 * len(names) + 0.8), 2.7)
        handles: dict[str, Any] = {}
        for n, (value, kind) in enumerate(zip(values, kinds, strict=True)):
            found = ax.bar(n, value, color=colour(order.index(kind)), width=0.72)
            handles.setdefault(kind, found)
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        ax.tick_params(axis="x", length=0)
        ax.set_xlim(-0.7, len(names) - 0.3)
        ax.set_ylabel(f"{ylabel} (logarithmic scale)" if log else ylabel)
        ax.grid(axis="y", color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        if log:
            ax.set_yscale("log")
            least = min((value for value in values if value > 0), default=1)
            ax.set_ylim(bottom=10 ** math.floor(math.log10(least)))  # a bar needs a lower end
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.yaxis.set_minor_locator(NullLocator())
        else:
            ax.axhline(0, color=MUTED, linewidth=0.7)
        if any(kinds):
            legend(ax, list(handles.values()), list(handles), 11 * len(names))
    return figure


def strips(
    columns: Sequence[str],
    rows: Sequence[tuple[str, int, Sequence[float]]],
    ylabel: str,
    *,
    joined: bool = True,
    spread: Sequence[Sequence[Span | None]] = (),
) -> Figure:
    """A line per row (name, number of its colour, values [columns]) over a few columns.

    ``spread``, a list per row, has the ends of a bar through each point.
    Columns without an order should not be ``joined``: then only points are drawn.

    Example:
        >>> from gradvac.geometry.panels import strips
        >>> figure = strips(["high", "low"], [("joint", 0, [30.0, 20.0])], "BLEU")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['high', 'low']
    """
    with styled():
        few = len(columns) <= 4
        figure, ax = axes((1.5 if few else 0.42) * len(columns) + 1.2, 3.0)
        handles = []
        for n, ((_, number, values), marker) in enumerate(
            zip(rows, cycle("osD^vPX"), strict=False)
        ):
            handles += ax.plot(
                range(len(columns)),
                values,
                color=colour(number),
                marker=marker,
                markersize=4.5,
                linewidth=1.1,
                linestyle=STYLES[n // len(PALETTE) % len(STYLES)] if joined else "none",
                markerfacecolor="none" if n >= len(PALETTE) else None,
            )
        for (_, number, _), ends in zip(rows, spread, strict=False):
            for n, both in enumerate(ends):
                if both:
                    ax.plot((n, n), both, color=colour(number), linewidth=3, alpha=0.35)
        ax.set_xticks(range(len(columns)), columns, rotation=0 if few else 90)
        ax.set_xlim(-0.3, len(columns) - 0.7)
        ax.set_ylabel(ylabel)
        ax.grid(axis="y", color=RULE, linewidth=0.6)
        ax.axhline(0, color=MUTED, linewidth=0.7)
        ax.legend(
            handles,
            [name for name, *_ in rows],
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
            fontsize=8,
        )
    return figure
