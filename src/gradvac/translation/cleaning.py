"""Cleaning parallel text: what is fit to train on, and why the rest is not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from gradvac.errors import RecipeError
from gradvac.translation.account import Account, AccountLine, Policy
from gradvac.translation.readers import Row

__all__ = ["Account", "AccountLine", "CleaningRules", "Pair", "Policy", "clean", "text_key"]


class Pair(NamedTuple):
    """A clean sentence pair and the `file:line` it came from."""

    source: str
    target: str
    where: str


@dataclass(frozen=True, slots=True)
class CleaningRules:
    """When a pair is left out. Lengths are of the normalised text.

    Raises:
        RecipeError: a limit is not positive, a minimum is above its maximum, or `max_ratio` is
            below 1.
    """

    # A sentence of one word or one letter is a translation too: menu entries and headings are.
    min_characters: int = 1
    # 200 words of six characters, the mean of English with its space.
    max_characters: int = 1200
    min_words: int = 1
    # Moses cleaned at 80 to 100 words for phrase tables; sentences of up to 200 words are rare
    # but sound, and longer ones are paragraphs or tables that alignment got wrong.
    max_words: int = 200
    # In characters, the longer by the shorter side. Measured on NTREX-128 with the smoothing below:
    # 99 % of the English-Chinese pairs are under 3.8, and 99.9 % of the pairs of English with
    # each of 44 other languages under 3.5.
    max_ratio: float = 4.0
    # Characters added to both lengths before the ratio. Chosen here: "OK" may become "Valider".
    ratio_smoothing: float = 10.0
    # A target that repeats its source teaches copying (Khayrallah and Koehn 2018 found untranslated
    # text the most harmful noise of all).
    drop_copies: bool = True
    # Wang et al. 2021, appendix C.1: "deduplication process to remove duplicated sentence pairs".
    drop_duplicates: bool = True

    def __post_init__(self) -> None:
        for unit in ("characters", "words"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if not 1 <= low <= high:
                raise RecipeError(
                    f"min_{unit} is {low} and max_{unit} is {high}: allowed is "
                    f"1 <= min_{unit} <= max_{unit}"
                )
        if not self.max_ratio >= 1:
            raise RecipeError(f"max_ratio is {self.max_ratio}: allowed is 1 or more")
        if not self.ratio_smoothing >= 0:
            raise RecipeError(f"ratio_smoothing is {self.ratio_smoothing}: allowed is 0 or more")


_NO_LETTER = re.compile(r"[\W\d_]+")


def text_key(text: str) -> str:
    """The letters of `text`, casefolded: equal keys mean texts too alike to test on and train on.

    Spaces, digits, punctuation and combining marks are not letters, so "Page 1" and "page 2:" have
    the same key. Empty where there is no letter.
    """
    return _NO_LETTER.sub("", unicodedata.normalize("NFC", text).casefold())


def normalise(text: str) -> str:
    """`text` in Unicode NFC, each run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def clean(
    rows: Iterable[Row],
    source_language: str,
    target_language: str,
    rules: CleaningRules,
    account: Account,
    *,
    exclude: AbstractSet[str] = frozenset(),
    seen: set[int] | None = None,
    corpus: str | None = None,
) -> Iterator[Pair]:
    """Normalised pairs of one direction that pass the rules, in the order of `rows`.

    `exclude` holds `text_key`s of evaluation text: a pair with such a key on either side is left
    out. `seen` holds the hashes of pairs met so far; give one set per direction to all its corpora
    to remove duplicates between them. `account` counts each row once, under `corpus` (by default
    the direction, `fr-en`). Duplicates are recognised by a hash of 8 bytes: in 100 million distinct
    pairs the chance that any one is taken for another is 3 in 10,000.
    """
    name = corpus or f"{source_language}-{target_language}"
    account.start(name)
    held_out = exclude - {""}
    hashes: set[int] = set() if seen is None else seen
    for row in rows:
        found = judge(row, source_language, target_language, rules, held_out)
        if not isinstance(found, str) and rules.drop_duplicates:
            key = _hash(found.source, found.target)
            if key in hashes:
                found = "duplicate"
            hashes.add(key)
        if isinstance(found, str):
            account.drop(name, found, row.where)
        else:
            account.keep(name)
            yield found


def judge(
    row: Row,
    source_language: str,
    target_language: str,
    rules: CleaningRules,
    held_out: AbstractSet[str],
) -> Pair | str:
    """The normalised pair of a row in one direction, or why it is left out; duplicates aside.

    `held_out` holds `text_key`s of evaluation text, none of them empty.
    """
    source, target = row.texts.get(source_language), row.texts.get(target_language)
    if source is None or target is None:
        return "not in both languages"
    source, target = normalise(source), normalise(target)
    reason = rejection(source, target, rules)
    if reason:
        return reason
    if held_out and not held_out.isdisjoint((text_key(source), text_key(target))):
        return "in evaluation text"
    return Pair(source, target, row.where)


def rejection(source: str, target: str, rules: CleaningRules) -> str | None:
    """Why a normalised pair is left out by itself, or None."""
    short, long = sorted((len(source), len(target)))
    if short == 0:
        return "empty side"
    if rules.drop_copies and (source == target or source.casefold() == target.casefold()):
        return "target copies source"
    if short < rules.min_characters:
        return "too few characters"
    if long > rules.max_characters:
        return "too many characters"
    few, many = sorted((source.count(" ") + 1, target.count(" ") + 1))
    if few < rules.min_words:
        return "too few words"
    if many > rules.max_words:
        return "too many words"
    if long + rules.ratio_smoothing > rules.max_ratio * (short + rules.ratio_smoothing):
        return "length ratio"
    return None


def _hash(source: str, target: str) -> int:
    pair = f"{source}\n{target}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(pair, digest_size=8).digest())
