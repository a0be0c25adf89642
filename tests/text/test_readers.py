"""Readers: every format, every fault. Expected rows and counts are written out by hand."""

import bz2
import csv
import gettext
import gzip
import itertools
import json
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import polib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvac.errors import CorpusError, RecipeError
from gradvac.text.account import Account
from gradvac.text.blocks import is_blank
from gradvac.text.escapes import undone
from gradvac.text.readers import Row, read_blocks, read_rows
from gradvac.text.sources import FORMATS, Source


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(source: Source, policy: str = "drop") -> tuple[list[Row], Account]:
    account = Account(policy)  # type: ignore[arg-type]
    return list(read_rows(source, account)), account


def reasons(account: Account) -> dict[str, int]:
    return {line.reason: line.count for line in account.table()}


def texts(rows: list[Row]) -> list[dict[str, str]]:
    return [row.texts for row in rows]


# --- tsv --------------------------------------------------------------------------------------


def test_tsv_reads_its_header_and_leaves_missing_cells_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "en\tfr\tpt-BR\nhello\tbonjour\tolá\nyes\t \tsim\nno\tnon\t\n")
    rows, account = read(Source(path=path))
    assert texts(rows) == [
        {"en": "hello", "fr": "bonjour", "pt_BR": "olá"},
        {"en": "yes", "pt_BR": "sim"},
        {"en": "no", "fr": "non"},
    ]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:3", f"{path}:4"]
    assert reasons(account) == {"kept": 3}


def test_tsv_without_header_takes_the_languages_of_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "hello\tbonjour\nyes\toui")
    rows, _ = read(Source(path=path, languages=("en", "fr")))
    assert texts(rows) == [{"en": "hello", "fr": "bonjour"}, {"en": "yes", "fr": "oui"}]
    assert rows[0].where == f"{path}:1"


def test_tsv_with_header_and_languages_picks_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "en\tde\tfr\nhello\thallo\tbonjour\n")
    rows, _ = read(Source(path=path, languages=("fr", "en")))
    assert texts(rows) == [{"fr": "bonjour", "en": "hello"}]


def test_tsv_may_name_a_language_the_table_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "en\tqqq\nhello\tqa\n")
    rows, _ = read(Source(path=path, languages=("en", "qqq")))
    assert texts(rows) == [{"en": "hello", "qqq": "qa"}]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("en\tfr\ten", "1: column 'en' appears twice in the header"),
        ("en\tfr\tpt-BR\tpt_BR", "1: column 'pt_BR' appears twice in the header"),
        ("en\tfrr", "1: unknown column 'frr' in the header.*did you mean 'fr'"),
        ("Hello\tBonjour", "1: unknown column 'Hello'.*name the columns with languages"),
        ("en", "1: the header has one column, 'en'"),
        ("en\t\x00fr", r"1: control character in the header: '\\x00' at column 4"),
    ],
)
def test_tsv_header_faults_are_fatal_and_located(tmp_path: Path, header: str, message: str) -> None:
    path = write(tmp_path / "a.tsv", f"{header}\nhello\tbonjour\n")
    with pytest.raises(CorpusError, match=f"^{path}:{message}"):
        read(Source(path=path))


def test_tsv_header_without_a_wanted_language(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "en\tfr\nhello\tbonjour\n")
    with pytest.raises(CorpusError, match=r":1: no column 'de'; the header has en, fr"):
        read(Source(path=path, languages=("en", "de")))


# Each line of the file below the header: what it is, and the reason it is left out.
FAULTY_TSV: list[tuple[bytes, str]] = [
    (b"a\tb", "kept"),
    (b"caf\xe9\tcafe", "invalid UTF-8"),
    (b"a\tb\tc", "wrong number of columns"),
    (b"a", "wrong number of columns"),
    (b"", "empty line"),
    (b" \t ", "empty line"),
    (b"a\t", "fewer than two texts"),
    (b"a\x00\tb", "control character"),
    (b"a\tb\x1b[0m", "control character"),
    (b"a\tb\xc2\x85c", "control character"),
    (b"a\rc\tb", "control character"),
    (b"x" * 60 + b"\t" + b"y" * 60, "line too long"),
    ("a\u2028b\tc\u2029d".encode(), "kept"),
    (b"z" * 100_000, "line too long"),
    (b"y" * 49 + b"\t" + b"z" * 50, "kept"),
]


