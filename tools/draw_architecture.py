"""The picture of docs/architecture.md: the rooms of the package and which imports which.

    python -m tools.draw_architecture                      # writes docs/images/architecture.svg
    python -m tools.draw_architecture --out rooms.png      # or another file

Boxes have fixed places; arrows are read from the imports in the source. An arrow that follows from
others (from the command line to the methods, by way of the engine) is left out.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from gradvac.geometry.plots import INK, MUTED, axes, save, styled

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gradvac"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"

# A room: left, bottom, width, height, colour, what it is for.
ROOMS: dict[str, tuple[float, float, float, float, str, str]] = {
    "cli": (0.0, 8.3, 10.5, 0.7, "#dde2e8", "verbs and their options"),
    "experiment": (2.45, 4.6, 8.05, 3.2, "#fff1cc", "recipes, runs, training, results"),
    "corpus": (0.0, 2.6, 2.2, 0.85, "#d9f0e6", "builds corpus folders"),
    "tagging": (2.45, 2.6, 2.2, 0.85, "#d9f0e6", "encoders, labels"),
    "translation": (4.9, 2.6, 2.2, 0.85, "#d9f0e6", "model, search, scores"),
    "geometry": (7.35, 2.6, 2.2, 0.85, "#dcebf7", "measures and draws"),
    "integrations": (9.8, 2.6, 2.2, 0.85, "#dcebf7", "Trainer, Accelerate"),
    "data": (2.45, 1.2, 2.2, 0.85, "#d9f0e6", "encoded text, batches"),
    "text": (0.0, -0.2, 4.65, 0.75, "#d9f0e6", "reads, checks and cleans text; languages"),
    "engine": (5.9, 0.8, 6.1, 1.25, "#dcebf7", "exact gradients of every task"),
    "methods": (5.9, -0.4, 6.1, 0.75, "#f5dde8", "Gram matrix in, weights of the tasks out"),
}
# Rooms within rooms, in rows from top to bottom.
INNER = {
    "experiment": [
        ["sweep", "compare", "report", "figures"],
        ["translation", "tagging", "encoder", "view"],
        ["training", "run", "recipe"],
    ],
    "engine": [["samples", "tracing", "planning", "gradients", "ranks"]],
}


def imports() -> set[tuple[str, str]]:
    """(importing room, imported room) for every import between two rooms."""
    found = set()
    for file in SOURCE.rglob("*.py"):
        room = file.relative_to(SOURCE).parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradvac."):
                other = (node.module or "").split(".")[1]
                if room in ROOMS and other in ROOMS and room != other:
                    found.add((room, other))
    return found


def arrows(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The imports that do not follow from others."""
    reached = {a: {b for x, b in found if x == a} for a in ROOMS}
    for _ in ROOMS:
        for a in ROOMS:
            reached[a] |= {c for b in reached[a] for c in reached[b]}
    return {(a, b) for a, b in found if not any(b in reached[c] for x, c in found if x == a)}


def draw(ax: Axes) -> None:
    """Draw all rooms and arrows."""
    ax.add_patch(Rectangle((-0.3, -0.7), 12.6, 10.0, color="white", zorder=-1))
    for name, (left, bottom, width, height, colour, purpose) in ROOMS.items():
        _box(ax, left, bottom, width, height, colour)
        inner = INNER.get(name, [])
        top = bottom + height - (0.2 if inner else height / 2 - 0.13)
        ax.text(left + width / 2, top, f"{name}/", ha="center", va="center", weight="bold")
        ax.text(
            left + width / 2, top - 0.26, purpose, ha="center", va="center", size=7.5, color=MUTED
        )
        for n, row in enumerate(reversed(inner)):
            step = (width - 0.3) / len(row)
            for m, room in enumerate(row):
                x, y = left + 0.2 + m * step, bottom + 0.15 + n * 0.82
                _box(ax, x, y, step - 0.1, 0.5, "white")
                ax.text(x + step / 2 - 0.05, y + 0.25, f"{room}/", ha="center", va="center")
    for a, b in sorted(arrows(imports())):
        _arrow(ax, a, b)
    ax.set(xlim=(-0.3, 12.3), ylim=(-0.7, 9.3))
    ax.axis("off")


def _box(ax: Axes, left: float, bottom: float, width: float, height: float, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.12"
    shape = FancyBboxPatch((left, bottom), width, height, style, fc=colour, ec=MUTED, lw=0.8)
    ax.add_patch(shape)


def _arrow(ax: Axes, a: str, b: str) -> None:
    """From the lower edge of a room to the upper edge of the one below, as upright as it can be."""
    left, bottom, width, *_ = ROOMS[a]
    other, below, wide, height, *_ = ROOMS[b]
    ends = []
    low, high = max(left, other) + 0.3, min(left + width, other + wide) - 0.3
    for start, size in ((left, width), (other, wide)):
        middle = (low + high) / 2 if low < high else other + wide / 2 if start == left else left
        ends.append(min(max(middle, start + 0.3), start + size - 0.3))
    ax.add_patch(
        FancyArrowPatch(
            (ends[0], bottom),
            (ends[1], below + height),
            arrowstyle="-|>",
            mutation_scale=9,
            shrinkA=0,
            shrinkB=0,
            color=INK,
            lw=0.9,
            gid=f"{a}-{b}",  # the test of the page reads it
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args()
    with styled():
        figure, ax = axes(9.5, 7.5)
        draw(ax)
    save(figure, args.out)


if __name__ == "__main__":
    main()
