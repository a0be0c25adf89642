"""Filters of one pair of any corpus: script, copies, language; and what a whole file is in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from gradvac.errors import CorpusError, RunError
from gradvac.text.cleaning import CleaningRules, rejection
from gradvac.text.identify import Identifier
from gradvac.text.scripts import letters_of, mostly_english, script_plausible, scripts_of, words

# Half of the letters: names and quotations are often in another script than the text around them.
_SCRIPT_SHARE = 0.5
# Below this many letters identification errs more often than corpora do. Chosen here.
_IDENTIFIABLE = 25
# Rows of a file that are looked at together, which tells any two languages apart.
SAMPLE_ROWS = 200
# Languages that an identifier takes for one another.
ALIKE = tuple(
    frozenset(group.split())
    for group in ("id ms jv", "cs sk", "zu xh ss nr", "hr bs sr sl", "da no nb nn", "hi mr ne",
                  "es gl pt", "ky kk tt", "ru be uk bg mk sr", "rw rn", "fa ps")
)  # fmt: skip


def confusable(one: str, other: str) -> bool:
    """Whether two languages are one, or are taken for one another by identifiers."""
    return one == other or any(one in group and other in group for group in ALIKE)


@dataclass(slots=True)
class PairFilter:
    """Why a normalised pair of `source` and `target` language is left out.

    `languages` are those of the whole corpus, among which the identifier chooses; empty: texts are
    not identified.
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
        letters = letters_of(text)
        fits = not letters or script_plausible(letters, scripts_of(code), _SCRIPT_SHARE)
        return None if fits else f"{code} side in another script"

    def _copy(self, source: str, target: str) -> str | None:
        names = _names(source) & _names(target)
        own = frozenset(words(source.casefold())) - names
        rest = " ".join(word for word in words(target) if word.casefold() not in names)
        return "target repeats the source" if mostly_english(own, rest) else None

    def _language(self, text: str, code: str) -> str | None:
        if self._identifier is None or code in self._identifier.unknown:
            return None
        if sum(map(len, words(text))) < _IDENTIFIABLE:
            return None
        found = self._identifier.identify(text)
        return None if confusable(found, _base(code)) else f"{code} side in another language"


def _names(text: str) -> frozenset[str]:
    """Words with a capital, casefolded, but of text in capitals: a line of names has few others."""
    capital = () if text.isupper() else (w for w in words(text) if w[:1].isupper())
    return frozenset(word.casefold() for word in capital)


def check_columns(name: str, codes: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    """Refuse a file whose columns are in other languages than its header says.

    Returns a note where that could not be checked.

    Raises:
        CorpusError: columns are swapped, or one is in another language.
    """
    try:
        identifier = Identifier(_all_languages())
    except RunError as error:
        return f"{name}: columns were not checked: {error}"
    found = []
    for column, code in enumerate(codes):
        text = " ".join(row[column] for row in rows[:SAMPLE_ROWS])
        unknown = code in identifier.unknown or len(text) < 4 * _IDENTIFIABLE
        found.append(_base(code) if unknown else identifier.identify(text))
    wrong = [
        (code, other)
        for code, other in zip(codes, found, strict=True)
        if not confusable(_base(code), other)
    ]
    if not wrong:
        return None
    if len(wrong) == len(codes) == 2 and confusable(found[0], _base(codes[1])):
        raise CorpusError(
            f"{name}:1: the columns are swapped: the header says {', '.join(codes)}, "
            f"the text is in {', '.join(found)}"
        )
    told = "; ".join(f"column {code!r} is in {other!r}" for code, other in wrong)
    raise CorpusError(f"{name}:1: {told}, by the first {min(len(rows), SAMPLE_ROWS)} rows")


def _all_languages() -> Collection[str]:
    from gradvac.text.languages import LANGUAGES

    return tuple(LANGUAGES)


def _base(code: str) -> str:
    return code.split("_")[0]
