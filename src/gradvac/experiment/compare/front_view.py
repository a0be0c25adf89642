"""A front as a table for the terminal, Markdown, LaTeX, CSV or JSON, and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gradvac import tables
from gradvac.experiment.compare.comparison_view import DIGITS, NAMES, plus_minus
from gradvac.experiment.compare.front import Estimate
from gradvac.experiment.compare.fronts import Front
from gradvac.experiment.figures.base import Picture
from gradvac.experiment.figures.write import write_picture
from gradvac.geometry.plots import INK, MUTED, RULE, axes, colour, legend, styled
from gradvac.tables import Table
from gradvac.writing import write_csv, write_text


def table(front: Front) -> Table:
    """One front as a table to read."""
    digits = DIGITS[front.metric]
    heads = ["", *front.axes, "distance", "verdict", "gained", "dominated by"]
    rows = [
        [
            place.name + (" +" if place.swept else ""),
            *(f"{x:.{digits}f}" for x in front.shown(place.mean)),
            _number(place.distance, digits + 1, sign="+"),
            place.verdict,
            "" if place.swept else _number(place.gain, digits),
            ", ".join(place.dominated_by),
        ]
        for place in front.places
    ]
    return Table(heads, rows, _title(front), words=("verdict", "dominated by"))


def notes(fronts: Sequence[Front]) -> list[str]:
    """Notes that explain the tables."""
    one = fronts[0]
    return [
        f"Front of {', '.join(one.swept)}: the line through those of their means over seeds "
        f"{', '.join(map(str, one.seeds))} that no other dominates. Distance: Euclidean, to the "
        "border of what lies below it; positive is outside. Of a row of the front (+): to that of "
        "the other ones, which is what one more temperature or weight may do.",
        "Intervals: 95%, jackknife over seeds, all rows leaving out the same seed (Student's t). "
        '"outside" and "inside": the interval does not hold 0. They are of one row and one metric, '
        "not corrected for the number of rows.",
        "Hypervolume (Zitzler and Thiele 1998): the area between the means and a reference point, "
        "what a model that knows nothing scores: 0, or NLL ln V. Gained: by adding the row.",
    ]


def tree(front: Front) -> dict[str, Any]:
    """Everything about a front as JSON types; NaN is None."""
    return {
        "metric": front.metric,
        "axes": list(front.axes),
        "swept": list(front.swept),
        "seeds": list(front.seeds),
        "reference": list(front.shown(front.reference)),
        "front": [list(front.shown(v)) for v in front.vertices],
        "hypervolume": _known(front.hypervolume),
        "rows": [
            {
                "row": place.name,
                "swept": place.swept,
                "mean": list(front.shown(place.mean)),
                "seeds": {str(s): list(front.shown(p)) for s, p in place.points.items()},
                "distance": _known(place.distance),
                "verdict": place.verdict,
                "hypervolume_gained": _known(place.gain),
                "dominated_by": list(place.dominated_by),
            }
            for place in front.places
        ],
    }


def write_pictures(fronts: Sequence[Front], out: Path, say: Callable[[str], None]) -> None:
    """Write each front as SVG, PDF, PNG and CSV into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for front in fronts:
        file = write_picture(picture(front), out)
        say(f"front: {file}.{{svg,pdf,png,csv}}")


def picture(front: Front) -> Picture:
    """High- against low-resource scores, one point per row and a faint one per seed."""
    columns = ("row", "swept", "seed", *front.axes)
    rows = [
        (p.name, p.swept, seed, *front.shown(point))
        for p in front.places
        for seed, point in [*p.points.items(), ("mean", p.mean)]
    ]
    rows += [("front", True, "", *front.shown(v)) for v in front.vertices]
    name = "-".join(["front", front.metric, *(a.replace(" ", "-") for a in front.axes)])
    caption = f"{_title(front)}. Line: front of {', '.join(front.swept)}. Small: single seeds."
    safe = name.replace("->", "-").lower()
    return Picture(safe, caption, _draw(front), columns, rows)


def _draw(front: Front) -> Figure:
    with styled():
        figure, ax = axes(4.7, 3.6)
        x, y = (min(p.mean[axis] for p in front.places) for axis in (0, 1))
        first, last = front.vertices[0], front.vertices[-1]
        border = [(min(x, first[0]), first[1]), *front.vertices, (last[0], min(y, last[1]))]
        line = [front.shown(point) for point in border]
        (drawn,) = ax.plot(*zip(*line, strict=True), color=MUTED, linewidth=1.2, zorder=2)
        handles, number = [drawn], 0
        for place in front.places:
            tint = MUTED if place.swept else colour(number)
            number += not place.swept
            for point in place.points.values() if len(place.points) > 1 else ():
                ax.plot(*front.shown(point), "o", color=tint, markersize=2.5, alpha=0.45, zorder=2)
            x, y = front.shown(place.mean)
            marker = "o" if place.swept else "D"
            handles += ax.plot(x, y, marker, color=tint, markersize=5, zorder=3)
            ax.annotate(
                place.name, (x, y), (5, 4), textcoords="offset points", fontsize=8, color=INK
            )
        ax.margins(0.12)
        worse = " (axes reversed)" if front.sign < 0 else ""
        ax.set_xlabel(f"{NAMES[front.metric]}, {front.axes[0]}{worse}")
        ax.set_ylabel(f"{NAMES[front.metric]}, {front.axes[1]}{worse}")
        if front.sign < 0:  # so that up and right is better here too
            ax.invert_xaxis()
            ax.invert_yaxis()
        ax.grid(color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        others = [h for h, p in zip(handles[1:], front.places, strict=True) if not p.swept]
        legend(ax, [drawn, *others[:1]], ["swept front", *["methods"] * bool(others)])
    return figure


def add_to(file: Path, fronts: Sequence[Front]) -> None:
    """Add the fronts to a written comparison; for CSV, write ``NAME-front.csv`` beside it."""
    if file.suffix == ".csv":
        _write_csv(fronts, file.with_name(f"{file.stem}-front.csv"))
        return
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        whole = {**json.loads(text), "fronts": [tree(front) for front in fronts]}
        text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    else:
        render = tables.markdown if file.suffix == ".md" else tables.latex
        text += "\n" + render(map(table, fronts), notes(fronts))
    write_text(file, text)


def _write_csv(fronts: Sequence[Front], file: Path) -> None:
    names = ("metric", "x", "y", "row", "swept", "mean_x", "mean_y", "distance", "half_width")
    lines: list[list[Any]] = [[*names, "verdict", "hypervolume_gained", "gained_half_width"]]
    for front in fronts:
        for p in front.places:
            half, more = _known(p.distance)["half_width"], _known(p.gain)["half_width"]
            mean = front.shown(p.mean)
            line = [front.metric, *front.axes, p.name, p.swept, *mean, p.distance.value, half]
            lines.append([*line, p.verdict, p.gain.value, more])
    write_csv(file, lines, "\n")


def _title(front: Front) -> str:
    digits = DIGITS[front.metric]
    volume = _number(front.hypervolume, digits)
    at = ", ".join(f"{x:.{digits}f}" for x in front.shown(front.reference))
    high, low = front.axes
    return f"front of {NAMES[front.metric]}, {high} and {low}: hypervolume {volume} from ({at})"


def _number(found: Estimate, digits: int, sign: str = "") -> str:
    return plus_minus(found.value, found.half, digits, sign)


def _known(found: Estimate) -> dict[str, float | None]:
    return {"value": found.value, "half_width": None if math.isnan(found.half) else found.half}
