"""Collected runs of tagging as a comparison, so that runs of several days become one table.

`gradvac compare` needs all runs at once, with the tags of every sentence. Here the scores of a run
are kept, and there are no tests of single languages.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from gradvac.experiment.recipe.variants import row_of

from .figures import seeds

METRICS = ("f1", "accuracy", "nll")
BASELINE = "joint"


def as_comparison(tree: dict[str, Any]) -> dict[str, Any]:
    """The file that `gradvac compare --out` writes, of a file of collected runs."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(tree["runs"], key=lambda run: run["seed"]):
        by_row.setdefault(row_of(run["variant"]), []).append(run)
    languages = sorted(tree["runs"][0]["f1"])
    costs = {row: _cost(runs) for row, runs in by_row.items()}
    first = costs[BASELINE]["cpu_seconds"] / costs[BASELINE]["tokens"]
    for cost in costs.values():
        cost["cost"] = cost["cpu_seconds"] / cost["tokens"] / first
    return {
        "baseline": BASELINE,
        "averages": {"avg": languages},
        "costs": costs,
        "records": [
            _record(row, metric, column, runs)
            for row, runs in by_row.items()
            for metric in METRICS
            for column in [*languages, "avg"]
        ],
    }


def _cost(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mean = lambda key: statistics.fmean(run[key] for run in runs)
    return {
        "tokens": mean("tokens"),
        "cpu_seconds": mean("cpu_seconds"),
        "seeds": [run["seed"] for run in runs],
    }


def _record(row: str, metric: str, column: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [run[metric] for run in runs]
    values = [statistics.fmean(at.values()) if column == "avg" else at[column] for at in own]
    return {
        "row": row,
        "metric": metric,
        "column": column,
        "kind": "average" if column == "avg" else "direction",
        "mean": statistics.fmean(values),
        "half_width": seeds(values, metric).half if len(values) > 1 else None,
        "seeds": len(values),
        "p": None,
        "values": values,
    }
