"""Which language a text is in, and how often a translation is in the wrong one.

Uses py3langid, whose model is inside its package: nothing is downloaded. It chooses among given
languages, here those of a model: a translation in a wrong language is nearly always in one of
them, and short texts are identified far better among few languages. Its error rate on references
is reported with every rate, because a rate below it means nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradvac.errors import RunError
from gradvac.text.languages import language

EXTRA = "pip install 'gradvac[langid]'"
# Our codes for which py3langid uses another code.
_ALIASES = {"nb": "no", "fil": "tl"}
IDENTIFIABLE = 25
"""Texts with fewer letters are misidentified more often than corpora are wrong. Chosen here."""
# Languages that an identifier confuses.
_ALIKE = tuple(
    frozenset(group.split())
    for group in ("id ms jv", "cs sk", "zu xh ss nr", "hr bs sr sl", "da no nb nn", "hi mr ne",
                  "es gl pt", "ky kk tt", "ru be uk bg mk sr", "rw rn", "fa ps")
)  # fmt: skip


@dataclass(frozen=True)
class OffTarget:
    """Percentages of sentences that are identified as another language than the target's.

    ``rate`` of the translations, ``of_references`` of the references: the identifier's errors.
    """

    rate: float
    of_references: float


class Identifier:
    """Identifies the languages of a model; RunError without the extra.

    ``unknown`` are those of ``languages`` that it was not trained on; they have no rate.
    """

    def __init__(self, languages: Iterable[str]) -> None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as e:
            raise RunError(f"identifying languages needs py3langid: {EXTRA}") from e
        self._model = LanguageIdentifier.from_model_file(MODEL_FILE)
        known = set(self._model.labels)
        self.unknown = tuple(sorted(c for c in set(languages) if label(c) not in known))
        self._model.set_languages({label(c) for c in languages} & known)

    def off_target(
        self, hypotheses: Sequence[str], references: Sequence[str], language: str
    ) -> OffTarget | None:
        """Rates over the sentences whose reference has a letter; None if there is none.

        Also None for a language that the identifier does not know. A translation without a letter
        is off target.
        """
        if language in self.unknown:
            return None
        pairs = [(h, r) for h, r in zip(hypotheses, references, strict=True) if _has_letters(r)]
        if not pairs:
            return None
        wrong = lambda text: not _has_letters(text) or self.identify(text) != label(language)
        return OffTarget(
            100 * statistics.fmean(wrong(h) for h, _ in pairs),
            100 * statistics.fmean(wrong(r) for _, r in pairs),
        )

    def identify(self, text: str) -> str:
        """The most probable language of a text, by the identifier's code."""
        return self._model.classify(text)[0]


def label(code: str) -> str:
    """The identifier's code of a language."""
    base = language(code).base
    return _ALIASES.get(base, base)


def confusable(one: str, other: str) -> bool:
    """Whether two languages are the same, or identifiers confuse them."""
    return one == other or any(one in group and other in group for group in _ALIKE)


def _has_letters(text: str) -> bool:
    return any(c.isalpha() for c in text)
