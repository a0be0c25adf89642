"""Figures within a sentence: each says which file, rows and score it is.

In the template of the page it is ``{{gain: table1-to-en mgda multilingual}}``. A page that is
written by hand has the figure before a comment of the same words, ``0.25<!-- gain: ... -->``, which
`fresh` replaces. A figure is never negative, so a sentence that says "better" fails when it is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .claims import Claim
from .curves import gain as curve_gain
from .curves import weight as curve_weight
from .figures import Absent, Figure
from .files import Evidence
from .verdicts import Verdict

Judged = Sequence[tuple[Claim, Figure | Absent, Verdict]]
_SHOWN = re.compile(r"(?P<old>\*\*[^*\n]+\*\*|\d[\d.,]*(?: ± [\d.]+)?)<!-- (?P<words>\w+: .*?) -->")


def number(words: str, e: Evidence, judged: Judged) -> str:
    """What ``words`` stand for.

    - ``gain: FILE A B [COLUMN METRIC DIGITS]``: by how much row A is better than row B
    - ``interval:`` as gain, with half the width of its 95 % interval
    - ``lower: FILE A B [COLUMN]``: by how many per cent row A's NLL is lower, in the laboratory
    - ``weight: FILE ROW LEVEL``: the mean weight of a row's tasks of a level, in the laboratory
    - ``cost: FILE ROW``: CPU time of a token beside the baseline's
    - ``tuning: FILE ROW``: how much worse the worst rate tried is than the best
    - ``claim: STUDY: TEXT``: figure and verdict; ``verdict:`` the verdict alone, in bold

    Raises:
        ValueError: if A is not better than B, or there is no such claim.
        Absent: if it is not in the evidence.
    """
    kind, rest = (part.strip() for part in words.split(":", 1))
    if kind in ("claim", "verdict"):
        study, text = (part.strip() for part in rest.split(":", 1))
        for claim, figure, verdict in judged:
            if (claim.study, claim.text) == (study, text):
                said = verdict.words(figure, claim.of)
                if isinstance(figure, Absent):
                    return said
                short = f"**{verdict.short(figure)}**"
                return short if kind == "verdict" else f"{figure.words}: {short}"
        raise ValueError(f"no claim {text!r} in {study}")
    name, *names = rest.split()
    if kind == "cost":
        return f"{e.costs(name)[names[0]]:.2f}"
    if kind == "lower":
        gained = curve_gain(e, name, *names).value
        if gained < 0:
            raise ValueError(f"{words}: {names[0]} is worse: write it the other way round")
        return f"{100 * (1 - math.exp(-gained)):.0f}"
    if kind == "weight":
        return f"{curve_weight(e, name, *names):.2f}"
    if kind == "tuning":
        reached = e.rates(name)[names[0]].values()
        return f"{max(reached) - min(reached):.2f}"
    a, b, column, metric, digits = [*names, *("avg", "nll", "3")[len(names) - 2 :]]
    figure = e.gain(name, a, b, column, metric)
    if figure.value < 0:
        raise ValueError(f"{words}: {a} is worse by {-figure.value}: write it the other way round")
    half = f" ± {figure.half:.{digits}f}" if kind == "interval" else ""
    return f"{figure.value:.{digits}f}{half}"


def fresh(text: str, e: Evidence, judged: Judged) -> str:
    """A page with each figure before a comment as the evidence has it."""
    new = lambda m: f"{number(m['words'], e, judged)}<!-- {m['words']} -->"
    return _SHOWN.sub(new, text)


def marks(text: str) -> int:
    """How many comments a page has that `fresh` should find a figure before."""
    return len(re.findall(r"<!-- (?:gain|interval|lower|weight|cost|tuning|claim|verdict): ", text))