def test_tsv_counts_every_fault_once_and_locates_it(tmp_path: Path) -> None:
    lines = [b"en\tfr", *(line for line, _ in FAULTY_TSV)]
    path = write(tmp_path / "a.tsv", b"\n".join(lines) + b"\n")
    rows, account = read(Source(path=path, line_limit=100))
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:14", f"{path}:16"]
    assert rows[1].texts == {"en": "a\u2028b", "fr": "c\u2029d"}
    expected: dict[str, int] = {}
    for _, reason in FAULTY_TSV:
        expected[reason] = expected.get(reason, 0) + 1
    assert reasons(account) == expected
    first = {line.reason: line.first for line in account.table()}
    assert first["invalid UTF-8"] == f"{path}:3"
    assert first["line too long"] == f"{path}:13"
    assert account.read() == len(FAULTY_TSV)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"caf\xe9\tcafe", "invalid UTF-8: byte 0xe9 at column 4"),
        (b"a\tb\tc", "wrong number of columns: 3 instead of 2"),
        (b"", "empty line"),
        (b"a\x00\tb", r"control character: '\\x00' at column 2"),
        (b"a\tb\rc", r"control character: '\\r' at column 4"),
    ],
)
def test_policy_fail_ends_at_the_first_problem(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.tsv", b"en\tfr\na\tb\n" + line + b"\nc\td\n")
    account = Account("fail")
    rows = read_rows(Source(path=path), account)
    assert next(rows).texts == {"en": "a", "fr": "b"}
    with pytest.raises(CorpusError, match=f"^{path}:3: {message}$"):
        next(rows)
    assert account.dropped() == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, end: str, mark: bytes) -> None:
    path = write(tmp_path / "a.tsv", mark + end.join(["en\tfr", "a\tb", "c\td", ""]).encode())
    assert texts(read(Source(path=path))[0]) == [{"en": "a", "fr": "b"}, {"en": "c", "fr": "d"}]


def test_utf16_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "en\tfr\n".encode("utf-16"))
    with pytest.raises(CorpusError, match=r":1: this is UTF-16"):
        read(Source(path=path))


# --- files and compression --------------------------------------------------------------------


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "corpus.tsv", "en\tfr\n")
    with pytest.raises(CorpusError, match=r"korpus.tsv: no such file; did you mean 'corpus.tsv'"):
        read(Source(path=tmp_path / "korpus.tsv"))
    with pytest.raises(CorpusError, match=r"no such file$"):
        read(Source(path=tmp_path / "nowhere" / "corpus.tsv"))


