"""Build the multi-way parallel corpus from MPL-2.0 Debian packages.

Run as root or any user for whom `apt-get download` works, after `apt-get update`:

    python -m tools.corpus --cache CACHE --full FULL --shipped src/gradvac/assets/corpus

`FULL/{train,valid,test}.tsv` receive every surviving string, `--shipped` a subset of the training
rows and the same validation and test rows, compressed, and SOURCES.tsv. Printed: the tables of the
shipped README. Same packages, same bytes.

Newer packages move strings between training, validation and test text. For a model that is to be
scored on the shipped test text, keep that text, whatever the packages:

    python -m tools.corpus --cache CACHE --full FULL --evaluation src/gradvac/assets/corpus
"""

import argparse
import hashlib
import lzma
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gradvac.text.account import Account
from gradvac.text.messages import MIN_WORDS, clean, rejection, sentence_pairs
from gradvac.text.readers import read_rows
from gradvac.text.scripts import words
from gradvac.text.sources import Source

from .sources import ENGLISH_PACKAGE, LANGUAGES, Language, fetch, project_of

Rows = dict[str, dict[str, str]]  # English -> language code -> translation

EVALUATION_WORDS = 4
NEAR_DUPLICATE = 0.8  # word Jaccard from which two English strings count as the same

# A language with less than a fifth of the largest one's pairs keeps them all in the shipped corpus;
# the share of the other rows is what fits into 3.5 MiB together with them.
LOW_RESOURCE = 0.2
SHIPPED_SHARE = 0.45


def split_key(text: str) -> str:
    """What decides the split: letters (with their vowel signs) only, case-folded.

    "Insert ~Table 2..." and "insert table" have one key, so they never fall on two sides.
    """
    folded = unicodedata.normalize("NFC", text.casefold())
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LM")


def hash_of(key: str) -> int:
    """A fixed pseudo-random number in [0, 2^64) for a key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


class NearDuplicates:
    """English strings, searchable for one that shares most of its words with a given one."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._where: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        bag = set(words(text.casefold()))
        for word in bag:
            self._where[word].append(len(self._sizes))
        self._sizes.append(len(bag))

    def has(self, text: str) -> bool:
        """Whether some added string has a word Jaccard of at least 0.8 with this one."""
        bag = set(words(text.casefold()))
        shared = Counter(index for word in bag for index in self._where.get(word, ()))
        return any(
            common / (len(bag) + self._sizes[index] - common) >= NEAR_DUPLICATE
            for index, common in shared.items()
        )


def gather(
    languages: Iterable[Language], packages: Mapping[str, Mapping], min_words: int = MIN_WORDS
) -> tuple[Rows, dict[str, Counter]]:
    """Clean pairs of all languages, one translation per English string, and what was dropped.

    A language's packages are read best first, so help wins over interface over browsers.
    """
    rows: Rows = defaultdict(dict)
    dropped: dict[str, Counter] = {}
    for language in languages:
        counts = dropped[language.code] = Counter()
        for package in language.packages():
            if package not in packages:
                continue
            for english, translation in clean_pairs(package, packages):
                why = rejection(english, translation, language.code, min_words)
                if why is None and language.code in rows.get(english, ()):
                    why = "English string seen before"
                if why is None:
                    rows[english][language.code] = translation
                else:
                    counts[why] += 1
    return dict(rows), dropped


