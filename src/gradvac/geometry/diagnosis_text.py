"""A diagnosis as plain text: the tables that ``print(gradvac.diagnose(...))`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gradvac.geometry.diagnose import Diagnosis

MOST_TASKS = 12  # more columns than that do not fit on a line; the pairs furthest apart are listed
MOST_PAIRS = 10


def in_words(d: Diagnosis) -> str:
    """The tables of a diagnosis, for a terminal."""
    few = len(d.tasks) <= MOST_TASKS
    steps = len(d.gram)
    parts = [
        f"{len(d.tasks)} tasks, {len(d.groups)} parameter groups, {steps} step"
        + ("s" if steps > 1 else ""),
        _title("Cosines of the task gradients, whole model", _cosines(d) if few else _extremes(d)),
        _title("By parameter group", _groups(d, few)),
        _title("What each method would make of the last step", _methods(d, few)),
    ]
    parts += [f"{name} cannot be used: {why}" for name, why in d.refused.items()]
    return "\n\n".join(parts)


def _title(text: str, table: str) -> str:
    return f"{text}\n{table}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first one to the left, numbers to the right."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _number(value: float, digits: int = 2) -> str:
    return "-" if value != value else f"{value:.{digits}f}"


def _cosines(d: Diagnosis) -> str:
    rows = [
        [task, *(_number(value) for value in row)]
        for task, row in zip(d.tasks, d.whole_model.tolist(), strict=True)
    ]
    return _table(["", *d.tasks], rows)


def _extremes(d: Diagnosis) -> str:
    """The pairs of tasks whose gradients are furthest apart, and their cosines."""
    above = torch.triu(torch.ones_like(d.whole_model), 1).bool() & ~d.whole_model.isnan()
    pairs = sorted((float(d.whole_model[i, j]), i, j) for i, j in above.nonzero().tolist())
    rows = [[f"{d.tasks[i]}, {d.tasks[j]}", _number(value)] for value, i, j in pairs[:MOST_PAIRS]]
    return _table([f"lowest of {len(pairs)} pairs", "cosine"], rows)


def _groups(d: Diagnosis, few: bool) -> str:
    above = torch.triu(torch.ones_like(d.whole_model), 1).bool()
    pairs = int(above.sum())
    rows = []
    for k, group in enumerate(d.groups):
        conflicts = float(d.conflicts[k])
        count = f"{conflicts:.0f}" if len(d.gram) == 1 else f"{conflicts:.1f}"
        row = [group, f"{count} of {pairs}", _number(float(d.cosine[k][above].nanmean()))]
        norms = d.norms[k]
        shown = norms.tolist() if few else [float(norms.min()), float(norms.max())]
        rows.append(row + [f"{norm:.3g}" for norm in shown])
    columns = [f"norm {t}" for t in d.tasks] if few else ["least norm", "largest norm"]
    return _table(["group", "conflicts", "mean cosine", *columns], rows)


def _methods(d: Diagnosis, few: bool) -> str:
    """Cosine and length beside the plain sum, then by task the cosine gained, and the weight."""
    rows = []
    for name, effect in d.effects.items():
        row = [name, _number(effect.cosine, 3), _number(effect.norm_ratio, 3)]
        gained, weights = effect.change, effect.weights.mean(0)
        if few:
            row += [f"{value:+.3f}" for value in gained.tolist()]
            row += [_number(value) for value in weights.tolist()]
        else:
            row += [f"{float(x):+.3f}" for x in (gained.min(), gained.mean(), gained.max())]
            row += [_number(float(x)) for x in (weights.min(), weights.max())]
        rows.append(row)
    gained = [f"to {t}" for t in d.tasks] if few else ["to worst", "mean", "to best"]
    columns = [f"weight {t}" for t in d.tasks] if few else ["least weight", "largest"]
    table = _table(["method", "cosine", "length", *gained, *columns], rows)
    return table + (
        "\n  cosine and length: of the update, beside the plain sum of the task gradients (joint)\n"
        "  to ...: how much closer the update comes to that task's gradient, in cosine\n"
        "  weight: mean over the parameter groups"
    )