@pytest.mark.parametrize("format_", FORMATS)
def test_directories_and_empty_files(tmp_path: Path, format_: str) -> None:
    (tmp_path / "folder").mkdir()
    empty = write(tmp_path / "empty", b"")
    for path, message in ((tmp_path / "folder", "is a directory"), (empty, "the file is empty")):
        where = (
            {"path": path}
            if format_ in ("tsv", "csv", "jsonl")
            else {"paths": {"fr": path, "de": path}}
        )
        with pytest.raises(CorpusError, match=message):
            read(Source(format=format_, **where))  # type: ignore[arg-type]


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": lambda data: bz2.compress(data, 1),  # blocks of 100 kB, so that a part can be read
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("named", [True, False])
def test_compressed_files_are_read_whatever_their_name(
    tmp_path: Path, suffix: str, named: bool
) -> None:
    path = write(
        tmp_path / ("a.tsv" + suffix if named else "a.tsv"),
        COMPRESSORS[suffix](b"en\tfr\nhello\tbonjour\n"),
    )
    rows, _ = read(Source(path=path))
    assert rows == [Row({"en": "hello", "fr": "bonjour"}, f"{path}:2")]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_truncated_compressed_file_names_the_line_reached(tmp_path: Path, suffix: str) -> None:
    body = "".join(f"{i * 7919 % 10007}\t{i * 104729 % 10009}\n" for i in range(20_000))
    whole = COMPRESSORS[suffix](("en\tfr\n" + body).encode())
    path = write(tmp_path / ("a.tsv" + suffix), whole[: len(whole) * 3 // 4])
    account = Account()
    with pytest.raises(CorpusError) as caught:
        list(read_rows(Source(path=path), account))
    reached = 1 + account.read()
    assert str(caught.value).startswith(f"{path}:{reached + 1}: cannot be read further: ")
    assert reached > 1000


TAILS: dict[str, Callable[[bytes], bytes]] = {
    "damaged at its start": lambda stream: b"\0" + stream[1:] if stream[:1] != b"\0" else stream,
    "damaged in its header": lambda stream: stream[:3] + bytes([stream[3] ^ 0xFF]) + stream[4:],
    "damaged within": lambda stream: stream[:60] + bytes([stream[60] ^ 0x10]) + stream[61:],
    "cut off": lambda stream: stream[: len(stream) // 2],
    "cut off in its header": lambda stream: stream[:5],
    "text": lambda _: b"3\tc\n4\td\n",
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("kind", TAILS)
def test_no_stream_of_a_compressed_file_is_dropped(tmp_path: Path, suffix: str, kind: str) -> None:
    """Parallel compressors write several streams; the second half of the rows is in the second."""
    halves = ["".join(f"{n}\t{n * 7919 % 997}\n" for n in range(a, a + 1000)) for a in (1, 1001)]
    first, second = (
        COMPRESSORS[suffix](half.encode()) for half in ("en\tfr\n" + halves[0], halves[1])
    )
    whole = write(tmp_path / ("whole.tsv" + suffix), first + second)
    assert len(read(Source(path=whole))[0]) == 2000
    broken = write(tmp_path / ("a.tsv" + suffix), first + TAILS[kind](second))
    with pytest.raises(CorpusError, match=rf"a\.tsv\{suffix}:1\d\d\d: cannot be read further"):
        read(Source(path=broken))


def test_padding_of_xz_and_many_small_streams(tmp_path: Path) -> None:
    parts = [lzma.compress(line.encode()) for line in ("en\tfr\n", "a\tb\n", "", "c\td\n")]
    padded = write(tmp_path / "a.tsv.xz", (b"\0" * 8).join(parts) + b"\0" * 4)
    assert texts(read(Source(path=padded))[0]) == [{"en": "a", "fr": "b"}, {"en": "c", "fr": "d"}]


@pytest.mark.parametrize("line", [b"", b"\r", b" \t"])
def test_a_million_empty_lines_are_refused_at_once(tmp_path: Path, line: bytes) -> None:
    many = (line + b"\n") * 1_300_000
    bomb = write(tmp_path / "a.tsv.gz", gzip.compress(b"en\tfr\na\tb\n" + many * 20))
    account = Account()
    with pytest.raises(CorpusError, match=r"a\.tsv\.gz:\d+: more than 1,000,000 empty lines"):
        list(read_rows(Source(path=bomb), account))
    (dropped,) = [found for found in account.table() if found.reason == "empty line"]
    assert 700_000 < dropped.count <= 1_300_000 and dropped.first == f"{bomb}:3"


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_suffix_that_promises_a_compression_the_file_lacks(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / ("a.tsv" + suffix), "en\tfr\na\tb\n")
    with pytest.raises(CorpusError, match=f":1: ends in {suffix} but is not compressed"):
        read(Source(path=path))


def test_text_that_looks_like_a_magic_number_stays_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "BZh9\tfr\nx\ty\n")
    rows, _ = read(Source(path=path, languages=("en", "fr")))
    assert len(rows) == 2


# --- quotation marks --------------------------------------------------------------------------

CELL = st.lists(st.sampled_from(["a", "é", '"', ",", ";", "\n", "\t", " ", "x y"]), min_size=1).map(
    lambda parts: f"w{''.join(parts)}"
)


@settings(max_examples=60)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.sampled_from([",", ";", "\t"]))
def test_what_csv_writes_is_read(tmp_path_factory, rows, separator: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.getbasetemp() / ("a.tsv" if separator == "\t" else "a.csv")
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, delimiter=separator, lineterminator="\n").writerows([("en", "fr"), *rows])
    found, _ = read(Source(path=path, quoted=True), "fail")
    assert texts(found) == [{"en": a, "fr": b} for a, b in rows]
    starts = itertools.accumulate((1 + sum(c.count("\n") for c in row) for row in rows), initial=2)
    assert [row.where for row in found] == [f"{path}:{n}" for n in [*starts][:-1]]


def test_quoted_line_ends_are_not_lost_in_silence(tmp_path: Path) -> None:
    text = 'en\tfr\na\tb\n"one\ntwo, ""three"""\tun\nc\td\n'
    path = write(tmp_path / "a.tsv", text)
    with pytest.raises(CorpusError, match=r"a\.tsv:3: a cell in quotation marks .*quoted: true"):
        read(Source(path=path))
    rows, _ = read(Source(path=path, quoted=True))
    assert texts(rows)[1] == {"en": 'one\ntwo, "three"', "fr": "un"}
    path = write(tmp_path / "c.tsv", 'en\tfr\na\tb\nun\t"one\n\ntwo"\nc\td\n')  # in the last cell
    with pytest.raises(CorpusError, match=r"c\.tsv:\d: a cell in quotation marks"):
        read(Source(path=path))
    assert texts(read(Source(path=path, quoted=True))[0])[1] == {"en": "un", "fr": "one\n\ntwo"}
    # A quotation mark in the text of a table without them is text.
    path = write(tmp_path / "b.tsv", 'en\tfr\n"Hello," he said\t"Salut"\n"a\tb\tc\n6" x\ty\n')
    rows, account = read(Source(path=path))
    assert texts(rows) == [
        {"en": '"Hello," he said', "fr": '"Salut"'},
        {"en": '6" x', "fr": "y"},
    ]
    assert account.dropped("wrong number of columns") == 1


def test_faults_of_quoted_tables(tmp_path: Path) -> None:
    lines = ["en,fr", "a,b", "a,b,c", "", '"a"x,b', '"a\x07",b', 'c,"d', "e,f"]
    path = write(tmp_path / "a.csv", "\n".join(lines))
    rows, account = read(Source(path=path))
    assert texts(rows) == [{"en": "a", "fr": "b"}]
    assert {line.reason: line.first for line in account.table()[1:]} == {
        "wrong number of columns": f"{path}:3",
        "empty line": f"{path}:4",
        "a quotation mark that is not closed": f"{path}:5",
        "control character": f"{path}:6",
    }
    with pytest.raises(CorpusError, match=r":1: unknown column 'Hello' in the header"):
        read(Source(path=write(tmp_path / "b.csv", "Hello,Bonjour\na,b\n")))
    with pytest.raises(RecipeError, match="quoted is for tsv and csv"):
        Source(format="text", paths={"en": path, "fr": path}, quoted=True)


# --- escapes of Moses -------------------------------------------------------------------------


def test_escapes_of_moses_are_noted_or_undone(tmp_path: Path) -> None:
    english = "don &apos;t &#91; a @-@ b &#93; &lt; &amp;lt; &quot;"
    path = write(tmp_path / "a.tsv", f"en\tfr\nx & y\tz@-@z\n{english}\tw\nv @-@\tAT&T\n")
    what = "escapes of Moses (&apos; @-@); unescape: true (in an import, --unescape) undoes them"
    for blocks in (False, True):
        account = Account()
        for _ in (read_blocks if blocks else read_rows)(Source(path=path), account):
            pass
        assert account.to_dict()["corpora"][str(path)]["notes"] == {
            what: {"count": 2, "first": [f"{path}:3", f"{path}:4"]}
        }
        assert f"note: {path}: {what}: 2 rows" in str(account)
    rows, account = read(Source(path=path, unescape=True))
    assert texts(rows)[1:] == [
        {"en": "don 't [ a-b ] < &lt; \"", "fr": "w"},
        {"en": "v-", "fr": "AT&T"},
    ]
    assert account.noted() == 0


@given(st.text("ab &<>[]|'\"", min_size=1))
def test_undoing_is_the_inverse_of_escaping(text: str) -> None:
    """As tokenizer.perl does it, `&` first."""
    escaped = text.replace("&", "&amp;")
    for character, escape in zip(
        "|<>'\"[]", "&#124; &lt; &gt; &apos; &quot; &#91; &#93;".split(), strict=True
    ):
        escaped = escaped.replace(character, escape)
    assert undone(escaped) == text


# --- aligned text -----------------------------------------------------------------------------


def aligned(tmp_path: Path, **contents: str | bytes) -> Source:
    return Source(
        paths={code: write(tmp_path / f"a.{code}", content) for code, content in contents.items()}
    )


def test_aligned_files(tmp_path: Path) -> None:
    source = aligned(
        tmp_path, en="one\ntwo\nthree\n", fr="un\n\ntrois", de="eins\r\nzwei\r\ndrei\r\n"
    )
    rows, account = read(source)
    assert texts(rows) == [
        {"en": "one", "fr": "un", "de": "eins"},
        {"en": "two", "de": "zwei"},
        {"en": "three", "fr": "trois", "de": "drei"},
    ]
    assert [row.where for row in rows] == [f"{tmp_path}/a.en:{n}" for n in (1, 2, 3)]
    assert reasons(account) == {"kept": 3}


def test_aligned_files_keep_in_step_over_faulty_lines(tmp_path: Path) -> None:
    long = "x" * 200_000
    source = aligned(tmp_path, en=f"1\n{long}\n3\n4\n5\n6\n", fr=b"a\nb\n\xff\n\nd\x07\nf\n")
    rows, account = read(source)
    assert texts(rows) == [{"en": "1", "fr": "a"}, {"en": "6", "fr": "f"}]
    assert {line.reason: line.first for line in account.table()[1:]} == {
        "line too long": f"{tmp_path}/a.en:2",
        "invalid UTF-8": f"{tmp_path}/a.fr:3",
        "fewer than two texts": f"{tmp_path}/a.en:4",
        "control character": f"{tmp_path}/a.fr:5",
    }


@pytest.mark.parametrize("longer", ["en", "fr", "de"])
def test_unequal_line_counts(tmp_path: Path, longer: str) -> None:
    contents = {code: "1\n2\n" for code in ("en", "fr", "de")} | {longer: "1\n2\n3\n4\n5\n"}
    source = aligned(tmp_path, **contents)
    rows, account = read(source)
    assert len(rows) == 2
    assert reasons(account) == {"kept": 2, "unequal numbers of lines": 3}
    with pytest.raises(CorpusError) as caught:
        read(source, "fail")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/a.{longer}:3: unequal numbers of lines: ")
    for code, content in contents.items():
        assert f"{tmp_path}/a.{code} has {len(content) // 2}" in message


def test_one_of_the_aligned_files_is_missing(tmp_path: Path) -> None:
    source = Source(paths={"en": write(tmp_path / "a.en", "x\n"), "fr": tmp_path / "a.fr"})
    with pytest.raises(CorpusError, match=r"a\.fr: no such file"):
        read(source)


# --- jsonl ------------------------------------------------------------------------------------


def test_jsonl_flat_and_nested(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"en": "hello\\u2028you", "fr": "bonjour", "de": null}\n'
        '{"id": "7", "translation": {"en": "yes", "pt-BR": "sim"}}\n',
    )
    rows, _ = read(Source(path=path))
    assert texts(rows) == [
        {"en": "hello\u2028you", "fr": "bonjour"},
        {"en": "yes", "pt_BR": "sim"},
    ]


def test_jsonl_languages_pick_keys_and_ignore_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"score": 0.5, "en": "hello", "fr": "bonjour"}\n')
    assert texts(read(Source(path=path, languages=("fr", "en")))[0]) == [
        {"en": "hello", "fr": "bonjour"}
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"en": "a"', "invalid JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "line too long"),
        ("[" * 50_000, "invalid JSON"),
        ('{"en": "a", "en": "b", "fr": "c"}', "invalid JSON: a key appears twice"),
        ('{"en": ' + "9" * 5000 + "}", "invalid JSON: Exceeds the limit"),
        ('["a", "b"]', "wrong JSON type: a list instead of an object"),
        ("3", "wrong JSON type: a number instead of an object"),
        ("null", "wrong JSON type: null instead of an object"),
        ('{"translation": "a"}', "wrong JSON type: a text instead of an object"),
        ('{"en": "a", "fr": ["b"]}', "wrong JSON type: 'fr' is a list instead of a text"),
        ('{"en": "a", "fr": true}', "wrong JSON type: 'fr' is true or false instead of a text"),
        ('{"en": "a", "f r": "b"}', "not a language code: key 'f r'; name languages to pick"),
        ('{"en": "a", "fr": "\\u0000"}', "control character"),
        ('{"en": "a", "fr": "\\ud800"}', r"not a Unicode character: '\\ud800' at column 1"),
        ('{"en": "a"}', "fewer than two texts"),
        ("", "empty line"),
    ],
)
def test_jsonl_faults(tmp_path: Path, line: str, message: str) -> None:
    good = '{"en": "x", "fr": "y"}'
    path = write(tmp_path / "a.jsonl", f"{good}\n{line}\n{good}\n")
    source = Source(path=path, line_limit=99_999)
    rows, account = read(source)
    assert len(rows) == 2
    assert reasons(account) == {"kept": 2, message.split(":")[0]: 1}
    with pytest.raises(CorpusError, match=f"^{path}:2: {message}"):
        read(source, "fail")


