"""Each claim once, over all studies: on real text, on number words, and what both allow to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .laboratory import PREFIX
from .numbers import Judged
from .tables import bars
from .verdicts import ABSENT, FAILS, HOLDS, SAME, UNKNOWN, Verdict

DIFFERS = "differs"
_PAPERS = ("GradVac ", "CATS ")  # others were asked by Xin et al. 2022, or here
_DECIDED = (HOLDS, FAILS, SAME)


@dataclass(frozen=True)
class Answer:
    """A claim with its verdicts; "" where no study of that kind looked at it."""

    text: str
    source: str
    real: str
    numbers: str
    kind: str
    """What all studies allow to say: what one of them decided, unless they differ."""


def together(found: Sequence[Verdict]) -> str:
    """The kind of several verdicts: the one that was reached, `DIFFERS` if there are two.

    A difference below the bound in one study and none beyond it in another do not differ. Nor do
    a claim that does not hold and no difference: neither supports it.

    Example:
        >>> holds, same = Verdict("holds", small=True), Verdict("no difference beyond", small=True)
        >>> together([holds, Verdict("cannot tell")]), together([holds, same])
        ('holds', 'no difference beyond')
        >>> together([holds, Verdict("does not hold")])
        'differs'
    """
    decided = [verdict for verdict in found if verdict.kind in _DECIDED]
    kinds = {verdict.kind for verdict in decided}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds in ({SAME, HOLDS}, {SAME, FAILS}) and all(verdict.small for verdict in decided):
        return SAME
    if kinds == {SAME, FAILS}:
        return FAILS
    if kinds:
        return DIFFERS
    return UNKNOWN if any(verdict.kind == UNKNOWN for verdict in found) else ABSENT


def answers(judged: Judged) -> list[Answer]:
    """The claims by their sentence, in the order of the pages; other tests of one are left out."""
    found: dict[str, tuple[str, list[Verdict], list[Verdict]]] = {}
    for claim, _, verdict in judged:
        if not claim.again:
            _, real, numbers = found.setdefault(claim.text, (claim.source, [], []))
            (numbers if claim.study.startswith(PREFIX) else real).append(verdict)
    one = lambda verdicts: together(verdicts) if verdicts else ""
    return [
        Answer(text, source, one(a), one(b), together([*a, *b]))
        for text, (source, a, b) in found.items()
    ]


def summary(judged: Judged) -> str:
    """How many claims came out how."""
    all_of = answers(judged)
    counts = Counter(answer.kind for answer in all_of)
    words = {
        HOLDS: "hold",
        FAILS: "do not hold",
        SAME: "show no difference beyond a small bound",
        DIFFERS: "come out otherwise in one study than in another",
        UNKNOWN: "cannot be told at this size",
    }
    said = ", ".join(f"{counts[kind]} {text}" for kind, text in words.items())
    own = [answer.kind for answer in all_of if answer.source.startswith(_PAPERS)]
    return (
        f"Of {len(all_of)} claims looked at, {said}; {counts[ABSENT]} were not run. "
        f"{len(own)} are of the two papers themselves, and of these {own.count(UNKNOWN)} cannot be "
        f"told and {own.count(ABSENT)} were not run."
    )


def table(judged: Judged) -> str:
    """Every claim with its verdicts."""
    lines = [bars(["claim", "source", "real text", "number words"]), "|---|---|---|---|"]
    for answer in answers(judged):
        shown = [
            f"**{kind}**" if kind in _DECIDED else kind for kind in (answer.real, answer.numbers)
        ]
        lines.append(bars([answer.text, answer.source, *shown]))
    return "\n".join(lines)
