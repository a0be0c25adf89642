"""Filters for single pairs of any corpus: lengths, script, copies, language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gradvac.text.cleaning import CleaningRules, rejection
from gradvac.text.identify import IDENTIFIABLE, Identifier, confusable, label
from gradvac.text.scripts import in_script, mostly_english, words


@dataclass(slots=True)
class PairFilter:
    """Why a normalised pair of `source` and `target` language is left out.

    The identifier chooses among `languages`, those of the whole corpus; if empty, texts are not
    identified.
    """

    source: str
    target: str
    rules: CleaningRules
    languages: Sequence[str] = ()
    _identifier: Identifier | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.languages:
            self._identifier = Identifier(self.languages)

    def reason(self, source: str, target: str) -> str | None:
        """Why this pair is left out, None if it is kept."""
        return (
            rejection(source, target, self.rules)
            or self._script(source, self.source)
            or self._script(target, self.target)
            or self._copy(source, target)
            or self._language(source, self.source)
            or self._language(target, self.target)
        )

    def _script(self, text: str, code: str) -> str | None:
        return None if in_script(code, text) else f"{code} side in another script"

    def _copy(self, source: str, target: str) -> str | None:
        names = _names(source) & _names(target)
        own = frozenset(words(source.casefold())) - names
        rest = " ".join(word for word in words(target) if word.casefold() not in names)
        return "target repeats the source" if mostly_english(own, rest) else None

    def _language(self, text: str, code: str) -> str | None:
        if self._identifier is None or code in self._identifier.unknown:
            return None
        if sum(map(len, words(text))) < IDENTIFIABLE:
            return None
        found = self._identifier.identify(text)
        return None if confusable(found, label(code)) else f"{code} side in another language"


def _names(text: str) -> frozenset[str]:
    """Capitalised words, casefolded; none if all is in capitals. Name lists are mostly these."""
    capital = () if text.isupper() else (w for w in words(text) if w[:1].isupper())
    return frozenset(word.casefold() for word in capital)
