"""Text kept out of training: held-out strings are matched by their letters and by their words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from gradvac.text.cleaning import text_key
from gradvac.text.languages import ENGLISH
from gradvac.text.scripts import words

NEAR = 0.8
"""Word Jaccard from which two strings count as near-duplicates.

Chosen here: strings of eight words that differ in one have 7/9, those that add one have 8/9.
"""


def bag(text: str) -> frozenset[str]:
    """The words of a text, casefolded."""
    return frozenset(words(text.casefold()))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared words / all words; 0 for two texts without words."""
    return len(one & other) / max(len(one | other), 1)


class NearIndex:
    """An index of texts that finds one with a word Jaccard of at least `NEAR` to a given text.

    Exact, by the prefix filter of Bayardo et al. 2007 (Scaling up all pairs similarity search): two
    sets this similar share one of the rarest words of each, so only those are looked up.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._bags = [bag(text) for text in texts]
        self._count = Counter(word for words_ in self._bags for word in words_)
        self._where: dict[str, list[int]] = defaultdict(list)
        for index, words_ in enumerate(self._bags):
            for word in self._prefix(words_):
                self._where[word].append(index)

    def find(self, text: str) -> int | None:
        """Number of the first text that is near, None if there is none."""
        wanted = bag(text)
        found = {index for word in self._prefix(wanted) for index in self._where.get(word, ())}
        near = (index for index in found if jaccard(wanted, self._bags[index]) >= NEAR)
        return min(near, default=None)

    def _prefix(self, words_: frozenset[str]) -> list[str]:
        size = len(words_)
        # Two sets with a Jaccard of t share at least t * size words; -1e-9 for exact multiples.
        shared = -int(-(NEAR * size - 1e-9) // 1)
        rarest = sorted(words_, key=lambda word: (self._count[word], word))
        return rarest[: size - shared + 1] if size else []


class HeldOut:
    """What may not be trained on: rows of evaluation text, by English and by translation.

    `reason` says why a pair repeats one of them: an equal letters-only key (`text_key`) of either
    side, in its own language, or a near-duplicate English side.
    """

    def __init__(self, rows: Iterable[Mapping[str, str]], english: str = ENGLISH) -> None:
        rows = list(rows)
        self._english = english
        self._keys: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            for code, text in row.items():
                self._keys[code].add(text_key(text))
        for keys in self._keys.values():
            keys.discard("")
        self._near = NearIndex(row[english] for row in rows if english in row)

    def english_reason(self, english: str) -> str | None:
        """Why no pair with this English side may be trained on, whatever its translation."""
        if text_key(english) in self._keys[self._english]:
            return "English side held out"
        if self._near.find(english) is not None:
            return "English side near a held-out one"
        return None

    def translation_reason(self, language: str, translation: str) -> str | None:
        """Why a pair with this translation may not be trained on, whatever its English side."""
        held = text_key(translation) in self._keys.get(language, ())
        return "translation held out" if held else None

    def reason(self, language: str, english: str, translation: str) -> str | None:
        """Why this pair may not be trained on, None if it may."""
        return self.english_reason(english) or self.translation_reason(language, translation)
