"""The page of evidence: a template with claims, tables, pictures and figures filled in."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from gradvac.geometry.plots import save

from . import tables, together
from .claims import Claim, claims
from .figures import Absent, chance
from .figures import Figure as Finding
from .files import Evidence
from .mechanism import constraint
from .numbers import Judged, number
from .pictures import PICTURES
from .statistics import LEVEL
from .tables import bars
from .verdicts import SAME, UNKNOWN, Verdict, alone, verdicts


@cache
def judged(e: Evidence) -> Judged:
    """Every claim with the figure that decides it and its verdict; once for all pages."""
    looked_at = list(claims(e))
    found = [_figure(claim) for claim in looked_at]
    said = verdicts(found, [claim.study for claim in looked_at])
    return list(zip(looked_at, found, said, strict=True))


def page(template: str, e: Evidence, pictures: Path, relative: str) -> str:
    """The page, as Markdown: the template with its directives followed.

    A directive is a line ``{{summary}}``, ``{{together}}``, ``{{uncorrected}}``, ``{{bounds}}``,
    ``{{power}}``, ``{{hours}}``, ``{{claims: STUDY ...}}``, ``{{picture: NAME}}``,
    ``{{table: NAME}}``, ``{{languages: NAME}}``, ``{{rates: NAME}}``, ``{{choices: NAME}}``,
    ``{{curves: NAME}}``, ``{{pilot: NAME}}``, ``{{constraint: NAME}}`` or ``{{cost: SIZE}}``;
    within a line, ``{{borders}}`` or one of numbers.py.
    Pictures are written into ``pictures``, and linked below ``relative``.
    """
    found = judged(e)

    def follow(what: str, names: list[str]) -> str:
        match what:
            case "summary":
                return together.summary(found)
            case "together":
                return together.table(found)
            case "uncorrected":
                return one_by_one(found)
            case "bounds":
                return tables.bounds()
            case "hours":
                return tables.hours(e)
            case "power":
                known = [(c.study, f) for c, f, _ in found if isinstance(f, Finding)]
                return tables.power(known)
            case "claims":
                return _claims([each for each in found if each[0].study in names])
            case "picture":
                return _picture(e, names[0], pictures, relative)
            case "table":
                return tables.scores(e, names[0])
            case "languages":
                return tables.languages(e, names[0])
            case "rates":
                return tables.rates(e, names[0])
            case "choices":
                return tables.choices(e, names[0])
            case "curves":
                return tables.curves(e, names[0])
            case "pilot":
                return tables.pilot(e, names[0])
            case "constraint":
                return constraint(e, names[0])
            case _:
                return tables.cost(names[0])

    def line(match: re.Match[str]) -> str:
        try:
            return follow(match[1], (match[2] or "").split())
        except Absent as missing:
            return f"Not there yet: {missing}."

    def within(match: re.Match[str]) -> str:
        try:
            return tables.borders(e) if match[1] == "borders" else number(match[1], e, found)
        except Absent:
            return "not there yet"

    text = re.sub(rf"^\{{\{{({_LINES})(?:: ([\w -]+))?\}}\}}$", line, template, flags=re.MULTILINE)
    return re.sub(r"\{\{(.+?)\}\}", within, text)


_LINES = (
    "summary|together|uncorrected|bounds|power|hours|claims|picture|table|languages|rates|choices|curves|"
    "pilot|constraint|cost"
)


def _figure(claim: Claim) -> Finding | Absent:
    """What decides a claim, or what of it is not there."""
    try:
        return claim.figure()
    except Absent as missing:
        return missing


def one_by_one(found: Judged) -> str:
    """What the verdicts would be without a correction, and how many rows are not counted."""
    known = [figure for _, figure, _ in found if isinstance(figure, Finding)]
    again = sum(claim.again for claim, *_ in found)
    plain = sum(figure.chance <= LEVEL for figure in known)
    kept = sum(v.p <= LEVEL for _, f, v in found if isinstance(f, Finding))
    small, left = sum(map(alone, known)), sum(v.kind == SAME for *_, v in found)
    return (
        f"Of all {len(found)} rows, {again} of which are other tests of a claim above them, "
        f"{plain} have p ≤ {LEVEL:g} alone and {kept} after the correction; {small} alone would be "
        f"“no difference beyond” their bound, {left} are after the correction."
    )


def _claims(own: Judged) -> str:
    if not own:
        return "Not run yet."
    heads = ["claim", "source", "here", "n, test", "p (Holm)", "seen", "at most", "verdict"]
    lines = [bars(heads), "|---" * 5 + "|---:|---:|---|"]
    return "\n".join([*lines, *(bars(_row(*each)) for each in own)])


def _picture(e: Evidence, name: str, pictures: Path, relative: str) -> str:
    figure, words = PICTURES[name](e)
    file = pictures / f"evidence-{name}.png"
    save(figure, file)
    return f"![{words}]({relative}/{file.name})\n\n*{words}.*"


def _row(claim: Claim, figure: Finding | Absent, verdict: Verdict) -> list[str]:
    text = f"↳ {claim.text}" if claim.again else claim.text
    said = verdict.words(figure, claim.of)
    if isinstance(figure, Absent):
        return [text, claim.source, "", "", "", "", "", said]
    seen, most = (
        f"{x:.{max(2, figure.measure.digits)}f}" if verdict.kind in (SAME, UNKNOWN) else ""
        for x in (figure.detectable, figure.at_most)
    )
    p = chance(verdict.p).removeprefix("= ")
    test = f"{figure.n}, {figure.test}"
    return [text, claim.source, figure.words, test, p, seen, most.replace("nan", ""), said]
