"""Cleaning parallel text: which pairs are used for training, and why the others are left out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import regex

from gradvac.errors import RecipeError
from gradvac.text.account import ABSENT, Account, AccountLine, Policy
from gradvac.text.blocks import Block, Row, normalise

__all__ = [
    "Account",
    "AccountLine",
    "CleaningRules",
    "Pair",
    "Policy",
    "clean",
    "normalise",
    "text_key",
]


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

    # A single word or letter can be a translation too: menu entries and headings are.
    min_characters: int = 1
    # 200 words of six characters, the mean of English with its space.
    max_characters: int = 1200
    min_words: int = 1
    # Moses cleaned at 80 to 100 words for phrase tables; sentences of up to 200 words are rare
    # but correct, and longer ones are paragraphs or tables that were aligned wrongly.
    max_words: int = 200
    # In characters, longer side / shorter side. Measured on NTREX-128 with the smoothing below:
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


_NO_LETTER = regex.compile(r"[^\p{L}\p{M}]+")
# Marks that readers do not need: points of Hebrew, Arabic and Syriac, stress on Cyrillic letters,
# the dot that remains when a Turkish capital is casefolded, variants of emoji and ideographs.
_OPTIONAL = re.compile(
    "[\u0591-\u05c7\u0610-\u061a\u064b-\u0652\u0670\u06d6-\u06ed\u0730-\u074a\u034f\u180b-\u180f"
    "\ufe00-\ufe0f\U000e0100-\U000e01ef]+|(?<=[\u0400-\u052f])[\u0300\u0301]+|(?<=i)\u0307"
)


def text_key(text: str) -> str:
    """The letters of `text`, casefolded: equal keys mean texts too similar to test on and train on.

    Spaces, digits and punctuation are not letters, so "Page 1" and "page 2:" have the same key.
    Marks, such as vowel signs, are parts of letters, except those that readers do not need. Empty
    if there is no letter.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return _OPTIONAL.sub("", _NO_LETTER.sub("", folded))


_TO_LOWER = bytes(range(65)) + bytes(range(97, 123)) + bytes(range(91, 256))
_NO_ASCII_LETTER = bytes(b for b in range(128) if not chr(b).isalpha() and chr(b) != "\n")


def text_keys(texts: list[str]) -> list[str]:
    """The `text_key` of each text, which must be a single line.

    ASCII texts are done together, which takes a tenth of the time.
    """
    keys = ["" if text.isascii() else text_key(text) for text in texts]
    plain = [i for i, text in enumerate(texts) if text.isascii()]
    joined = "\n".join([texts[i] for i in plain]).encode("ascii")
    letters = joined.translate(_TO_LOWER, _NO_ASCII_LETTER).decode("ascii").split("\n")
    for i, key in zip(plain, letters, strict=False):  # for no texts there is one empty key
        keys[i] = key
    return keys


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
    out. `seen` holds the hashes of earlier pairs; give all corpora of a direction the same set to
    remove duplicates between them. `account` counts each row once, under `corpus` (by default the
    direction, `fr-en`). Duplicates are found by a hash of 8 bytes: in 100 million distinct pairs
    the probability of any false duplicate is 3 in 10,000.
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
    """The normalised pair of a row in one direction, or the reason to leave it out.

    Duplicates are not checked.

    `held_out` holds `text_key`s of evaluation text, none of them empty.
    """
    source, target = row.texts.get(source_language), row.texts.get(target_language)
    if source is None or target is None:
        return ABSENT
    source, target = normalise(source), normalise(target)
    reason = rejection(source, target, rules)
    if reason:
        return reason
    if held_out and not held_out.isdisjoint((text_key(source), text_key(target))):
        return "in evaluation text"
    return Pair(source, target, row.where)


def rejection(source: str, target: str, rules: CleaningRules) -> str | None:
    """The reason to leave a normalised pair out, found from the pair alone, or None."""
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


# Reasons to leave out a row of a block, by number; 0 is kept. In the order of the checks.
REASONS = (
    "", "target copies source", "too few characters", "too many characters", "too few words",
    "too many words", "length ratio", "in evaluation text",
)  # fmt: skip


_LOWER = np.array([ord(chr(n).lower()) for n in range(128)] + list(range(128, 256)), np.uint8)


class BlockJudge:
    """`judge` for the rows of a block, direction by direction."""

    def __init__(self, block: Block, rules: CleaningRules, held_out: AbstractSet[str]) -> None:
        self.block, self.rules, self.held_out = block, rules, held_out
        self._held: dict[int, np.ndarray] = {}

    def __call__(self, source: int, target: int, rows: np.ndarray) -> np.ndarray:
        """Number in `REASONS` for each of ``rows`` [n], which have both columns."""
        characters = self.block.characters[rows][:, [source, target]]
        words = self.block.words[rows][:, [source, target]]
        short, long = characters.min(1), characters.max(1)
        few, many = words.min(1), words.max(1)
        rules, smoothing = self.rules, self.rules.ratio_smoothing
        copies = np.zeros(len(rows), bool)
        if rules.drop_copies:
            # No other character's casefold contains a space, and the casefold of a text begins with
            # that of its first character: a copy is possible only where both agree.
            first = self.block.first[rows][:, [source, target]]
            begin = (first.max(1) >= 128) | (_LOWER[first[:, 0]] == _LOWER[first[:, 1]])
            alike = np.flatnonzero((words[:, 0] == words[:, 1]) & begin)
            copies[alike] = self._copies(rows[alike].tolist(), source, target)
        broken = (
            copies,
            short < rules.min_characters,
            long > rules.max_characters,
            few < rules.min_words,
            many > rules.max_words,
            long + smoothing > rules.max_ratio * (short + smoothing),
        )
        if self.held_out:
            broken += ((self._in_held(source) | self._in_held(target))[rows],)
        return np.select(broken, range(1, len(broken) + 1), 0)

    def _copies(self, rows: list[int], source: int, target: int) -> list[bool]:
        cells = [self.block.texts[row].split("\t") for row in rows]
        pairs = [(own[source], own[target]) for own in cells]
        return [a == b or a.casefold() == b.casefold() for a, b in pairs]

    def _in_held(self, column: int) -> np.ndarray:
        """Which rows have the letters of an evaluation text in a column; cached per column."""
        if column not in self._held:
            keys = text_keys([row[column] for row in self.block.cells])
            self._held[column] = np.array([key in self.held_out for key in keys], bool)
        return self._held[column]


def _hash(source: str, target: str) -> int:
    pair = f"{source}\n{target}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(pair, digest_size=8).digest())
