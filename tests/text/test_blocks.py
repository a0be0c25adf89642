"""Lines read many at a time are what they are read one by one, to the last fault and place."""

import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradvac.data.spool import Spool
from gradvac.errors import CorpusError
from gradvac.text import readers, tables, textfiles
from gradvac.text.account import EXAMPLES, Account
from gradvac.text.blocks import Block, Row, block_of, doubtful, is_blank, normalise, row_of
from gradvac.text.cleaning import (
    REASONS,
    BlockJudge,
    CleaningRules,
    clean,
    judge,
    text_key,
    text_keys,
)
from gradvac.text.languages import Direction
from gradvac.text.readers import read_blocks, read_rows
from gradvac.text.sources import Source
from gradvac.text.textfiles import Fault, decode, raw_lines

# What tidy lines are made of, and everything that they have not.
PLAIN = ["a", "b", "A", "é", "ß", "д", "कि", " x", " y"]
ODD = [
    " ", "  ", "\t", "\r", "\0", "\x7f", "\x85", "\xa0", "\u2028", "\u3000", "\u1680", "e\u0301",
    "\u0958", "\ufeff", "\ud800", "\u200b", "\xad", "\u2800", "\ufe0f", "\U000e0041",
]  # fmt: skip
BYTES = st.lists(
    st.one_of(
        st.sampled_from(PLAIN),
        st.sampled_from(PLAIN),
        st.sampled_from([*PLAIN, "\t"]),
        st.sampled_from(ODD),
    ),
    max_size=9,
).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
LINE = st.one_of(BYTES, st.tuples(BYTES, BYTES).map(b"\t".join), st.just(b"\xffa\tb"))


def literal_tsv(file: Path, codes: tuple[str, ...], picked: tuple[str, ...]) -> list[Row | Fault]:
    """Each line by itself, as the manual says."""
    found: list[Row | Fault] = []
    for number, line in enumerate(file.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        where = f"{file}:{number}"
        if number == 1:
            continue
        try:
            cells = decode(line.removesuffix(b"\r"), where).split("\t")
            if len(cells) != len(codes):
                reason = "empty line" if cells == [""] else "wrong number of columns"
                raise Fault(reason, where)
            texts = dict(zip(codes, cells, strict=True))
            found.append(row_of({code: texts[code] for code in picked}, where))
        except Fault as fault:
            found.append(fault)
    return found


def told(items: list[Row | Fault]) -> list[object]:
    """Rows and faults; of a run of empty lines the first few, and how many come after them."""
    found: list[object] = []
    run = 0
    for item in items:
        if isinstance(item, Row):
            found.append(item)
        elif item.reason == "empty line":
            run += item.count
            if run - item.count < EXAMPLES:
                found.append((item.reason, item.where))
            elif run - item.count == EXAMPLES:
                found.append(run - EXAMPLES)
            else:
                found[-1] = run - EXAMPLES
            continue
        else:
            found.append((item.reason, item.where, item.count))
        run = 0
    return found


LINES = st.lists(LINE | st.just(b""), min_size=1, max_size=20)


@given(LINES, st.sampled_from([1, 3, 4096]), st.booleans())
@settings(max_examples=100)
def test_a_table_is_what_its_lines_are(tmp_path_factory, lines, size, wide):
    codes = ("en", "fr", "de") if wide else ("en", "fr")
    picked = ("de", "en") if wide else codes
    file = tmp_path_factory.getbasetemp() / "a.tsv"
    file.write_bytes(b"\n".join(["\t".join(codes).encode(), *lines]) + b"\n")
    source = Source(path=file, languages=picked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "LINES", size)
        items = list(readers._tsv(source))
    flat = list(readers.one_by_one(items))
    assert told(flat) == told(literal_tsv(file, codes, picked))
    for block in (item for item in items if isinstance(item, Block)):
        rows = [item for item in block.items() if isinstance(item, Row)]
        assert [block.where(i) for i in range(len(block))] == [row.where for row in rows]
        for i, row in enumerate(rows):
            cells = [normalise(row.texts.get(code, "")) for code in picked]
            assert block.cells[i] == cells and block.lines[i] == "\t".join(cells).encode()
            assert block.characters[i].tolist() == [len(cell) for cell in cells]
            for n, cell in enumerate(cells):
                if cell:
                    assert block.words[i, n] == len(cell.split())
                    assert block.first[i, n] == cell.encode()[0]


def test_every_character_nobody_sees_is_looked_at() -> None:
    """A cell that begins with one is read by itself; a cell of nothing else is no text."""
    hidden = [c for c in map(chr, range(0xA1, 0x110000)) if is_blank(c) and not c.isspace()]
    assert {"\u200b", "\xad", "\u2060", "\ufeff", "\u115f", "\u2800", "\U000e0041"} <= {*hidden}
    assert len(hidden) == 4174 + 1  # Default_Ignorable_Code_Point of Unicode 16, and U+2800
    lines = [f"{c}\ttext".encode() for c in hidden]
    parse = lambda i: row_of(dict(zip("ab", lines[i].decode().split("\t"), strict=True)), str(i))
    block = block_of(lines, {"a": 0, "b": 1}, 2, "", 1, parse)
    assert len(block) == 0 and len(block.faults) == len(hidden)
    assert {fault.reason for _, fault in block.faults} == {"fewer than two texts"}
    assert not any(map(is_blank, ["\u0600", "\u0301", "a\u200b", "1", "👍", "。"]))


@given(st.lists(st.tuples(BYTES, BYTES), min_size=1, max_size=12), st.integers(0, 2), st.booleans())
@example([(b"a", b"\xef\xbb\xbf"), (b"\xef\xbb\xbfa", b"b")], 0, False)
@settings(max_examples=100)
def test_aligned_files_are_what_their_lines_are(tmp_path_factory, pairs, extra, first):
    folder = tmp_path_factory.getbasetemp()
    sides = {code: [pair[n] for pair in pairs] for n, code in enumerate(("en", "fr"))}
    sides["en" if first else "fr"] += [b"x"] * extra
    paths = {code: folder / f"a.{code}" for code in sides}
    for code, own in sides.items():
        paths[code].write_bytes(b"\n".join(own) + b"\n")
    expected: list[Row | Fault] = []
    for number in range(1, len(pairs) + 1):
        try:
            mark = b"\xef\xbb\xbf" if number == 1 else b""  # with which a file may begin
            texts = {
                code: decode(
                    own[number - 1].removeprefix(mark).removesuffix(b"\r"),
                    f"{paths[code]}:{number}",
                )
                for code, own in sides.items()
            }
            expected.append(row_of(texts, f"{paths['en']}:{number}"))
        except Fault as fault:
            expected.append(fault)
    if extra:
        longer = paths["en" if first else "fr"]
        where = f"{longer}:{len(pairs) + 1}"
        expected.append(Fault("unequal numbers of lines", where, count=extra))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "LINES", 4)
        found = list(readers.one_by_one(readers._text(Source(paths=paths))))
    assert told(found) == told(expected)


