"""How results look in a notebook: small HTML tables and one picture of any task gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TASKS = 16
"""More rows and columns of cosines are not readable: then pairs of extreme cosines are listed."""
MOST_ROWS = 40
"""Most parameter groups in a table."""
_SHOWN_PAIRS = 5


@dataclass(frozen=True)
class Agreement:
    """What a notebook shows of the gradients of K tasks.

    Attributes:
        title: one line about them.
        tasks: K names.
        groups: names of the parameter groups.
        cosine: by group, ``[groups, K, K]``; NaN where unknown.
        whole: of the whole model, ``[K, K]``.

    Example:
        >>> import torch
        >>> cosine = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]])
        >>> found = Agreement("step 3", ("fr", "hi"), ("encoder",), cosine, cosine[0])
        >>> found.conflicts()  # pairs below 0, pairs known, mean cosine
        [(1, 1, -0.5)]
    """

    title: str
    tasks: Sequence[str]
    groups: Sequence[str]
    cosine: Tensor
    whole: Tensor

    def conflicts(self) -> list[tuple[int, int, float]]:
        """For each group: pairs with a negative cosine, pairs with a known one, mean cosine."""
        k = len(self.tasks)
        above = torch.triu(torch.ones(k, k, dtype=torch.bool), 1)
        each = self.cosine[:, above]
        return [(int((c < 0).sum()), int((~c.isnan()).sum()), float(c.nanmean())) for c in each]

    def html(self) -> str:
        """The title, the cosines of the whole model, and the conflicts by group."""
        few = len(self.tasks) <= MOST_TASKS
        parts = [f"<p>{escape(self.title)}</p>"]
        if len(self.tasks) > 1:
            parts += [self._matrix() if few else self._extremes(), self._by_group()]
        return "\n".join(parts)

    def figure(self) -> Figure:
        """The cosines of the whole model, and the conflicts by group, side by side.

        It is outside pyplot, and shows itself once in a notebook. ImportError without Matplotlib.
        """
        figure, left, right = _panels(len(self.tasks), len(self.groups), self.title)
        self._draw_matrix(figure, left)
        self._draw_groups(right)
        return figure

    def _limit(self) -> float:
        """The largest size of a cosine of two different tasks: the end of the colour scale."""
        apart = self.whole[~torch.eye(len(self.tasks), dtype=torch.bool)].abs()
        known = apart[~apart.isnan()]
        return max(float(known.max()), 0.05) if len(known) else 1.0

    def _matrix(self) -> str:
        limit, rows = self._limit(), []
        for task, row in zip(self.tasks, self.whole.tolist(), strict=True):
            named = zip(self.tasks, row, strict=True)
            cells = "".join(_cell(value, limit, task == other) for other, value in named)
            rows.append(f"<tr><th>{escape(task)}</th>{cells}</tr>")
        head = "".join(f"<th>{escape(task)}</th>" for task in self.tasks)
        return _table("cosines of the task gradients, whole model", f"<th></th>{head}", rows)

    def _extremes(self) -> str:
        k = len(self.tasks)
        found = [
            (float(self.whole[i, j]), f"{self.tasks[i]}, {self.tasks[j]}")
            for i in range(k)
            for j in range(i + 1, k)
            if not bool(self.whole[i, j].isnan())
        ]
        found.sort()
        ends = found[:_SHOWN_PAIRS] + found[max(_SHOWN_PAIRS, len(found) - _SHOWN_PAIRS) :]
        rows = [f"<tr><th>{escape(pair)}</th>{_cell(c, self._limit())}</tr>" for c, pair in ends]
        title = f"lowest and highest cosines of {len(found)} pairs, whole model"
        return _table(title, "<th>pair</th><th>cosine</th>", rows)

    def _by_group(self) -> str:
        shown = list(zip(self.groups, self.conflicts(), strict=True))
        rows = [
            f"<tr><th>{escape(group)}</th><td>{below} of {pairs}</td><td>{mean:.2f}</td></tr>"
            for group, (below, pairs, mean) in shown[:MOST_ROWS]
        ]
        if more := len(shown) - len(rows):
            rows.append(f"<tr><th>and {more} more groups</th><td></td><td></td></tr>")
        head = "<th>parameter group</th><th>pairs below 0</th><th>mean cosine</th>"
        return _table("conflicts by parameter group", head, rows)

    def _draw_matrix(self, figure: Figure, ax: Axes) -> None:
        limit, k = self._limit(), len(self.tasks)
        shown = self.whole.clone()
        shown.fill_diagonal_(float("nan"))
        image = ax.imshow(shown.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
        ax.set_xticks(range(k), self.tasks, rotation=90)
        ax.set_yticks(range(k), self.tasks)
        ax.set_title("cosine, whole model", fontsize=10)
        for i, j in torch.cartesian_prod(torch.arange(k), torch.arange(k)).tolist():
            value = float(shown[i, j])
            if k <= MOST_TASKS and value == value:
                dark = "white" if abs(value) > 0.6 * limit else "black"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=dark)
        figure.colorbar(image, ax=ax, shrink=0.8)

    def _draw_groups(self, ax: Axes) -> None:
        found = self.conflicts()
        shares = [100 * below / pairs if pairs else 0.0 for below, pairs, _ in found]
        ax.barh(range(len(found)), shares, color="#d55e00")
        ax.set_yticks(range(len(found)), self.groups)
        ax.invert_yaxis()  # the first group at the top
        ax.set_xlim(0, max(10.0, *shares, 0.0) * 1.15)
        ax.set_title("pairs of tasks in conflict, by parameter group", fontsize=10)
        ax.set_xlabel("% of pairs with a negative cosine")
        for n, (below, pairs, _) in enumerate(found):
            ax.text(shares[n], n, f" {below} of {pairs}", va="center", fontsize=7)


def _panels(k: int, groups: int, title: str) -> tuple[Figure, Axes, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("plot() needs Matplotlib: pip install 'gradvac[toolkit]'") from e

    class Shown(Figure):
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self) -> bytes:
            import io

            data = io.BytesIO()
            self.savefig(data, format="png")
            return data.getvalue()

    height = min(max(3.0, 0.32 * k + 1.2, 0.2 * groups + 1.2), 14)
    figure = Shown(figsize=(min(0.42 * k + 3, 9) + 5, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    return figure, left, right


def _cell(value: float, limit: float, own: bool = False) -> str:
    """A cell, blue above 0 and red below, the stronger the further from 0."""
    if own or value != value:
        return f"<td style='color:#888'>{'1' if own else '-'}</td>"
    colour = "0,90,180" if value > 0 else "200,60,0"
    strength = min(abs(value) / limit, 1.0) * 0.6
    return f"<td style='background:rgba({colour},{strength:.2f})'>{value:.2f}</td>"


def _table(title: str, head: str, rows: Sequence[str]) -> str:
    body = "".join(rows)
    caption = f"<caption style='white-space:nowrap;text-align:left'>{escape(title)}</caption>"
    return f"<table>{caption}<tr>{head}</tr>{body}</table>"
