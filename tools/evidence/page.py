"""The page of evidence: a template with claims, tables and pictures filled in."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradvac.experiment.compare.comparison_view import DIGITS, NAMES
from gradvac.experiment.compare.results import Metric
from gradvac.geometry.plots import save

from .claims import Claim, claims
from .cost import empty_corpus, table
from .files import FAILS, HOLDS, UNKNOWN, Absent, Evidence
from .files import Figure as Finding
from .pictures import PICTURES


def page(template: str, e: Evidence, pictures: Path, relative: str) -> str:
    """The page, as Markdown: the template with its directives followed.

    A directive is a line ``{{summary}}``, ``{{claims: STUDY ...}}``, ``{{picture: NAME}}``,
    ``{{table: NAME}}``, ``{{rates: NAME}}`` or ``{{cost: SIZE}}``. Pictures are written into
    ``pictures``, and linked below ``relative``.
    """
    found = [(claim, _figure(claim)) for claim in claims(e)]

    def follow(match: re.Match[str]) -> str:
        what, names = match[1], (match[2] or "").split()
        if what == "summary":
            return _summary([figure for _, figure in found])
        if what == "cost":
            return _cost(names[0])
        if what == "claims":
            return _claims([pair for pair in found if pair[0].study in names])
        try:
            if what == "picture":
                return _picture(e, names[0], pictures, relative)
            return _rates(e, names[0]) if what == "rates" else _table(e, names[0])
        except Absent as missing:
            return f"Not there yet: {missing}."

    return re.sub(r"^\{\{(\w+)(?:: ([\w -]+))?\}\}$", follow, template, flags=re.MULTILINE)


def _figure(claim: Claim) -> Finding | Absent:
    """What decides a claim, or what of it is not there."""
    try:
        return claim.figure()
    except Absent as missing:
        return missing


def _summary(found: Sequence[Finding | Absent]) -> str:
    counts = Counter("not run" if isinstance(f, Absent) else f.verdict for f in found)
    words = {HOLDS: "hold", FAILS: "do not hold", UNKNOWN: "cannot be told at this size"}
    said = [f"{counts[verdict]} {text}" for verdict, text in words.items()]
    return f"Of {len(found)} claims looked at, {', '.join(said)}; {counts['not run']} were not run."


def _claims(own: Sequence[tuple[Claim, Finding | Absent]]) -> str:
    heads = ["claim", "source", "here", "n", "verdict"]
    return "\n".join([_bars(heads), "|---|---|---|---|---|", *(_bars(_row(*pair)) for pair in own)])


def _picture(e: Evidence, name: str, pictures: Path, relative: str) -> str:
    figure, words = PICTURES[name](e)
    file = pictures / f"evidence-{name}.png"
    save(figure, file)
    return f"![{words}]({relative}/{file.name})\n\n*{words}.*"


def _row(claim: Claim, figure: Finding | Absent) -> list[str]:
    if isinstance(figure, Absent):
        return [claim.text, claim.source, f"no {figure}", "", "not run"]
    return [claim.text, claim.source, figure.words, str(figure.n), f"**{figure.verdict}**"]


def _cost(size: str) -> str:
    """What has not been run would cost."""
    with tempfile.TemporaryDirectory() as folder:
        return table(Path(__file__).parents[2] / "recipes", size, empty_corpus(Path(folder)))


def _bars(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(e: Evidence, name: str) -> str:
    """Averages of every row of a comparison, as `gradvac compare` found them."""
    tree = e.read(name)
    metrics: tuple[Metric, ...] = ("bleu", "f1", "accuracy", "nll")
    groups = [g for g in ("avg", "high", "medium", "low") if g in tree["averages"]]
    cells = {(r["row"], r["metric"], r["column"]): r for r in tree["records"]}
    rows, costs = list(tree["costs"]), e.costs(name)
    columns = [
        (metric, group, f"{NAMES[metric]} {group}", DIGITS[metric])
        for metric in metrics
        for group in groups
        if any((row, metric, group) in cells for row in rows)
    ]
    lines = [
        _bars(["", *(head for *_, head, _ in columns), "seeds", "cost"]),
        "|---" + "|---:" * (len(columns) + 2) + "|",
    ]
    for row in rows:
        own = [_cell(cells.get((row, metric, group)), n) for metric, group, _, n in columns]
        price = "" if costs[row] is None else f"{costs[row]:.2f}"
        lines.append(_bars([row, *own, str(len(tree["costs"][row]["seeds"])), price]))
    return "\n".join(lines)


def _rates(e: Evidence, name: str) -> str:
    """Validation NLL by learning rate, the best of each row in bold."""
    rows = e.rates(name)
    rates = sorted({rate for own in rows.values() for rate in own})
    lines = [_bars(["", *(f"{rate:g}" for rate in rates)]), "|---" + "|---:" * len(rates) + "|"]
    for row, own in rows.items():
        best = min(own.values())
        cells = [own.get(rate) for rate in rates]
        bold = lambda x, best=best: f"**{x:.3f}**" if x == best else f"{x:.3f}"
        lines.append(_bars([row, *("" if x is None else bold(x) for x in cells)]))
    return "\n".join(lines)


def _cell(record: dict[str, Any] | None, digits: int) -> str:
    if record is None:
        return ""
    half = record["half_width"]
    return f"{record['mean']:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")