def block(texts: list[tuple[str, str]]) -> Block:
    """A block of pairs, none of which is to need mending."""

    def parse(i: int) -> Row:
        raise Fault("untidy", f"a:{i}")

    lines = ["\t".join(pair).encode("utf-8", "surrogatepass") for pair in texts]
    return block_of(lines, {"en": 0, "fr": 1}, 2, "a:", 1, parse)


def test_every_character_is_tidy_or_it_is_not():
    """A line is taken as it stands exactly if reading it by itself would change nothing.

    One of which a cell begins with a character nobody sees is not.

    All characters of 16 bits, and those above that have another normal form.
    """
    numbers = [
        *range(2**16),
        *range(0x11000, 0x11A00),
        *range(0x1D100, 0x1D200),
        *range(0x2F800, 0x2FA20),
    ]
    some = [chr(n) for n in numbers if chr(n) not in "\n\t"]
    found = block([(f"a{c}b", f"{c}c") for c in some])
    taken = set((found.numbers - 1).tolist())
    assert found.mended == {} and len(taken) + len(found.faults) == len(some)
    for i, c in enumerate(some):
        tidy = normalise(f"a{c}b") == f"a{c}b" and normalise(f"{c}c") == f"{c}c"
        control = unicodedata.category(c) in ("Cc", "Cs")
        hidden = is_blank(c) or 0x1D140 <= ord(c) < 0x1D180  # three bytes in common with U+1D173
        assert (i in taken) == (tidy and not control and not hidden), hex(ord(c))


def test_text_that_is_in_nfc_whatever_its_characters_stand_beside():
    """First bytes that need no look have no mark, and no second part of a composition."""
    splits = [unicodedata.decomposition(chr(n)) for n in range(sys.maxunicode + 1)]
    seconds = {text.split()[1] for text in splits if " " in text and not text.startswith("<")}
    assert "0301" in seconds
    certain = [n for n in range(2**16) if not 0xD800 <= n < 0xE000]
    asked = doubtful(np.arange(256, dtype=np.uint8))
    certain = [chr(n) for n in certain if n >= 128 and not asked[chr(n).encode()[0]]]
    assert len(certain) > 24_000
    for c in certain:
        assert unicodedata.combining(c) == 0 and unicodedata.is_normalized("NFC", c), hex(ord(c))
        assert f"{ord(c):04X}" not in seconds, hex(ord(c))
    assert asked[0xCC] and asked[0xE0] and not asked[ord("a")]