# --- catalogues -------------------------------------------------------------------------------

RUSSIAN = (
    "nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : "
    "n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);"
)
SLOVENIAN = "nplurals=4; plural=(n%100==1 ? 1 : n%100==2 ? 2 : n%100==3 || n%100==4 ? 3 : 0);"


def catalogue(plural: str | None = None, charset: str = "utf-8") -> polib.POFile:
    po = polib.POFile(encoding=charset)
    po.metadata = {"Content-Type": f"text/plain; charset={charset}"}
    if plural:
        po.metadata["Plural-Forms"] = plural
    return po


def save(tmp_path: Path, po: polib.POFile, format_: str) -> Source:
    path = tmp_path / f"a.{format_}"
    (po.save if format_ == "po" else po.save_as_mofile)(str(path))
    return Source(paths={"fr": path})


def pairs(rows: list[Row]) -> set[tuple[str, str]]:
    return {(row.texts["en"], row.texts["fr"]) for row in rows}


@pytest.mark.parametrize("format_", ["po", "mo"])
def test_catalogue_agrees_with_polib(tmp_path: Path, format_: str) -> None:
    po = catalogue()
    entries = {f'Message {n}\n\t"quoted" \\ {"x" * n}': f"Meldung {n}: é\n" for n in range(99)}
    for n, (source, target) in enumerate(entries.items()):
        context = f"menu {n}" if n % 3 == 0 else None
        po.append(polib.POEntry(msgid=source, msgstr=target, msgctxt=context))
    source = save(tmp_path, po, format_)
    rows, account = read(source)
    assert pairs(rows) == set(entries.items())
    assert account.kept() == len(entries) == len(rows)
    assert reasons(account) == {"kept": 99}


