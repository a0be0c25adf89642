"""What the README of the shipped corpus promises, checked on the shipped files."""

import lzma
import math
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[2] / "src" / "gradvac" / "assets" / "corpus"
SPLITS = ("train", "valid", "test")


def keys(texts: list[str]) -> set[str]:
    """Letters and vowel signs of each text, case-folded; written apart from the tool."""
    folded = [unicodedata.normalize("NFC", text.casefold()) for text in texts]
    others = {c for c in set("".join(folded)) if unicodedata.category(c)[0] not in "LM"}
    return {text.translate(dict.fromkeys(map(ord, others))) for text in folded}


@pytest.fixture(scope="module")
def tables() -> dict[str, list[list[str]]]:
    return {
        split: [
            line.split("\t")
            for line in lzma.decompress((CORPUS / f"{split}.tsv.xz").read_bytes())
            .decode("utf-8")
            .splitlines()
        ]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def readme() -> dict[str, list[str]]:
    """First column -> other columns of every table row of the README."""
    lines = (CORPUS / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {row[0]: row[1:] for row in cells}


def pairs(table: list[list[str]]) -> Counter[str]:
    header, *rows = table
    return Counter(code for row in rows for code, cell in zip(header, row, strict=True) if cell)


def test_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) <= 4 * 2**20


def test_every_split_has_the_same_columns_and_clean_cells(
    tables: dict[str, list[list[str]]],
) -> None:
    header = tables["train"][0]
    assert header[0] == "en" and len(set(header)) == len(header)
    for table in tables.values():
        assert table[0] == header
        for row in table[1:]:
            assert len(row) == len(header)
            assert row[0] and any(row[1:])
            assert all(cell == " ".join(cell.split()) for cell in row)


def test_languages_and_families(
    tables: dict[str, list[list[str]]], readme: dict[str, list[str]]
) -> None:
    codes = tables["train"][0][1:]
    assert len(codes) >= 8
    families = Counter(readme[code][1] for code in codes)
    assert len(families) >= 5
    assert sum(members >= 2 for members in families.values()) >= 3


def test_imbalance_is_natural(tables: dict[str, list[list[str]]]) -> None:
    counts = pairs(tables["train"])
    del counts["en"]
    assert max(counts.values()) >= 10 * min(counts.values())


def test_evaluation_is_complete_in_every_language(tables: dict[str, list[list[str]]]) -> None:
    for split in ("valid", "test"):
        assert len(tables[split]) > 250
        for row in tables[split][1:]:
            assert all(row)
            assert len(re.findall(r"[^\W\d_]+", row[0])) >= 4


def test_placeholders_are_equal_in_number(tables: dict[str, list[list[str]]]) -> None:
    for table in tables.values():
        for english, *others in table[1:]:
            assert all(cell.count("{}") == english.count("{}") for cell in others if cell)


def test_no_key_in_two_splits_in_any_language(tables: dict[str, list[list[str]]]) -> None:
    for column, code in enumerate(tables["train"][0]):
        train, valid, test = (
            keys([row[column] for row in tables[split][1:] if row[column]]) for split in SPLITS
        )
        assert not train & valid | train & test | valid & test, code


def test_no_near_duplicate_across_splits(tables: dict[str, list[list[str]]]) -> None:
    """Word Jaccard below 0.8 between all pairs.

    Sets that reach it share all but a fifth of the words of either, so at least one of any
    `size - ceil(0.8 size) + 1` of them: the rarest are tried.
    """
    bags = {
        split: [frozenset(re.findall(r"[^\W\d_]+", row[0].casefold())) for row in table[1:]]
        for split, table in tables.items()
    }
    frequency = Counter(word for bag in bags["train"] for word in bag)
    for held, others in (("test", "train"), ("test", "valid"), ("valid", "train")):
        with_word: dict[str, list[frozenset[str]]] = {}
        for bag in bags[others]:
            for word in bag:
                with_word.setdefault(word, []).append(bag)
        for bag in bags[held]:
            rarest = sorted(bag, key=lambda word: frequency[word])
            for word in rarest[: len(bag) - math.ceil(0.8 * len(bag)) + 1]:
                for other in with_word.get(word, ()):
                    assert 5 * len(bag & other) < 4 * len(bag | other)


def test_readme_counts_are_those_of_the_files(
    tables: dict[str, list[list[str]]], readme: dict[str, list[str]]
) -> None:
    counts = {split: pairs(table) for split, table in tables.items()}
    for code in tables["train"][0][1:]:
        assert [int(cell) for cell in readme[code][2:5]] == [counts[s][code] for s in SPLITS]


def test_sources_name_every_package_with_its_digest() -> None:
    header, *rows = (CORPUS / "SOURCES.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "package\tversion\tsha256\tlicence"
    for row in rows:
        package, version, digest, licence = row.split("\t")
        assert package and version
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
        assert licence == "MPL-2.0"
    assert (CORPUS / "LICENSE.MPL-2.0").read_text(encoding="utf-8").startswith("Mozilla Public")
