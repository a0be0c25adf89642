"""Draw where each method goes on the two-parameter toy of Liu et al. 2021, and print how it ends.

    python -m tools.trajectories [--steps 3000] [--learning-rate 0.02] [--out FILE.png]

The toy is that of CAGrad (NeurIPS 2021), after Yu et al. 2020: two losses over theta = (x, y) whose
gradients oppose each other along curved valleys, and one is much steeper than the other there.
Every step goes through gradvac.Engine, as in anybody's loop; torchjd is needed for the last
two panels, which are left out without it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from gradvac import Engine, GradientError
from gradvac.methods import METHODS, Method

TASKS = ("1", "2")
STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))  # those of the authors of CAGrad
COLOURS = ("#d55e00", "#0072b2", "#009e73")  # Okabe and Ito
MARKS = ("s", "^", "D")
# Added to both losses, so that methods that take logarithms or ratios of losses (FAMO, GradNorm)
# see positive ones: neither falls below -20. No gradient changes.
OFFSET = 21.0
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "static": {"static 1:3": {"weights": {"1": 0.5, "2": 1.5}}},
    "gradvac": {"gradvac": {}, "gradvac target 0.5": {"target": 0.5}},
    "cats": {"cats": {"units": "share"}},
    "torchjd": {
        "torchjd CAGrad": {"weighting": "CAGrad", "options": {"c": 0.5}},
        "torchjd UPGrad": {"weighting": "UPGrad"},
    },
}
AGAINST = -1e-3  # cosine of update and task gradient: solvers of quadratic programs err by 1e-4
ARRIVED = (
    0.05  # an update shorter than this share of the longer gradient has no direction to speak of
)


def losses(theta: Tensor) -> Tensor:
    """Both losses at points ``[..., 2]``, ``[..., 2]``: the formulas of the authors' code."""
    x, y = theta[..., 0], theta[..., 1]
    upper, lower = (0.5 * y).tanh().clamp_min(0), (-0.5 * y).tanh().clamp_min(0)
    valleys = (0.5 * (-x - 7) - (-y).tanh(), 0.5 * (-x + 3) + (-y).tanh() + 2)
    bowls = (((-x + s) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20 for s in (7, -7))
    return torch.stack(
        [
            upper * (v.abs().clamp_min(5e-6).log() + 6) + lower * b + OFFSET
            for v, b in zip(valleys, bowls, strict=True)
        ],
        dim=-1,
    )


@dataclass
class Descent:
    """A descent: points ``[steps + 1, 2]``, steps on the way, and those of them against a task."""

    points: Tensor
    on_the_way: int
    opposed: int

    @property
    def end(self) -> Tensor:
        return losses(self.points[-1]) - OFFSET


def descend(
    method: Method, start: tuple[float, float], steps: int, learning_rate: float
) -> Descent:
    """Follow Adam on the gradient that a method makes of the two."""
    model = nn.Module()
    model.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    engine = Engine(model, method, "whole_model")
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    points, on_the_way, opposed = [model.theta.detach().clone()], 0, 0
    for _ in range(steps):
        optimizer.zero_grad()
        values = losses(model.theta)
        report = engine.backward(dict(zip(TASKS, values, strict=True)))
        gram, weights = report.gram[0], report.weights[0]
        length = (weights @ gram @ weights).clamp_min(0).sqrt()
        if length >= ARRIVED * gram.diagonal().max().sqrt():
            on_the_way += 1
            opposed += bool((gram @ weights < AGAINST * length * gram.diagonal().sqrt()).any())
        optimizer.step()
        points.append(model.theta.detach().clone())
    return Descent(torch.stack(points), on_the_way, opposed)


def panels() -> dict[str, Callable[[], Method]]:
    """Every registered method by the title of its panel; some in two settings."""
    made: dict[str, Callable[[], Method]] = {}
    for name, kind in METHODS.items():
        for title, options in SETTINGS.get(name, {name: {}}).items():
            try:
                kind(**options)
            except GradientError as e:  # TorchJD, or what its weighting needs, is not installed
                print(f"{title} is left out: {e}")
                continue
            made[title] = partial(kind, **options)
    return made


def table(paths: dict[str, list[Descent]]) -> str:
    """How each descent ended, in Markdown: the mean of the two losses and the losses."""
    heads = [f"from ({x:g}, {y:g})" for x, y in STARTS]
    lines = [
        "| method | " + " | ".join(heads) + " | steps against a task |",
        "|---|" + "---|" * (len(STARTS) + 1),
    ]
    for name, own in paths.items():
        ends = [f"{p.end.mean():.2f} ({p.end[0]:.2f}, {p.end[1]:.2f})" for p in own]
        share = sum(p.opposed for p in own) / max(1, sum(p.on_the_way for p in own))
        lines.append(f"| `{name}` | " + " | ".join(ends) + f" | {share:.0%} |")
    return "\n".join(lines)


def picture(paths: dict[str, list[Descent]]) -> Figure:
    """Small multiples, one per method, on one surface."""
    columns = 4
    rows = math.ceil(len(paths) / columns)
    style = {"font.size": 9, "font.family": "DejaVu Sans", "axes.linewidth": 0.6}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 2.75 * rows + 0.55), layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axes in all_axes[len(paths) :]:
            axes.set_axis_off()
        for k, (title, own) in enumerate(paths.items()):
            _panel(all_axes[k], title, own)
            below = k + columns >= len(paths)
            all_axes[k].tick_params(labelbottom=below, labelleft=k % columns == 0, length=2)
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _panel(axes: Axes, title: str, own: list[Descent]) -> None:
    """The mean loss as a grey surface, and the paths on it."""
    side = torch.linspace(-10, 10, 240, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
    surface = losses(grid).mean(-1) - OFFSET
    axes.contourf(side, side, surface, levels=14, cmap="Greys", alpha=0.55, antialiased=True)
    axes.plot(*pareto_set().T, color="black", linewidth=4, alpha=0.4, label="Pareto set")
    for path, colour, mark, start in zip(own, COLOURS, MARKS, STARTS, strict=True):
        x, y = path.points.T.numpy()
        axes.plot(x, y, color=colour, linewidth=1.6)
        axes.plot(x[0], y[0], mark, color=colour, markersize=6, markeredgecolor="white")
        axes.plot(x[-1], y[-1], "*", color=colour, markersize=12, markeredgecolor="white")
        axes.plot([], [], mark, color=colour, label=f"start ({start[0]:g}, {start[1]:g})")
    axes.plot([], [], "*", color="#5d6772", markersize=9, label="end")
    axes.set(xlim=(-10, 10), ylim=(-10, 10), xticks=[-8, 0, 8], yticks=[-8, 0, 8], aspect="equal")
    axes.set_title(title, fontsize=10, loc="left", pad=3)


def pareto_set(n: int = 57) -> Tensor:
    """Points ``[n, 2]`` of the Pareto set, which lies below 0 between x = -7 and 7.

    With weights (x + 7) / 14 and (7 - x) / 14 the slopes in x cancel, and the weighted sum of the
    losses is tanh(-y / 2) ((49 - x^2) / 10 + (y + 8)^2 / 100 - 20) in y: its minimum is the point.
    """
    x = torch.linspace(-7, 7, n, dtype=torch.float64)
    y = torch.linspace(-10, -6, 40_001, dtype=torch.float64)
    sums = (-y / 2).tanh() * ((49 - x[:, None] ** 2) / 10 + (y + 8) ** 2 / 100 - 20)
    return torch.stack([x, y[sums.argmin(1)]], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--out", type=Path, help="the picture, PNG or SVG")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = {
        title: [descend(make(), start, args.steps, args.learning_rate) for start in STARTS]
        for title, make in panels().items()
    }
    print(table(paths))
    if args.out:
        picture(paths).savefig(args.out, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