def test_po_locates_the_msgid(tmp_path: Path) -> None:
    po = catalogue()
    for n in range(5):
        po.append(polib.POEntry(msgid=f"a\nb{n}", msgstr="c", comment="note\nnote"))
    source = save(tmp_path, po, "po")
    (path,) = source.files
    lines = path.read_text().splitlines()
    wheres = [f"{path}:{n}" for n, line in enumerate(lines, 1) if line.startswith("msgid")][1:]
    assert len(wheres) == 5
    assert [row.where for row in read(source)[0]] == wheres


@pytest.mark.parametrize("format_", ["po", "mo"])
def test_po_skips_what_is_not_translated(tmp_path: Path, format_: str) -> None:
    po = catalogue()
    po.append(polib.POEntry(msgid="good", msgstr="bon"))
    po.append(polib.POEntry(msgid="fuzzy", msgstr="flou", flags=["c-format", "fuzzy"]))
    po.append(polib.POEntry(msgid="after", msgstr="après"))
    po.append(polib.POEntry(msgid="untranslated", msgstr=""))
    po.append(polib.POEntry(msgid="old", msgstr="vieux", obsolete=True))
    po.append(polib.POEntry(msgid="old fuzzy", msgstr="x", obsolete=True, flags=["fuzzy"]))
    rows, account = read(save(tmp_path, po, format_), "fail")
    assert pairs(rows) == {("good", "bon"), ("after", "après")}
    skipped = {"fuzzy": 1, "untranslated": 1, "obsolete": 2} if format_ == "po" else {}
    assert reasons(account) == {"kept": 2} | skipped