def test_what_copies_are_told_by():
    """No character but the space folds to one with a space; texts fold character by character."""
    folded = {n: chr(n).casefold() for n in range(sys.maxunicode + 1)}
    assert [n for n, text in folded.items() if " " in text] == [32]
    assert all(folded[n] == chr(n).lower() for n in range(128))
    some = [chr(n) for n in (*range(0x250), 0x3A3, 0x3C2, 0x1E9E, 0x212A, 0xFB03, 0x10400)]
    for one, other in zip(some, reversed(some), strict=True):
        assert (one + other).casefold() == one.casefold() + other.casefold()


WORDS = ["open", "Open", "the", "ﬁle", "file", "STRASSE", "straße", "é", "42", "!", "д", "x" * 30]
SIDE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
RULES = st.builds(
    CleaningRules,
    min_characters=st.integers(1, 5),
    max_characters=st.integers(5, 60),
    min_words=st.integers(1, 2),
    max_words=st.integers(2, 5),
    max_ratio=st.sampled_from([1.0, 1.5, 4.0]),
    ratio_smoothing=st.sampled_from([0.0, 2.0, 10.0]),
    drop_copies=st.booleans(),
)


@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=15), RULES, st.sets(SIDE, max_size=3))
@settings(max_examples=100)
def test_a_block_is_judged_as_its_rows_are(pairs, rules, held):
    found = block(pairs)
    assert len(found) == len(pairs)
    keys = {text_key(text) for text in held} - {""}
    every = np.arange(len(pairs))
    for source, target in ((0, 1), (1, 0)):
        reasons = [REASONS[n] for n in BlockJudge(found, rules, keys)(source, target, every)]
        codes = found.languages[source], found.languages[target]
        rows = [row for row in found.items() if isinstance(row, Row)]
        single = [judge(row, *codes, rules, keys) for row in rows]
        assert reasons == [r if isinstance(r, str) else "" for r in single]


@given(st.lists(st.text(st.characters(exclude_characters="\n\r"), max_size=12), max_size=9))
def test_keys_of_many_texts_are_those_of_each(texts):
    assert text_keys(texts) == [text_key(text) for text in texts]


@given(
    st.lists(
        st.sampled_from([b"ab", b"\r", b"\r\n", b"\n", b"c" * 7, b"\xef\xbb\xbf"]), min_size=1
    ),
    st.integers(1, 9),
)
@settings(max_examples=100)
def test_lines_are_those_of_the_file_whatever_is_read_at_once(tmp_path_factory, parts, piece):
    data = b"".join(parts)
    file = tmp_path_factory.getbasetemp() / "lines"
    file.write_bytes(data)
    ended = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    last = ended.pop()
    expected = [line.removesuffix(b"\r") for line in ended] + ([last] if last else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfiles, "_PIECE", piece)
        try:
            found = list(raw_lines(file, 7))
        except CorpusError as e:
            assert "the file is empty" in str(e) and expected == []
            return
    assert found == [line if len(line) <= 7 else None for line in expected]


def test_a_corpus_from_blocks_is_that_from_rows(tmp_path, monkeypatch):
    """Multi-way, with gaps, faults, untidy texts and repetitions, in blocks of a few lines."""
    monkeypatch.setattr(tables, "LINES", 16)
    rng = np.random.default_rng(0)
    words = "open close file page  image\xa0x e\u0301t\xe9 the a of".split(" ")
    lines = ["en\tfr\tne"]
    for _ in range(300):
        cells = [" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(3)]
        lines.append("\t".join(cell if rng.random() < 0.8 else "" for cell in cells))
    lines[50], lines[120] = "no tab", "a\x00\tb\tc"
    files = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    files[0].write_text("\n".join(lines[:200]) + "\n", encoding="utf-8")
    swapped = ["ne\ten\tfr"] + ["\t".join(line.split("\t")[k] for k in (2, 0, 1))
                                for line in lines[200:]]  # fmt: skip
    files[1].write_text("\n".join(swapped) + "\n", encoding="utf-8")
    sources, held = [Source(path=file) for file in files], frozenset({text_key("open file")})
    one, other = Account(), Account()
    rows = [row for source in sources for row in read_rows(source, other)]
    spool = Spool(tmp_path / "spool", CleaningRules(), one, "both", None, held)
    spool.fill(item for source in sources for item in read_blocks(source, one))
    assert len(spool.names) == 4
    for name in spool.names:
        d = Direction.parse(name)
        wanted = list(
            clean(rows, d.source, d.target, CleaningRules(), other, exclude=held,
                  corpus=f"train {name}")
        )  # fmt: skip
        found = [pair for s, t in spool.texts(d, 50, 10**6) for pair in zip(s, t, strict=True)]
        assert found == [(pair.source, pair.target) for pair in wanted] and len(found) > 30
    assert one.to_dict()["corpora"] == {
        name: other.to_dict()["corpora"][name] for name in one.to_dict()["corpora"]
    }
    assert one.dropped("duplicate") > 10 and one.dropped("in evaluation text") > 3
