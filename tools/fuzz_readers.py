"""Fuzz the readers of files from strangers, guided by coverage. Needs: pip install atheris.

    python tools/fuzz_readers.py mo -max_total_time=60
    python tools/fuzz_readers.py tsv -runs=100000

Anything raised that is not a GradvacError ends it, with the input in a file ``crash-...`` here. The
quick cases, on every change, are tests/faults/test_fuzz.py.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(include=["gradvac"]):
    from gradvac.errors import GradvacError
    from gradvac.experiment.yaml_text import parse_yaml
    from gradvac.translation.account import Account
    from gradvac.translation.catalogues import parse_mo
    from gradvac.translation.readers import Source, read_rows


def through_file(form: str) -> Callable[[bytes], None]:
    folder = Path(tempfile.mkdtemp())
    file = folder / f"a.{form}"
    where = {"paths": {"fr": file}} if form == "po" else {"path": file}

    def read(data: bytes) -> None:
        file.write_bytes(data)
        list(read_rows(Source(format=form, **where), Account("drop")))

    return read


def yaml(data: bytes) -> None:
    try:
        parse_yaml(data.decode("utf-8", "replace"))
    except ValueError:
        return


MAGIC = b"\xde\x12\x04\x95"  # without it there is nothing to cover
READERS: dict[str, Callable[[bytes], None]] = {
    "mo": lambda data: list(parse_mo(MAGIC + data, "a.mo", 10_000)) and None,
    "yaml": yaml,
    **{form: through_file(form) for form in ("tsv", "jsonl", "po")},
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        raise SystemExit(f"usage: fuzz_readers.py {'|'.join(READERS)} [options of libFuzzer]")
    read = READERS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        with contextlib.suppress(GradvacError):
            read(data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