def test_a_fuzzy_obsolete_entry_does_not_make_the_next_one_fuzzy(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.po",
        '#, fuzzy\n#~ msgid "old"\n#~ msgstr "vieux"\n\nmsgid "new"\nmsgstr "neuf"\n',
    )
    assert pairs(read(Source(paths={"fr": path}))[0]) == {("new", "neuf")}


@pytest.mark.parametrize("format_", ["po", "mo"])
@pytest.mark.parametrize(
    ("rule", "forms", "expected"),
    [
        ("nplurals=2; plural=n>1;", ["fichier", "fichiers"], ("fichier", "fichiers")),
        (RUSSIAN, ["файл", "файла", "файлов"], ("файл", "файлов")),
        (SLOVENIAN, ["datotek", "datoteka", "datoteki", "datoteke"], ("datoteka", "datotek")),
        ("nplurals=1; plural=0;", ["berkas"], (None, "berkas")),
        (None, ["one", "few", "many"], ("one", "many")),
        ("nplurals=2; plural=n%0;", ["one", "many"], ("one", "many")),
        ("nplurals=9; plural=n+5;", ["one", "many"], ("one", "many")),
        ("nplurals=2; plural=__import__('os');", ["one", "many"], ("one", "many")),
    ],
)
def test_plural_forms(
    tmp_path: Path, format_: str, rule: str | None, forms: list[str],
    expected: tuple[str | None, str],
) -> None:  # fmt: skip
    po = catalogue(rule)
    po.append(
        polib.POEntry(msgid="file", msgid_plural="files", msgstr_plural=dict(enumerate(forms)))
    )
    rows, _ = read(save(tmp_path, po, format_))
    one, many = expected
    assert pairs(rows) == {("files", many)} | ({("file", one)} if one else set())
    if format_ == "mo" and rule in (RUSSIAN, SLOVENIAN):
        with (tmp_path / "a.mo").open("rb") as file:
            peer = gettext.GNUTranslations(file)
        assert expected == (peer.ngettext("file", "files", 1), peer.ngettext("file", "files", 5))


@pytest.mark.parametrize("format_", ["po", "mo"])
def test_catalogue_charset(tmp_path: Path, format_: str) -> None:
    po = catalogue(charset="iso-8859-15")
    po.append(polib.POEntry(msgid="heart", msgstr="cœur €"))
    source = save(tmp_path, po, format_)
    assert "cœur €".encode("iso-8859-15") in source.files[0].read_bytes()
    assert pairs(read(source)[0]) == {("heart", "cœur €")}


@pytest.mark.parametrize("charset", ["CHARSET", "hex", "unicode_escape", "nonsense", "cp99999"])
def test_catalogue_with_an_unknown_charset(tmp_path: Path, charset: str) -> None:
    content = f'msgid ""\nmsgstr "Content-Type: text/plain; charset={charset}\\n"\n'
    path = write(tmp_path / "a.po", content)
    with pytest.raises(CorpusError, match=f"^{path}:1: unknown charset '{charset}'"):
        read(Source(paths={"fr": path}))


def test_compressed_catalogues(tmp_path: Path) -> None:
    po = catalogue()
    po.append(polib.POEntry(msgid="yes", msgstr="oui"))
    for format_ in ("po", "mo"):
        (path,) = save(tmp_path, po, format_).files
        packed = write(tmp_path / f"a.{format_}.xz", lzma.compress(path.read_bytes()))
        assert pairs(read(Source(paths={"fr": packed}))[0]) == {("yes", "oui")}
        broken = write(tmp_path / f"b.{format_}.xz", packed.read_bytes()[:-20])
        with pytest.raises(CorpusError, match=f"^{broken}:.*cannot be read"):
            read(Source(paths={"fr": broken}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('msgid "a"\nmsgstr "b"\nrubbish\n', "3: not a line of a PO file: 'rubbish'"),
        ('msgid "a\nmsgstr "b"\n', "1: not a line of a PO file"),
        ('"a"\n', "1: a text without a keyword"),
        ('msgstr "a"\n', "1: msgstr without a msgid before it"),
        ('msgid "a"\nmsgid "b"\nmsgstr "c"\n', "2: a second msgid in one entry"),
        ('msgid "a"\n', "1: the file ends within an entry, after its msgid"),
    ],
)
def test_malformed_po(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path / "a.po", content)
    with pytest.raises(CorpusError, match=f"^{path}:{message}"):
        read(Source(paths={"fr": path}))


