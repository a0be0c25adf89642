"""Columns that no longer belong together are found in real text, and intact text is left alone."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from gradvac.errors import CorpusError
from gradvac.text.account import Account
from gradvac.text.readers import read_blocks, read_rows
from gradvac.text.sources import Source
from tests.corpus.published import Pairs, pairs, shipped

CODES = ["fr", "de", "cs", "ru", "fi", "tr", "hi", "xh"]


def table(folder: Path, rows: Pairs, code: str) -> Source:
    text = f"en\t{code}\n" + "".join(f"{a}\t{b}\n" for a, b in rows)
    (folder / "a.tsv").write_text(text, encoding="utf-8", newline="\n")
    return Source(path=folder / "a.tsv")


def files(folder: Path, rows: Pairs, code: str, **options: bool) -> Source:
    for n, name in enumerate(("en", code)):
        text = "".join(row[n] + "\n" for row in rows)
        (folder / f"a.{name}").write_text(text, encoding="utf-8", newline="\n")
    return Source(paths={c: folder / f"a.{c}" for c in ("en", code)}, **options)  # type: ignore[arg-type]


def found(source: Source) -> tuple[int, str] | None:
    """The line and the message of the error, the same whichever way the rows are read."""
    told = []
    for read in (read_blocks, read_rows):
        try:
            for _ in read(source, Account()):
                pass
        except CorpusError as error:
            told.append(str(error))
        else:
            told.append("")
    assert told[0] == told[1]
    return (int(told[0].split(":")[1]), told[0]) if told[0] else None


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("order", ["as it is", "shuffled", "by length", "twice", "short first"])
def test_intact_text_is_left_alone(tmp_path: Path, code: str, order: str) -> None:
    rows = pairs(code, 0, 9000)
    if order == "shuffled":
        random.Random(1).shuffle(rows)
    elif order == "by length":
        rows.sort(key=lambda pair: len(pair[0]))
    elif order == "short first":
        rows.sort(key=lambda pair: len(pair[1].split()) > 5)
    elif order == "twice":
        rows = [row for row in rows for _ in range(2)]
    assert found(table(tmp_path, rows, code)) is None


def test_unrelated_text_is_not_called_shifted(tmp_path: Path) -> None:
    rows = pairs("de", 0, 3000)
    targets = [b for _, b in rows]
    random.Random(2).shuffle(targets)
    shuffled = list(zip([a for a, _ in rows], targets, strict=True))
    assert found(table(tmp_path, shuffled, "de")) is None


def test_lists_of_words_and_lines_all_alike_are_left_alone(tmp_path: Path) -> None:
    words = sorted({(a.split()[0], b.split()[0]) for a, b in pairs("de", 0, 9000)})
    assert found(table(tmp_path, words, "de")) is None
    same = [(f"item {n % 10}", f"Ding {n % 10}") for n in range(2000)]
    assert found(table(tmp_path, same, "de")) is None
    for factor, modulus in ((7919, 997), (31, 97), (104729, 10009), (5, 11)):
        numbers = [(str(n), str(n * factor % modulus)) for n in range(2000)]
        assert found(table(tmp_path, numbers, "de")) is None


@pytest.mark.parametrize("code", CODES)
def test_a_blank_line_in_one_file_is_named(tmp_path: Path, code: str) -> None:
    """800 lines each: after the blank one all are shifted, and the last translation is lost."""
    rng = random.Random(code)
    for side in (0, 1):
        rows = pairs(code, rng.randrange(500), 800)
        at = rng.randrange(60, 600)
        sides = [[pair[n] for pair in rows] for n in (0, 1)]
        sides[side] = [*sides[side][:at], "", *sides[side][at:-1]]
        line, told = found(files(tmp_path, list(zip(*sides, strict=True)), code)) or (0, "")
        assert line == at + 1, told
        way = "later" if side else "earlier"
        assert f"what translates a line is 1 line {way}" in told and "is empty" in told


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("lost", [1, 2, 20])
def test_lines_lost_from_one_file(tmp_path: Path, code: str, lost: int) -> None:
    rng = random.Random(f"{code} {lost}")
    rows = pairs(code, rng.randrange(500), 900)
    at = rng.randrange(60, 600)
    targets = [b for _, b in rows]
    targets = targets[:at] + targets[at + lost :] + targets[:lost]
    shifted = list(zip([a for a, _ in rows], targets, strict=True))
    line, told = found(files(tmp_path, shifted, code)) or (0, "")
    # The lines whose translations are lost go with none.
    assert -12 < line - at < lost + 12 and f"{lost} line" in told and " earlier" in told


def test_text_that_is_shifted_from_its_beginning(tmp_path: Path) -> None:
    rows = pairs("fr", 0, 500)
    shifted = [(a, b) for (a, _), (_, b) in zip(rows, rows[3:], strict=False)]
    line, told = found(table(tmp_path, shifted, "fr")) or (0, "")
    assert line < 8 and "3 lines earlier" in told


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("which", ["all", "every other"])
def test_columns_that_are_swapped_from_a_line_on(tmp_path: Path, code: str, which: str) -> None:
    rows = pairs(code, 0, 1700)
    step = 1 if which == "all" else 2
    rows[800::step] = [(b, a) for a, b in rows[800::step]]
    line, told = found(table(tmp_path, rows, code)) or (0, "")
    assert abs(line - 802) < (4 if which == "all" else 130) and "are swapped" in told


def test_two_scripts_of_one_language_and_text_left_in_english_are_not_swapped(
    tmp_path: Path,
) -> None:
    rows = pairs("ru", 0, 2000)
    latin = str.maketrans("абвгдежзийклмнопрстуфхцчшщыэюя", "abvgdežzijklmnoprstufhcčšŝyèjâ")
    rows[1000:] = [(a, b.lower().translate(latin)) for a, b in rows[1000:]]
    assert found(table(tmp_path, rows, "ru")) is None
    rows[1000:] = [(a, f"{a} !") for a, _ in rows[1000:]]
    assert found(table(tmp_path, rows, "ru")) is None


def test_one_of_several_columns(tmp_path: Path) -> None:
    header, rows = shipped()
    picked = [header.index(code) for code in ("en", "de", "fr")]
    own = [[row[n] for n in picked] for row in rows]
    own = [row for row in own if all(row)][:900]
    for n in range(899, 400, -1):
        own[n][2] = own[n - 1][2]
    text = "en\tde\tfr\n" + "".join("\t".join(row) + "\n" for row in own)
    (tmp_path / "a.tsv").write_text(text, encoding="utf-8")
    line, told = found(Source(path=tmp_path / "a.tsv")) or (0, "")
    assert abs(line - 402) < 5 and "'en' and 'fr' do not belong together" in told


def test_files_that_are_trusted(tmp_path: Path) -> None:
    rows = pairs("fr", 0, 800)
    shifted = [(a, b) for (a, _), (_, b) in pairwise(rows)]
    assert found(files(tmp_path, shifted, "fr", check=False)) is None
    assert found(files(tmp_path, shifted, "fr")) is not None
