"""What the figures of a study allow to say of its claims, corrected for how many they are.

Within a study p-values are corrected by Holm's method, those of "no effect" and those of "an
effect of the bound or more" apart. A verdict stands only if what is wrong with the comparison
could not turn it round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradvac.translation.significance import holm

from .figures import Absent, Figure
from .statistics import LEVEL

HOLDS, FAILS, SAME, UNKNOWN, ABSENT = (
    "holds",
    "does not hold",
    "no difference beyond",
    "cannot tell",
    "not run",
)


@dataclass(frozen=True)
class Verdict:
    """One of the five, with its corrected p-value and the reason where it is "cannot tell".

    ``small`` is whether the difference is shown to be below the bound.
    """

    kind: str
    p: float = math.nan
    reason: str = ""
    small: bool = False

    def short(self, figure: Figure) -> str:
        """The verdict without its reason."""
        return f"{self.kind} {figure.measure.bound:g}" if self.kind == SAME else self.kind

    def words(self, figure: Figure | Absent, of: str) -> str:
        """The verdict as the table shows it; ``of`` is what alone it is about."""
        if isinstance(figure, Absent):
            return f"**{self.kind}**: no {figure}"
        about = f" of {of}" if of and self.kind != UNKNOWN else ""
        small = self.small and self.kind in (HOLDS, FAILS)
        below = f", by less than {figure.measure.bound:g}" if small else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"**{self.short(figure)}**{about}{below}{reason}"


def verdicts(figures: Sequence[Figure | Absent], studies: Sequence[str]) -> list[Verdict]:
    """A verdict for each figure; ``studies`` names the study of each.

    Raises nothing: what is absent is "not run" and counts in no correction.
    """
    found: list[Verdict] = [Verdict(ABSENT)] * len(figures)
    for study in set(studies):
        own = [(n, f) for n, f in enumerate(figures) if studies[n] == study]
        tested = [(n, f) for n, f in own if isinstance(f, Figure)]
        effects = holm([f.chance for _, f in tested])
        bounds = _corrected([f.no_more for _, f in tested])
        for (n, figure), effect, bound in zip(tested, effects, bounds, strict=True):
            found[n] = _verdict(figure, effect, bound, len(tested))
    return found


def _corrected(p_values: Iterable[float]) -> list[float]:
    """Holm's p-values of those that are known; NaN for the others."""
    values = list(p_values)
    known = iter(holm([p for p in values if not math.isnan(p)]))
    return [p if math.isnan(p) else next(known) for p in values]


def _verdict(figure: Figure, effect: float, bound: float, tests: int) -> Verdict:
    small = bound <= LEVEL
    if effect <= LEVEL and figure.value > 0:
        kind, against = HOLDS, [f.words for f in figure.flaws if not f.larger]
    elif effect <= LEVEL and figure.two_sided:
        kind, against = FAILS, [f.words for f in figure.flaws if f.larger]
    elif small:
        kind, against = SAME, [f.words for f in figure.flaws]
    else:
        reason = "; ".join([figure.more(tests), *(f.words for f in figure.flaws)])
        return Verdict(UNKNOWN, effect, reason)
    if against:
        return Verdict(UNKNOWN, effect, "; ".join(against))
    return Verdict(kind, effect, small=small)


def alone(figure: Figure) -> bool:
    """Whether a figure would be "no difference beyond" its bound if it were the only one."""
    return figure.chance > LEVEL and figure.no_more <= LEVEL and not figure.flaws
