"""Each claim once, over all studies: on real text, on number words, and what both allow to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .laboratory import PREFIX
from .numbers import Judged
from .tables import bars
from .verdicts import ABSENT, FAILS, HOLDS, SAME, UNKNOWN

DIFFERS = "differs"
_DECIDED = (HOLDS, FAILS, SAME)


@dataclass(frozen=True)
class Answer:
    """A claim with its verdicts; "" where no study of that kind looked at it."""

    text: str
    source: str
    real: str
    numbers: str

    @property
    def kind(self) -> str:
        """What the studies allow to say: decided by one of them, or unless they differ by both."""
        return together(kind for kind in (self.real, self.numbers) if kind)


def together(kinds: Iterable[str]) -> str:
    """One verdict of several: the one that was reached, `DIFFERS` if there are two.

    Example:
        >>> together(["holds", "cannot tell"]), together(["holds", "does not hold"])
        ('holds', 'differs')
    """
    found = list(kinds)
    decided = {kind for kind in found if kind in _DECIDED}
    if decided:
        return decided.pop() if len(decided) == 1 else DIFFERS
    return UNKNOWN if UNKNOWN in found else ABSENT


def answers(judged: Judged) -> list[Answer]:
    """The claims by their sentence, in the order of the pages; other tests of one are left out."""
    found: dict[str, tuple[str, list[str], list[str]]] = {}
    for claim, _, verdict in judged:
        if not claim.again:
            _, real, numbers = found.setdefault(claim.text, (claim.source, [], []))
            (numbers if claim.study.startswith(PREFIX) else real).append(verdict.kind)
    one = lambda kinds: together(kinds) if kinds else ""
    return [Answer(text, source, one(a), one(b)) for text, (source, a, b) in found.items()]


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
    return f"Of {len(all_of)} claims looked at, {said}; {counts[ABSENT]} were not run."


def table(judged: Judged) -> str:
    """Every claim with its verdicts."""
    lines = [bars(["claim", "source", "real text", "number words"]), "|---|---|---|---|"]
    for answer in answers(judged):
        shown = [
            f"**{kind}**" if kind in _DECIDED else kind for kind in (answer.real, answer.numbers)
        ]
        lines.append(bars([answer.text, answer.source, *shown]))
    return "\n".join(lines)
