"""The laboratory's text: the same numbers in the words of many languages.

    pip install num2words==0.5.14
    python -m tools.numbers corpora/numbers

Writes what `data: {corpus: corpora/numbers}` in a recipe takes: `train/en-XX.tsv`, `valid.tsv` and
`test.tsv` (all languages in a row), a `vocabulary.model` of all of them and `README.md`. Number
words are parallel text without end, and what makes two languages alike is known: units before
tens in German, Dutch, Danish and Slovenian, twenties in French, Danish and Welsh, agreement in
Slavic and Baltic ones, one Turkic family in two scripts. Same arguments and package, same bytes.

num2words (LGPL) is needed for this alone. It makes mistakes; all runs have the same ones.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradvac.translation.vocabulary import train_vocabulary

LARGEST = 999_999
SMALLEST_HELD_OUT = 100
"""Validation and test have no number below this: there are too few of them to keep any back."""

# By family: the languages whose words for all numbers up to LARGEST the package knows.
FAMILIES = {
    "Romance": "es pt fr it ro ca",
    "Germanic": "de nl da no sv is",
    "Slavic": "ru uk be pl cs sl sr",
    "Baltic": "lt lv",
    "Celtic": "cy",
    "Iranian": "fa tg",
    "Turkic": "tr az kk",
    "Uralic": "fi hu",
    "Semitic": "ar he",
    "Austronesian": "id",
    "Austroasiatic": "vi",
}
LANGUAGES = [code for codes in FAMILIES.values() for code in codes.split()]
_OTHER_CODES = {"kk": "kz"}  # what the package calls them


def words(number: int, language: str) -> str:
    """A number in words; single spaces, since some languages come with two."""
    try:
        said: Any = import_module("num2words").num2words
    except ModuleNotFoundError:
        raise SystemExit("tools.numbers needs num2words: pip install num2words==0.5.14") from None
    return " ".join(said(number, lang=_OTHER_CODES.get(language, language)).split())


def draw(count: int, held_out: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Different numbers for training, validation and test, their logarithms uniform.

    A long number is as frequent as a short one, as with lengths of sentences.

    Example:
        >>> train, valid, test = draw(4, 2, seed=1)
        >>> len({*train, *valid, *test}), min(valid + test) >= SMALLEST_HELD_OUT
        (8, True)
    """
    source = random.Random(seed)
    taken: set[int] = set()

    def some(n: int, least: int) -> list[int]:
        found: list[int] = []
        while len(found) < n:
            number = round(math.exp(source.uniform(math.log(least), math.log(LARGEST))))
            if number not in taken:
                taken.add(number)
                found.append(number)
        return found

    test, valid = some(held_out, SMALLEST_HELD_OUT), some(held_out, SMALLEST_HELD_OUT)
    return some(count, 1), valid, test


def write_corpus(out: Path, count: int, held_out: int, pieces: int, seed: int) -> None:
    """Write the folder; ``count`` and ``held_out`` are numbers in each language."""
    train, valid, test = draw(count, held_out, seed)
    (out / "train").mkdir(parents=True, exist_ok=True)
    said = {code: [words(n, code) for n in train] for code in ["en", *LANGUAGES]}
    for code in LANGUAGES:
        pairs = zip(said["en"], said[code], strict=True)
        _write(out / "train" / f"en-{code}.tsv", ["en", code], pairs)
    for name, numbers in (("valid", valid), ("test", test)):
        rows = ([words(n, code) for code in said] for n in numbers)
        _write(out / f"{name}.tsv", list(said), rows)
    vocabulary = train_vocabulary(said, size=pieces, byte_fallback=False, character_coverage=1.0)
    vocabulary.save(out / "vocabulary.model")
    (out / "README.md").write_text(
        f"# Numbers in the words of {len(said)} languages\n\n"
        f"`python -m tools.numbers`, num2words {version('num2words')}, seed {seed}: {count} "
        f"numbers for training, {held_out} each for validation and test, up to {LARGEST:,}, none "
        f"in two sets; a vocabulary of {pieces} pieces.\n",
        encoding="utf-8",
    )


def _write(file: Path, codes: list[str], rows: Iterable[Iterable[str]]) -> None:
    lines = ("\t".join(row) + "\n" for row in (codes, *rows))
    file.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a folder: corpora/numbers")
    parser.add_argument("--train", type=int, default=8500, help="numbers of the training text")
    parser.add_argument("--held-out", type=int, default=300, help="numbers of each other set")
    parser.add_argument("--pieces", type=int, default=1200, help="of the vocabulary")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_corpus(args.out, args.train, args.held_out, args.pieces, args.seed)
    print(f"{args.out}: {args.train} numbers in English and {len(LANGUAGES)} other languages")


if __name__ == "__main__":
    main()