def test_po_faults_of_single_entries(tmp_path: Path) -> None:
    long = "x" * 300
    path = write(
        tmp_path / "a.po",
        b'# caf\xe9 in a comment\nmsgid "a"\nmsgstr "b"\n\nmsgid "c"\nmsgstr "caf\xe9"\n'
        b'msgid "d"\nmsgstr "\\a"\n\nmsgid "e"\nmsgstr "f\\x41\\101"\n\n'
        + f'msgid "g"\nmsgstr "{long}"\n\nmsgid "h"\nmsgstr "{long[:60]}"\n'.encode()
        + f'"{long[:60]}"\n\n#\n'.encode()
        + 'msgid "i"\nmsgstr "j\u2028\u0085"\n\nmsgid "k\u2028"\nmsgstr "l"\n'.encode(),
    )
    rows, account = read(Source(paths={"fr": path}, line_limit=100))
    assert pairs(rows) == {("a", "b"), ("e", "fAA"), ("k\u2028", "l")}
    assert reasons(account) == {
        "kept": 3,
        "invalid UTF-8": 1,
        "control character": 2,
        "line too long": 2,
    }
    assert account.read() == 8


def mo_bytes(tmp_path: Path) -> bytearray:
    po = catalogue()
    po.append(polib.POEntry(msgid="yes", msgstr="oui"))
    return bytearray(save(tmp_path, po, "mo").files[0].read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"\0" + b[1:], "byte 0: not a .mo catalogue"),
        (lambda b: b[:10], "byte 10: the file ends within the .mo header"),
        (lambda b: b[:4] + b"\0\0\7\0" + b[8:], "byte 4: .mo revision 7"),
        (lambda b: b[:8] + b"\xff\xff\0\0" + b[12:], "byte 28: .* table of 65535 messages"),
        (lambda b: b[:-3], "message 2 ends at byte"),
    ],
)
def test_malformed_mo(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    path = write(tmp_path / "a.mo", change(bytes(mo_bytes(tmp_path))))
    with pytest.raises(CorpusError, match=f"^{path}: .*{message}"):
        read(Source(paths={"fr": path}))


def test_mo_messages_that_overlap_are_refused(tmp_path: Path) -> None:
    count, text = 1000, b"x" * 50_000
    table = 28
    strings = struct.pack("<2I", len(text), table + 8 * count) * count
    header = struct.pack("<7I", 0x950412DE, 0, count, table, table, 0, 0)
    path = write(tmp_path / "a.mo", header + strings + text)
    with pytest.raises(CorpusError, match="the messages overlap"):
        read(Source(paths={"fr": path}))


def test_big_endian_mo_and_invalid_bytes(tmp_path: Path) -> None:
    messages = [(b"", b"Content-Type: text/plain; charset=UTF-8\n"), (b"a", b"\xff"), (b"b", b"c")]
    blob = b"".join(part + b"\0" for message in messages for part in message)
    at, spans = 28 + 16 * len(messages), []
    for message in messages:
        for part in message:
            spans.append((len(part), at))
            at += len(part) + 1
    header = struct.pack(">7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    tables = b"".join(struct.pack(">2I", *span) for span in spans[::2] + spans[1::2])
    path = write(tmp_path / "a.mo", header + tables + blob)
    rows, account = read(Source(paths={"fr": path}))
    assert rows == [Row({"en": "b", "fr": "c"}, f"{path}:3")]
    assert reasons(account) == {"kept": 1, "invalid UTF-8": 1}
    with path.open("rb") as file, pytest.raises(UnicodeDecodeError):
        gettext.GNUTranslations(file)  # the standard library loses the whole catalogue


# --- sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format_"),
    [("a.tsv", "tsv"), ("a.tsv.gz", "tsv"), ("a.b.jsonl.xz", "jsonl")],
)
def test_format_is_inferred_for_one_file(name: str, format_: str) -> None:
    assert Source(path=Path(name)).format == format_


@pytest.mark.parametrize(
    ("paths", "format_"),
    [
        ({"fr": "fr.mo", "de": "de.mo"}, "mo"),
        ({"fr": "fr.po.gz"}, "po"),
        ({"en": "a.en", "fr": "a.fr"}, "text"),
        ({"en": "a.en.txt", "fr": "a.fr.txt"}, "text"),
    ],
)
def test_format_is_inferred_for_files_by_language(paths: dict[str, str], format_: str) -> None:
    assert Source(paths={code: Path(path) for code, path in paths.items()}).format == format_


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "a.tvs"}, "suffix 'tvs' names no format.*tsv, text, jsonl, mo, po.*'tsv'"),
        ({"path": "a.json"}, "did you mean 'jsonl'"),
        ({"path": "a.tsv", "format": "tvs"}, "format is 'tvs': allowed are .*did you mean 'tsv'"),
        ({}, "either path .* or paths"),
        ({"path": "a.tsv", "paths": {"en": "b"}}, "either path .* or paths"),
        ({"paths": {}}, "either path .* or paths"),
        ({"path": "a.mo"}, "format mo needs paths"),
        ({"paths": {"en": "a", "fr": "b"}, "format": "tsv"}, "format tsv needs path"),
        ({"paths": {"en": "a.en"}}, "two or more different codes"),
        ({"path": "a.tsv", "languages": ["en", "en"]}, "two or more different codes"),
        ({"path": "a.tsv", "languages": ["en"]}, "two or more different codes"),
        ({"path": "a.tsv", "languages": ["en", "pt-BR"]}, "'pt-BR' is not a language code"),
        ({"paths": {"en": "en.mo"}}, "'en', which is the language of the msgids"),
    ],
)
def test_sources_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Source(**arguments)  # type: ignore[arg-type]