def clean_pairs(package: str, packages: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
    """Cleaned sentence pairs of one package with its English twin, in the package's order."""
    project = project_of(package)
    catalogue = project == "libreoffice-l10n"
    english_texts = None if catalogue else packages[ENGLISH_PACKAGE[project]]["texts"]
    for key, translation in packages[package]["texts"].items():
        english = key if english_texts is None else english_texts.get(key)
        if english and translation:
            yield from sentence_pairs(clean(english, catalogue), clean(translation, catalogue))


def choose_evaluation(rows: Rows, codes: list[str], wanted: int) -> tuple[list[str], list[str]]:
    """Validation and test strings: in every language, at least 4 words, none near another.

    Candidates are taken in the order of their key's hash and dealt in turn.
    """
    complete = [
        english
        for english, cells in rows.items()
        if len(cells) == len(codes) and len(words(english)) >= EVALUATION_WORDS
    ]
    chosen: list[str] = []
    near, taken = NearDuplicates(), {code: set() for code in ["en", *codes]}
    for english in sorted(complete, key=lambda text: (hash_of(split_key(text)), text)):
        keys = {"en": split_key(english)}
        keys |= {code: split_key(rows[english][code]) for code in codes}
        if near.has(english) or any(keys[code] in taken[code] for code in keys):
            continue
        near.add(english)
        for code, key in keys.items():
            taken[code].add(key)
        chosen.append(english)
        if len(chosen) == 2 * wanted:
            break
    return chosen[0::2], chosen[1::2]


def earlier_evaluation(folder: Path) -> tuple[Rows, Rows]:
    """The validation and the test rows of an earlier build, from its `.tsv.xz`."""
    parts: list[Rows] = []
    for part in ("valid", "test"):
        read = read_rows(Source(path=folder / f"{part}.tsv.xz"), Account("fail"))
        parts.append(
            {row.texts["en"]: {c: t for c, t in row.texts.items() if c != "en"} for row in read}
        )
    valid, test = parts
    return valid, test


def training_rows(rows: Rows, held_out: Rows) -> tuple[Rows, Counter]:
    """All rows that leak nothing of the held-out ones, and how many each rule dropped."""
    near = NearDuplicates()
    keys: dict[str, set[str]] = defaultdict(set)
    for english, cells in held_out.items():
        near.add(english)
        keys["en"].add(split_key(english))
        for code, translation in cells.items():
            keys[code].add(split_key(translation))
    kept: Rows = {}
    dropped: Counter = Counter()
    for english, cells in rows.items():
        if split_key(english) in keys["en"]:
            dropped["English key held out (rows)"] += 1
        elif near.has(english):
            dropped["English near-duplicate of a held-out string (rows)"] += 1
        else:
            kept[english] = {c: t for c, t in cells.items() if split_key(t) not in keys[c]}
            dropped["translation's key held out (pairs)"] += len(cells) - len(kept[english])
    return {english: cells for english, cells in kept.items() if cells}, dropped


def tsv(rows: Rows, chosen: Iterable[str], codes: list[str]) -> str:
    """The file format: header of codes, one English string a row, empty where untranslated."""
    lines = ["\t".join(["en", *codes])]
    lines += ["\t".join([e, *(rows[e].get(code, "") for code in codes)]) for e in chosen]
    return "\n".join(lines) + "\n"


def shipped_rows(train: Rows, share: float) -> Rows:
    """The rows of every low-resource language, and a fixed `share` of the others by hash.

    Rows are kept whole: the English string is paid for once, and so stays multi-way.
    """
    pairs = Counter(code for cells in train.values() for code in cells)
    poor = {code for code, count in pairs.items() if count < LOW_RESOURCE * max(pairs.values())}
    return {
        english: cells
        for english, cells in train.items()
        if poor & cells.keys() or hash_of(split_key(english)) < share * 2**64
    }


def write_full(folder: Path, tables: Mapping[str, str]) -> None:
    """Write `train.tsv`, `valid.tsv` and `test.tsv` as plain text."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        (folder / f"{split}.tsv").write_text(table, encoding="utf-8")


def write_shipped(
    folder: Path, tables: Mapping[str, str], packages: Mapping[str, Mapping]
) -> dict[str, int]:
    """Write the compressed tables and `SOURCES.tsv`; return the size of each in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split, table in tables.items():
        packed = lzma.compress(table.encode(), preset=9 | lzma.PRESET_EXTREME)
        (folder / f"{split}.tsv.xz").write_bytes(packed)
        sizes[split] = len(packed)
    sources = ["package\tversion\tsha256\tlicence"]
    for name, record in sorted(packages.items()):
        sources.append(f"{name}\t{record['version']}\t{record['sha256']}\tMPL-2.0")
    (folder / "SOURCES.tsv").write_text("\n".join(sources) + "\n", encoding="utf-8")
    return sizes


def markdown(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["-"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def report(full: Rows, shipped: Rows, held_out: int, drops: Mapping[str, Counter]) -> str:
    """Pairs per language and what each rule dropped, as the tables of the shipped README."""
    all_pairs = Counter(code for cells in full.values() for code in cells)
    pairs = Counter(code for cells in shipped.values() for code in cells)
    languages = sorted(LANGUAGES, key=lambda language: -pairs[language.code])
    columns = [language.code for language in languages]
    rules = sorted({rule for counts in drops.values() for rule in counts})
    return (
        markdown(
            ["code", "language", "family", "train", "valid", "test", "train before subsampling"],
            (
                (x.code, x.name, x.family, pairs[x.code], held_out, held_out, all_pairs[x.code])
                for x in languages
            ),
        )
        + "\n"
        + markdown(
            ["dropped", *columns],
            ([rule, *(drops[code][rule] for code in columns)] for rule in rules),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="downloads; may be reused")
    parser.add_argument("--full", type=Path, required=True, help="folder for all rows, as .tsv")
    parser.add_argument("--shipped", type=Path, help="folder for the .tsv.xz; default: none")
    parser.add_argument("--held-out", type=int, default=350, help="rows of valid and test each")
    parser.add_argument(
        "--evaluation", type=Path, help="an earlier --shipped, whose valid and test rows are kept"
    )
    parser.add_argument(
        "--min-words", type=int, default=MIN_WORDS, help="fewest English words of a pair"
    )
    parser.add_argument("--share", type=float, default=SHIPPED_SHARE, help="of the rich rows")
    options = parser.parse_args()

    codes = [language.code for language in LANGUAGES]
    packages = fetch(list(LANGUAGES), options.cache)
    rows, drops = gather(LANGUAGES, packages, options.min_words)
    if options.evaluation:
        valid, test = earlier_evaluation(options.evaluation)
    else:
        chosen = choose_evaluation(rows, codes, options.held_out)
        valid, test = ({english: rows[english] for english in part} for part in chosen)
    train, leaks = training_rows(rows, valid | test)
    tables = {"valid": tsv(valid, valid, codes), "test": tsv(test, test, codes)}
    write_full(options.full, {"train": tsv(train, train, codes), **tables})
    shipped = shipped_rows(train, options.share)
    print(report(train, shipped, len(test), drops))
    print(markdown(["kept from leaking", "dropped"], leaks.items()))
    print(f"rows: {len(train)} full")
    if options.shipped:
        tables = {"train": tsv(shipped, shipped, codes), **tables}
        sizes = write_shipped(options.shipped, tables, packages)
        print(f"rows: {len(shipped)} shipped; bytes: {sizes}")


if __name__ == "__main__":
    main()
