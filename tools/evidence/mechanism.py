"""CATS where the variants are those of cats.yaml: the claims, and whether its bound was met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from gradvac import CATS

from .claim import Claim
from .curves import weight
from .figures import Absent, Figure
from .files import Evidence
from .tables import bars

_NAMES = {"t1": "T=1", "t5": "T=5"}


def mechanism(
    e: Evidence, study: str, gain: Callable[[str, str, str], Figure], curved: str, of: str = ""
) -> Iterator[Claim]:
    """Curvature, agreement and scores with CATS beside temperatures of 1 and 5.

    ``gain`` says by how much one row is better than another in the directions of a level;
    ``curved`` names the file of curvatures; ``of`` what alone the results are about.
    """

    def add(text: str, source: str, figure: Callable[[], Figure]) -> Claim:
        return Claim(study, text, f"CATS {source}", figure, of=of)

    def late(run: dict[str, Any]) -> float:
        values = [v["value"] for v in run["eigenvalues"] if v["group"] == "sum"]
        return statistics.fmean(math.log(v) for v in values)

    agree = lambda run: statistics.fmean(run["high_low_cosine"].values())
    for other in ("t1", "t5"):
        yield add(
            f"CATS lowers the curvature against {_NAMES[other]}",
            "fig. 5",
            lambda other=other: e.per_seed(curved, other, "cats", late, "curvature"),
        )
        yield add(
            f"CATS makes high- and low-resource gradients agree more than {_NAMES[other]}",
            "fig. 5",
            lambda other=other: e.per_seed(curved, "cats", other, agree, "cosine"),
        )
    for text, source, suffix in (
        ("CATS beats {} ({})", "fig. 6", ""),
        ("CATS with four times the batch beats {} ({})", "fig. 8", "-large-batch"),
        ("CATS with a wider model beats {} ({})", "fig. 9", "-large-model"),
    ):
        for other in ("t1", "t5"):
            for level in ("low", "high"):
                yield add(
                    text.format(_NAMES[other], level),
                    source,
                    lambda other=other, level=level, suffix=suffix: gain(
                        f"cats{suffix}", f"{other}{suffix}", level
                    ),
                )


def constraint(e: Evidence, name: str) -> str:
    """A table of the rows of CATS: curvature beside its bound, both in the unit of rho.

    Curvature is taken from each line of the log after the warm-up; the bound is met where it is
    at most rho. Means over seeds. A row is there if all its runs have their curvature; raises
    Absent if none is.
    """
    heads = ["", "rho", "step size", "curvature at the end", "bound met, %"]
    heads += ["multiplier at the end", "weight low", "weight high", "seeds"]
    lines = [bars(heads), "|---" + "|---:" * 8 + "|"]
    for row in e.rows(name):
        own = [run for run in e.read(name)["runs"] if run["variant"] == row]
        kept = [run["constraint"] for run in own if run.get("constraint")]
        if not kept or len(kept) < len(own):  # the weights are of all runs
            continue
        method = CATS(**e.read(name)["recipes"][row]["method"]["options"])
        after = [_after_warm_up(each) for each in kept]
        means = [
            statistics.fmean(curvature[-1] for curvature in after),
            100 * statistics.fmean(c <= method.rho for curvature in after for c in curvature),
            statistics.fmean(each["multiplier"][-1] for each in kept),
            *(weight(e, name, row, level) for level in ("low", "high")),
        ]
        cells = [row, f"{method.rho:g}", f"{method.learning_rate:g}"]
        cells += [f"{x:.{digits}f}" for x, digits in zip(means, (2, 0, 1, 2, 2), strict=True)]
        lines.append(bars([*cells, str(len(kept))]))
    if len(lines) == 2:
        raise Absent(f"{name}: curvature of CATS")
    return "\n".join(lines)


def _after_warm_up(kept: dict[str, list[float]]) -> list[float]:
    """The curvatures from the line on in which the multiplier first moved; all, if it never did."""
    moved = [at for at, multiplier in enumerate(kept["multiplier"]) if multiplier > 0]
    return kept["curvature"][moved[0] if moved else 0 :]
