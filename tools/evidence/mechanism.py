"""Claims about CATS, of any study whose variants are those of cats.yaml."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from .claim import Claim
from .figures import Figure
from .files import Evidence

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
