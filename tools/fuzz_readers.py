"""Fuzz the readers of files from strangers, guided by coverage. Needs: pip install atheris.

    python -m tools.fuzz_readers mo -max_total_time=60
    python -m tools.fuzz_readers zip -runs=100000
    for reader in $(python -m tools.fuzz_readers --list); do
        python -m tools.fuzz_readers $reader -max_total_time=60 || break
    done

Anything raised that is not a declared error ends it, with the input in a file ``crash-...`` here.
The quick cases, on every change, are tests/faults/test_fuzz.py and test_fuzz_markup.py.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(include=["gradvac", "zipfile", "tarfile"]):
    from gradvac.corpus.deb import read_deb
    from gradvac.corpus.importing.unpack import unpack
    from gradvac.errors import GradvacError
    from gradvac.experiment.recipe.yaml_text import parse_yaml
    from gradvac.geometry.record import GramRecord
    from gradvac.text import markup
    from gradvac.text.account import Account
    from gradvac.text.catalogues import parse_mo
    from gradvac.text.program_files import (
        read_fluent,
        read_help_page,
        read_jar,
        read_messages,
        read_properties,
        read_xml_help,
    )
    from gradvac.text.readers import read_rows
    from gradvac.text.sources import Source

FOLDER = Path(tempfile.mkdtemp())
Read = Callable[[bytes], object]


def in_file(name: str, read: Callable[[Path], Iterable[object]]) -> Read:
    """A reader of files as one of bytes."""

    def through(data: bytes) -> None:
        (FOLDER / name).write_bytes(data)
        list(read(FOLDER / name))

    return through


def rows(form: str, name: str = "") -> Read:
    """A format of `read_rows`."""

    def read(file: Path) -> Iterable[object]:
        where = {"paths": {"fr": file}} if form == "po" else {"path": file}
        return read_rows(Source(format=form, **where), Account("drop"))

    return in_file(name or f"a.{form}", read)


def aligned(data: bytes) -> None:
    """Two line-aligned files, parted by 0xFF 0xFE."""
    for code, part in zip(("en", "fr"), (data + b"\xff\xfe").split(b"\xff\xfe"), strict=False):
        (FOLDER / f"a.{code}").write_bytes(part)
    paths = {code: FOLDER / f"a.{code}" for code in ("en", "fr")}
    list(read_rows(Source(format="text", paths=paths), Account("drop")))


def archive(name: str) -> Read:
    """An archive, unpacked; nothing may appear outside of the folder."""
    outer = FOLDER / name.replace(".", "-")

    def read(data: bytes) -> None:
        shutil.rmtree(outer, ignore_errors=True)
        outer.mkdir()
        (outer / name).write_bytes(data)
        try:
            unpack(outer / name, outer / "inside")
        finally:
            if left := {p.name for p in outer.iterdir()} - {name, "inside"}:
                raise AssertionError(f"it wrote {left}")

    return read


def gram(data: bytes) -> None:
    (FOLDER / "gram.bin").write_bytes(bytes(48))
    (FOLDER / "frames.jsonl").write_bytes(data + b"\n")
    list(GramRecord(FOLDER).in_order())


def declared(read: Read, *errors: type[Exception]) -> Read:
    """A reader with errors beside ours, which its callers name and count."""

    def wrapped(data: bytes) -> None:
        with contextlib.suppress(*errors):
            read(data)

    return wrapped


# What gradvac.corpus.extract takes for "this file of a package cannot be read".
NAMED = (ValueError, struct.error, zlib.error)
MAGIC = b"\xde\x12\x04\x95"  # without it there is nothing to cover
text = lambda read: lambda data: read(data.decode("utf-8", "replace"))
READERS: dict[str, Read] = {
    "mo": lambda data: list(parse_mo(MAGIC + data, "a.mo", 10_000)),
    "po": rows("po"),
    "tsv": rows("tsv"),
    "tsv.gz": rows("tsv", "a.tsv.gz"),
    "tsv.xz": rows("tsv", "a.tsv.xz"),
    "jsonl": rows("jsonl"),
    "text": aligned,
    "tmx": in_file("a.tmx", markup.tmx),
    "tmx.xz": in_file("a.tmx.xz", markup.tmx),
    "xml": in_file("a.xml", markup.wmt_xml),
    "sgml": in_file("a.sgm", markup.sgml_segments),
    "zip": archive("a.zip"),
    "tar": archive("a.tar"),
    "deb": in_file("a.deb", lambda file: read_deb(file, lambda path: True)),
    "jar": declared(lambda data: list(read_jar(data)), *NAMED),
    "help-xml": declared(read_xml_help, *NAMED),
    "help-page": text(read_help_page),
    "fluent": text(read_fluent),
    "properties": text(read_properties),
    "messages": declared(read_messages, *NAMED),
    "yaml": declared(text(parse_yaml), ValueError),
    "gram": gram,
}


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        print(*READERS, sep="\n")
        return
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        raise SystemExit(f"usage: fuzz_readers.py {'|'.join(READERS)} [options of libFuzzer]")
    read = READERS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        with contextlib.suppress(GradvacError):
            read(data)

    atheris.Setup(sys.argv, one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
