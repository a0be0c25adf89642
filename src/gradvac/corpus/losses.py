"""Text left out by corpus builders: counted by reason, with the first few texts of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_SAMPLES = 3
_LONGEST = 200  # characters of a text in a sample


@dataclass(slots=True)
class Losses:
    """Pairs left out: reason -> language -> count, and the first few of each reason."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    samples: dict[str, list[list[str]]] = field(default_factory=dict)

    def add(self, reason: str, sample: Sequence[str], language: str = "") -> None:
        """Count one pair; ``sample`` is the text to show."""
        self.merge({reason: {language: 1}}, {reason: [[text[:_LONGEST] for text in sample]]})

    def merge(
        self,
        counts: Mapping[str, Mapping[str, int]],
        samples: Mapping[str, Sequence[list[str]]],
    ) -> None:
        """Add the losses of another account."""
        for reason, by_language in counts.items():
            self.counts[reason].update(by_language)
            kept = self.samples.setdefault(reason, [])
            kept.extend(samples.get(reason, ())[: _SAMPLES - len(kept)])

    @property
    def totals(self) -> dict[str, int]:
        """Reason -> pairs of any language, highest count first."""
        totals = Counter({reason: counts.total() for reason, counts in self.counts.items()})
        return dict(totals.most_common())
