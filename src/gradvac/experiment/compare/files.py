"""A comparison as a file: every number as CSV or JSON, or the tables to read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradvac.errors import RecipeError
from gradvac.experiment.compare.compare import LEVEL, Comparison, Mean
from gradvac.experiment.compare.comparison_view import latex, markdown, test_in_words
from gradvac.tables import csv_text
from gradvac.writing import write_text


def records(found: Comparison) -> list[dict[str, Any]]:
    """Every number of the comparison, one record each; NaN is None."""
    kinds = dict.fromkeys(found.directions, "direction") | dict.fromkeys(found.averages, "average")
    kinds |= dict.fromkeys(found.zero_shot, "zero-shot")
    return [
        {
            "row": row.name,
            "metric": metric,
            "column": column,
            "kind": kinds[column],
            "mean": cell.mean,
            "half_width": _known(cell.half),
            "seeds": len(cell.values),
            "p": _known(cell.p),
            "better": cell.star,
            **({"differing": row.few[column]} if column in row.few else {}),
            "values": list(cell.values),
            **_difference(found.difference(row, metric, column)),
        }
        for row in found.rows
        for metric in found.metrics
        for column, cell in row.cells[metric].items()
    ]


def _difference(found: Mean | None) -> dict[str, Any]:
    """Row minus baseline, on the seeds that both have."""
    if found is None:
        return {}
    half = _known(found.half)
    return {"minus": found.mean, "minus_half_width": half, "minus_seeds": len(found.values)}


def as_csv(found: Comparison) -> str:
    """The records, and one row per method with its cost."""
    heads = ["row", "metric", "column", "kind", "mean", "half_width", "seeds", "p", "better"]
    heads += ["values", "minus", "minus_half_width", "minus_seeds", "differing"]
    lines = [{**r, "values": " ".join(map(repr, r["values"]))} for r in records(found)]
    for row in found.rows:
        for name in ("parameters", "tokens", "seconds", "cpu_seconds", "cost"):
            value, of = _known(getattr(row, name)), found.cost_of if name == "cost" else ""
            lines.append(
                {"row": row.name, "metric": name, "column": of, "mean": value}
                | {"seeds": len(row.seeds)}
            )
    return csv_text([heads, *([line.get(head) for head in heads] for line in lines)])


def as_json(found: Comparison) -> str:
    """Everything, as JSON."""
    tree = {
        "baseline": found.baseline,
        "test": test_in_words(found) if "f1" in found.metrics else found.test,
        "level": LEVEL,
        "signatures": found.signatures,
        "off_target_of_references": found.identifier_errors,
        "missing": [str(folder) for folder in found.missing],
        "averages": found.averages,
        "cost_of": found.cost_of,
        "costs": {
            row.name: {
                "parameters": row.parameters,
                "tokens": row.tokens,
                "seconds": row.seconds,
                "cpu_seconds": _known(row.cpu_seconds),
                "cost": _known(row.cost),
                "seeds": list(row.seeds),
            }
            for row in found.rows
        },
        "records": records(found),
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def write(found: Comparison, file: Path, every_direction: bool = False) -> None:
    """Write the comparison in the format that the file's ending names; RecipeError otherwise."""
    makers: dict[str, Callable[[], str]] = {
        ".md": lambda: markdown(found, every_direction),
        ".tex": lambda: latex(found, every_direction),
        ".csv": lambda: as_csv(found),
        ".json": lambda: as_json(found),
    }
    if file.suffix not in makers:
        raise RecipeError(f"--out {file}: must end in {', '.join(makers)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, makers[file.suffix]())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