def test_policy_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="policy is 'ignore': allowed are 'drop' and 'fail'"):
        Account("ignore")  # type: ignore[arg-type]


# --- properties -------------------------------------------------------------------------------

line_text = st.text(
    st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="\ufeff"), min_size=1
).filter(lambda text: not is_blank(text))


@settings(max_examples=60)
@given(st.lists(st.tuples(line_text, line_text), min_size=1, max_size=8))
def test_text_survives_every_line_format(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    tsv = write(folder / "a.tsv", "en\tfr\n" + "".join(f"{a}\t{b}\n" for a, b in written))
    jsonl = write(
        folder / "a.jsonl", "".join(json.dumps({"en": a, "fr": b}) + "\n" for a, b in written)
    )
    plain = aligned(
        folder, en="".join(a + "\n" for a, _ in written), fr="".join(b + "\n" for _, b in written)
    )
    for source in (Source(path=tsv), Source(path=jsonl), plain):
        rows, account = read(source, "fail")
        assert [(row.texts["en"], row.texts["fr"]) for row in rows] == written
        assert account.read() == len(written)


VALID = {
    "tsv": b"en\tfr\nhello\tbonjour\nyes\toui\n",
    "csv": b'en,fr\nhello,"bon,""jour\n"\nyes,oui\n',
    "text": b"hello\nbonjour\n",
    "jsonl": b'{"en": "hello", "fr": "bonjour"}\n{"translation": {"en": "a", "fr": "b"}}\n',
    "po": (
        b'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n'
        b'"Plural-Forms: nplurals=2; plural=n>1;\\n"\n\n#, fuzzy\nmsgctxt "c"\nmsgid "a"\n'
        b'msgstr "b"\n\nmsgid "x"\nmsgid_plural "xs"\nmsgstr[0] "y"\nmsgstr[1] "ys"\n'
    ),
    "mo": bytes.fromhex(
        "de12049500000000020000001c0000002c0000000000000000000000"
        "00000000" "3c000000" "03000000" "3d000000" "29000000" "41000000" "03000000" "6b000000"
    ) + b"\0yes\0Content-Type: text/plain; charset=UTF-8\r\n\0oui\0",
}  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Random bytes, or a valid file cut, spliced with random bytes, or compressed and cut."""
    kind = draw(st.sampled_from(["random", "spliced", "compressed"]))
    if kind == "random":
        return draw(st.binary(max_size=300))
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 4)))
    piece = draw(st.binary(max_size=6) | st.sampled_from([b"\\", b'"', b"\n", b"\0", b"\xff\xfe"]))
    data = whole[:start] + piece + whole[end:]
    if kind == "compressed":
        data = draw(st.sampled_from(list(COMPRESSORS.values())))(data)
        data = data[: draw(st.integers(0, len(data)))]
    return data


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=150)
@given(data=st.data())
def test_no_file_can_do_worse_than_a_corpus_error(
    tmp_path_factory: pytest.TempPathFactory, format_: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = write(folder / f"fuzz-{format_}", data.draw(damaged(VALID[format_])))
    other = write(folder / "fuzz-other", "one\ntwo\n")
    where = {"path": path} if format_ in ("tsv", "csv", "jsonl") else {"paths": {"fr": path}}
    if format_ == "text":
        where = {"paths": {"en": other, "fr": path}}
    source = Source(format=format_, **where)  # type: ignore[arg-type]
    account = Account()
    rows: list[Row] = []
    try:
        rows.extend(read_rows(source, account))
    except CorpusError as error:
        assert str(error).startswith(f"{folder}/fuzz-")
    for row in rows:
        assert len(row.texts) >= 2
        assert all(text.strip() for text in row.texts.values())
        "".join(row.texts.values()).encode("utf-8")
    if rows:
        assert account.kept() == len(rows)
        assert account.read() == account.kept() + account.dropped()
    dropped = account.dropped()
    try:
        list(read_rows(source, Account("fail")))
        skipped = {"fuzzy", "obsolete", "untranslated"}
        assert dropped == sum(account.dropped(reason) for reason in skipped)
    except CorpusError:
        pass
