"""`gradvac compare --front`: the front of a comparison per metric, and the rows outside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.compare.compare import Comparison, Row
from gradvac.experiment.compare.front import Estimate, Place, Point, places
from gradvac.experiment.compare.results import LOWER_IS_BETTER, Metric
from gradvac.experiment.run.contents import Shape
from gradvac.reading import read_json
from gradvac.translation.scoring import SIDES

ON_FRONT: tuple[Metric, ...] = ("bleu", "chrf", "comet", "nll")


@dataclass(frozen=True)
class Front:
    """A front of two columns of a metric.

    Scores in it are larger-is-better: NLL is negated, ``sign`` -1. ``vertices`` are the
    non-dominated means of the swept rows, ``seeds`` are those that all swept rows have.
    """

    metric: Metric
    axes: tuple[str, str]
    sign: int
    swept: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: Point
    vertices: list[Point]
    hypervolume: Estimate
    places: list[Place]

    def shown(self, point: Point) -> Point:
        """A point in the metric's own sign."""
        return self.sign * point[0], self.sign * point[1]


def fronts(
    found: Comparison,
    sweep: Sequence[str] = (),
    axes: str | None = None,
    reference: Point | None = None,
) -> list[Front]:
    """The fronts of a comparison: one per metric and side that has both levels.

    ``sweep`` names the rows that make the front; by default those the recipe names, or all rows
    trained jointly or with static weights with the baseline's model. ``axes`` is two columns, by
    default "high,low". ``reference`` is the reference point of the hypervolume in the metric's own
    units, by default the scores of an untrained model: 0, or NLL ln V. Raises RecipeError for names
    that do not exist, RunError if nothing can be drawn.
    """
    swept = _swept(found, sweep)
    made = []
    for metric in ON_FRONT:
        sign = -1 if metric in LOWER_IS_BETTER else 1
        for pair in _axes(found, axes):
            points = {row.name: _points(row, metric, pair, sign) for row in found.rows}
            if not (seeds := set.intersection(*(set(points[name]) for name in swept))):
                continue  # COMET that was not computed for all of them
            worst = _worst(found, metric) if reference is None else reference
            zero = (sign * worst[0], sign * worst[1])
            rows, vertices, volume = places(points, swept, zero)
            order = tuple(sorted(seeds))
            made.append(
                Front(metric, pair, sign, tuple(swept), order, zero, vertices, volume, rows)
            )
    if not made:
        raise RunError(
            f"--front: {', '.join(swept)} have no seed in common that all were scored on"
        )
    return made


def _swept(found: Comparison, asked: Sequence[str]) -> list[str]:
    names = [row.name for row in found.rows]
    if unknown := [name for name in asked if name not in names]:
        raise RecipeError(f"--sweep: {unknown[0]!r} is no row; rows: {', '.join(names)}")
    swept = list(asked) or [name for name in found.front if name in names]
    if not swept:
        shape = next(r for r in found.rows if r.name == found.baseline).first.recipe.shape
        swept = [row.name for row in found.rows if _is_swept(row, shape)]
    if len(swept) < 2:
        raise RunError(
            f"--front: trained jointly or with static weights: {', '.join(swept) or 'no row'}; a "
            "front takes two or more: say which with --sweep, or front: in the recipe"
        )
    return swept


def _is_swept(row: Row, shape: str) -> bool:
    recipe = row.first.recipe
    fixed = recipe.method.name in ("joint", "static")
    return fixed and not row.several_models and recipe.shape == shape


def _axes(found: Comparison, asked: str | None) -> list[tuple[str, str]]:
    columns = [*found.directions, *found.zero_shot, *found.averages]
    if asked is not None:
        names = [name.strip() for name in asked.split(",")]
        if len(names) != 2 or not set(names) <= set(columns):
            raise RecipeError(
                f"--axes: found {asked!r}, must be two columns with a comma between them, of: "
                + ", ".join(columns)
            )
        return [(names[0], names[1])]
    sides = ["", *(f"{label} " for label in SIDES.values())]
    pairs = [(f"{side}high", f"{side}low") for side in sides]
    if there := [pair for pair in pairs if set(pair) <= set(columns)]:
        return there
    raise RunError(
        "--front: no directions of high and of low resource level on one side; name two columns "
        f"with --axes, of: {', '.join(columns)}"
    )


def _points(row: Row, metric: Metric, axes: tuple[str, str], sign: int) -> dict[int, Point]:
    cells = [row.cells[metric].get(column) for column in axes]
    if cells[0] is None or cells[1] is None:
        return {}
    x, y = (dict(zip(c.seeds, c.values, strict=True)) for c in cells if c is not None)
    return {seed: (sign * x[seed], sign * y[seed]) for seed in x if seed in y}


def _worst(found: Comparison, metric: Metric) -> Point:
    """Scores of an untrained model: 0, and the NLL of a uniform guess."""
    if metric != "nll":
        return 0.0, 0.0
    folder = next(r for r in found.rows if r.name == found.baseline).first.folders[0]
    guess = math.log(read_json(folder / "model.json", Shape)["vocabulary_size"])
    return guess, guess
