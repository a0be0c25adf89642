"""Archives and markup from strangers: declared errors only, nothing expanded, nothing outside."""

import contextlib
import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest
from hypothesis import example, given

from gradvac.corpus.deb import read_deb
from gradvac.corpus.importing import unpack
from gradvac.errors import CorpusError
from gradvac.text import markup
from gradvac.text.program_files import read_jar, read_messages, read_xml_help
from gradvac.text.readers import Row
from gradvac.text.textfiles import LINE_LIMIT
from tests.corpus.helpers import deb, xpi
from tests.faults.test_fuzz import BENCH, BYTES, edited

UNIT = '<tu><tuv xml:lang="en"><seg>{}</seg></tuv><tuv xml:lang="fr"><seg>oui</seg></tuv></tu>'


def tmx(text: str, head: str = "") -> bytes:
    return f'<?xml version="1.0"?>\n{head}<tmx><body>{UNIT.format(text)}</body></tmx>'.encode()


WMT = b'<dataset><doc><src lang="en"><seg id="1">a b</seg></src><ref lang="fr"><seg id="1">c</seg></ref></doc></dataset>'  # noqa: E501
SGML = b'<srcset><doc docid="d"><seg id="1">a &amp; b</seg>\n<seg id="2">c</seg></doc></srcset>'


@pytest.mark.parametrize(
    ("name", "reader", "like"),
    [
        ("a.tmx", markup.tmx, tmx("yes")),
        ("a.tmx.gz", markup.tmx, gzip.compress(tmx("yes"))),
        ("a.tmx.xz", markup.tmx, lzma.compress(tmx("yes"))),
        ("a.xml", markup.wmt_xml, WMT),
        ("a.sgm", markup.sgml_segments, SGML),
        ("a.deb", lambda file: read_deb(file, lambda _: True), deb({"./a": b"text"}, "gz")),
        ("a.deb", lambda file: read_deb(file, lambda _: True), deb({"./a": b"text"}, "")),
    ],
)
def test_markup_and_packages(tmp_path, name, reader, like):
    file = tmp_path / name
    file.write_bytes(like)
    assert list(reader(file))

    @BENCH
    @given(edited(like) | BYTES)
    @example(b'<?xml version="1.0" encoding="utf-7"?><a/>')
    @example(b'<?xml version="1.0" encoding="no-such"?><a/>')
    @example(b'<?xml version="1.0" encoding="utf-32"?><a/>')
    def read(data: bytes) -> None:
        file.write_bytes(data)
        try:
            list(reader(file))
        except CorpusError as e:
            assert str(file) in str(e)

    read()


def tar(*names: str, mode: str = "w", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = 5 * (kind == tarfile.REGTYPE), kind, link
            archive.addfile(member, io.BytesIO(b"hello"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("a.zip", xpi({"a.en": "hello", "b/c.fr": "bonjour"})),
        ("a.tar", tar("a.en", "b/c.fr")),
        ("a.tar.gz", tar("a.en", "b/c.fr", mode="w:gz")),
        ("a.tar.xz", tar("a.en", "b/c.fr", mode="w:xz")),
    ],
)
def test_archives(tmp_path, name, like):
    file = tmp_path / name
    file.write_bytes(like)
    unpack.unpack(file, tmp_path / "good")
    assert sorted(p.name for p in (tmp_path / "good").rglob("*")) == ["a.en", "b", "c.fr"]

    @BENCH
    @given(edited(like) | BYTES)
    def read(data: bytes) -> None:
        file.write_bytes(data)
        try:
            unpack.unpack(file, tmp_path / "inside")
        except CorpusError as e:
            assert str(file) in str(e)

    read()
    assert {p.name for p in tmp_path.iterdir()} - {"inside"} == {name, "good"}


@pytest.mark.parametrize("name", ["../evil.en", "a/../../evil.en", "/tmp/evil.en", "..\\evil.en"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_no_member_leaves_the_archive(tmp_path, form, name):
    file = tmp_path / f"a.{form}"
    file.write_bytes(xpi({name: "hello"}) if form == "zip" else tar(name))
    with pytest.raises(CorpusError, match="points outside of the archive"):
        unpack.unpack(file, tmp_path / "in" / "side")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [file.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_pipes_of_an_archive_are_left_out(tmp_path, kind):
    file = tmp_path / "a.tar"
    file.write_bytes(tar("passwd", kind=kind, link="/etc/passwd"))
    unpack.unpack(file, tmp_path / "inside")
    assert not (tmp_path / "inside").exists()


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "_ALWAYS", 10**5)
    for file in (tmp_path / "a.zip", tmp_path / "b.zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.en", bytes(3 * 10**6) if file.stem == "a" else b"text " * 10**4)
    unpack.unpack(tmp_path / "b.zip", tmp_path / "fine")
    with pytest.raises(CorpusError, match=r"a\.zip: member 'a\.en': all together unpack to more"):
        unpack.unpack(tmp_path / "a.zip", tmp_path / "inside")


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
BOMB = f'<!DOCTYPE tmx [<!ENTITY a0 "ha">{LAUGHS}]>\n'
FILE = '<!DOCTYPE tmx [<!ENTITY a9 SYSTEM "{}">]>\n'


def test_entities_that_expand_or_name_a_file_do_not_go_off(tmp_path):
    """A billion laughs, and a file of ours, in TMX, in a test set of WMT, and in a page of help."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    file = tmp_path / "a.tmx"
    tracemalloc.start()
    for head in (BOMB, FILE.format(secret)):
        for reader in (markup.tmx, markup.wmt_xml):
            file.write_bytes(tmx("&a9;", head))
            with pytest.raises(CorpusError, match=r"a\.tmx:2: declares the entity 'a"):
                list(reader(file))
        page = head.replace("tmx", "page") + "<page><p>x &a9; y</p><p>z</p></page>"
        blocks = read_xml_help(page.encode())  # libxml2 may end where it sees a bomb
        assert blocks[0][0] == "p" and "".join(text for _, text in blocks) in ("x", "z")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_segment_of_any_size_is_not_held(tmp_path):
    file = tmp_path / "a.tmx"
    file.write_bytes(tmx("word " * 10**6))
    tracemalloc.start()
    (found,) = markup.tmx(file)
    assert tracemalloc.get_traced_memory()[1] < 2 * 10**6 + 8 * LINE_LIMIT
    tracemalloc.stop()
    assert not isinstance(found, Row) and found.reason == "line too long"


@pytest.mark.parametrize(
    ("reader", "like"),
    [
        (lambda data: list(read_jar(data)), xpi({"a.ftl": "a = b\n"})),
        (read_xml_help, b"<page><p>a <em>b</em></p></page>"),
        (read_messages, b'{"a": "[[b|c]] {{PLURAL:$1|x|y}}"}'),
    ],
)
def test_files_within_packages(reader, like):
    """What `extract` counts as a file of a package that cannot be read, and nothing else."""
    assert reader(like)

    @BENCH
    @given(edited(like) | BYTES)
    @example(b"[" * 3000)
    def read(data: bytes) -> None:
        with contextlib.suppress(CorpusError, ValueError, struct.error, zlib.error):
            reader(data)

    read()
