"""Cleaning a corpus of any size: all cores, limited memory, and an account of what was removed.

Files are cut into pieces by bytes, independent of the number of processes; every piece is filtered
alone, then duplicates are found over all pieces of a file. Memory: one piece per process, one
bucket of hashes (`duplicates`), and the evaluation text. Disk, beside twice the text: 41 bytes per
pair (size, hash, offset, state, record in a bucket), and 240 more for near-duplicates (ten bands of
8 bytes, ten records of 16).
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gradvac.corpus.folder import MANIFEST, finished, new_folder, read_manifest, write_folder
from gradvac.corpus.losses import Losses
from gradvac.corpus.workers import Map, workers
from gradvac.data.duplicates import (
    KEPT,
    NEAR_DUPLICATE,
    Lines,
    band_hashes,
    mark_exact,
    mark_near,
    text_hash,
)
from gradvac.errors import CorpusError
from gradvac.text.account import Account
from gradvac.text.cleaning import CleaningRules, normalise
from gradvac.text.columns import check_header
from gradvac.text.escapes import NOTE
from gradvac.text.filters import PairFilter
from gradvac.text.heldout import HeldOut
from gradvac.text.languages import ENGLISH, is_code
from gradvac.text.readers import read_blocks, read_rows
from gradvac.text.sources import Source
from gradvac.text.textfiles import LINE_LIMIT, Fault, decode

PIECE = 8 * 2**20
"""Bytes of text in one piece. Chosen here: about a second of work."""
# Rows of a file that are checked together; enough to distinguish any two languages.
_SAMPLE_ROWS = 200

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CleaningPlan:
    """What `clean_folder` removes: `rules` by length and ratio, then the filters switched on."""

    rules: CleaningRules = field(default_factory=CleaningRules)
    identify: bool = True
    near: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As stored in the manifest."""
        return {"cleaning": asdict(self)}


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes `start` to `end` of a file, from the first line that starts there."""

    file: Path
    start: int
    end: int
    out: Path


@dataclass(slots=True)
class _Found:
    """The results for the rows of a piece."""

    kept: int = 0
    losses: Losses = field(default_factory=Losses)

    def drop(self, reason: str, *texts: str) -> None:
        self.losses.add(reason, texts)


def clean_folder(
    folder: Path, out: Path, plan: CleaningPlan, jobs: int, tick: Tick
) -> dict[str, Any]:
    """Clean `folder/train/*.tsv` into `out`, without text of `valid.tsv` and `test.tsv`.

    Returns the manifest. Training files have a header of two codes. `jobs` does not change results.

    Raises:
        CorpusError: not a corpus folder; a file whose columns are swapped, shifted or not in the
            languages of its header; two files with the same content; `out` has other content.
    """
    files = sorted((folder / "train").glob("*.tsv"))
    if not files:
        raise CorpusError(f"{folder / 'train'}: no .tsv file: allowed is a corpus folder")
    codes = {file: _header(file) for file in files}
    languages = sorted({code for pair in codes.values() for code in pair})
    made_of = {"source": str(folder), **plan.to_dict()}
    if (manifest := finished(out, made_of)) is not None:
        return manifest
    notes = _check_files(codes)
    with new_folder(out) as new:
        held, evaluation = _evaluation(folder, new)
        found: dict[str, _Found] = {}
        (new / "train").mkdir()
        with workers(jobs, partial(_start, held, languages, plan)) as map_:
            for number, file in enumerate(files):
                tick(f"cleaning {len(files)} files", number, len(files))
                found[file.stem] = _clean_file(file, codes[file], new, plan, map_)
        tick(f"cleaning {len(files)} files", len(files), len(files))
        old = read_manifest(folder) if (folder / MANIFEST).exists() else {}
        other = {file.stem: next((c for c in codes[file] if c != ENGLISH), "") for file in files}
        pairs = {"train": {other[name]: f.kept for name, f in found.items()}, **evaluation}
        manifest = {**made_of, "sources": old.get("sources", []), "pairs": pairs}
        report = {
            "problems": notes,
            "files": {
                name: {
                    "kept": f.kept,
                    "left_out": f.losses.totals,
                    "samples": f.losses.samples,
                }
                for name, f in found.items()
            },
        }
        write_folder(new, manifest, report, [other[file.stem] for file in files])
    return manifest


def _header(file: Path) -> tuple[str, str]:
    with file.open("rb") as lines:
        first = lines.readline(LINE_LIMIT)
    try:
        cells = decode(first.rstrip(b"\r\n"), f"{file}:1").split("\t")
    except Fault as fault:
        raise CorpusError(f"{file}:1: {fault.reason} in the header: {fault.detail}") from fault
    if len(cells) != 2 or not all(map(is_code, cells)) or cells[0] == cells[1]:
        raise CorpusError(
            f"{file}:1: the header is {first[:60]!r}: allowed are two language codes and a tab"
        )
    return cells[0], cells[1]


def _check_files(codes: dict[Path, tuple[str, str]]) -> list[str]:
    """Raise for equal files or wrong languages; return notes on what could not be checked."""
    notes: list[str] = []
    by_content: dict[str, Path] = {}
    for file, pair in codes.items():
        digest = hashlib.sha256()
        with file.open("rb") as lines:
            empty = len(lines.readline()) == file.stat().st_size
            while block := lines.read(1 << 20):
                digest.update(block)
        if empty:
            notes.append(f"{file}: has no row")
            continue
        twin = by_content.setdefault(digest.hexdigest(), file)
        if twin != file:
            raise CorpusError(f"{file}: holds the same text as {twin}: remove one of them")
        rows = [line.split("\t") for line in _first_lines(file)]
        rows = [row for row in rows if len(row) == 2]
        if rows and (note := check_header(str(file), pair, rows)):
            notes.append(note)
        account = Account()
        for _ in read_blocks(Source(format="tsv", path=file, languages=pair), account):
            pass  # raises if columns do not belong together
        if escaped := account.noted():
            notes.append(f"{file}: {escaped:,} rows have {NOTE}")
    return notes


def _first_lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        next(lines, None)
        for _, line in zip(range(_SAMPLE_ROWS), lines, strict=False):
            yield line.rstrip("\r\n")


def _evaluation(folder: Path, out: Path) -> tuple[list[dict[str, str]], dict[str, dict[str, int]]]:
    """Copy evaluation text, without validation rows that repeat the test; its rows and sizes."""
    rows: dict[str, list[dict[str, str]]] = {}
    for part in ("test", "valid"):
        file = folder / f"{part}.tsv"
        if not file.exists():
            continue
        leaks = HeldOut(rows.get("test", []))
        account = Account()
        rows[part] = [
            row.texts
            for row in read_rows(Source(path=file), account)
            if ENGLISH not in row.texts or not leaks.english_reason(row.texts[ENGLISH])
        ]
        codes = list(dict.fromkeys(code for row in rows[part] for code in row))
        with (out / f"{part}.tsv").open("w", encoding="utf-8", newline="\n") as lines:
            lines.write("\t".join(codes) + "\n")
            for row in rows[part]:
                lines.write("\t".join(row.get(code, "") for code in codes) + "\n")
    sizes = {
        part: dict(Counter(code for row in found for code in row if code != ENGLISH))
        for part, found in rows.items()
    }
    return [row for found in rows.values() for row in found], sizes


_held: HeldOut
_languages: Sequence[str]
_plan: CleaningPlan


def _start(rows: list[dict[str, str]], languages: Sequence[str], plan: CleaningPlan) -> None:
    global _held, _languages, _plan
    _held, _plan = HeldOut(rows), plan
    _languages = languages if plan.identify else ()


def _clean_file(
    file: Path,
    codes: tuple[str, str],
    out: Path,
    plan: CleaningPlan,
    map_: Map,
) -> _Found:
    """Clean one file into `out/train`."""
    work = out / "work"
    work.mkdir()
    size = file.stat().st_size
    pieces = [
        _Piece(file, at, min(at + PIECE, size), work / f"{number:06}")
        for number, at in enumerate(range(0, max(size, 1), PIECE))
    ]
    found = _Found()
    for part in map_(partial(_clean_piece, codes=codes), pieces):
        found.kept += part.kept
        found.losses.merge(part.losses.counts, part.losses.samples)
    _without_duplicates(pieces, out / "train" / file.name, codes, plan, found)
    shutil.rmtree(work)
    return found


def _clean_piece(piece: _Piece, codes: tuple[str, str]) -> _Found:
    """Filter one piece; write kept lines, their offsets, hashes and bands."""
    found = _Found()
    judge = PairFilter(*codes, _plan.rules, _languages)
    kept: list[tuple[str, str]] = []
    for where, line in _lines(piece):
        try:
            cells = decode(line, where).split("\t")
        except Fault as fault:
            found.drop(fault.reason, where)
            continue
        if len(cells) != 2:
            found.drop("wrong number of columns", where)
            continue
        source, target = map(normalise, cells)
        reason = judge.reason(source, target) or _leak(codes, source, target)
        if reason is None:
            kept.append((source, target))
        else:
            found.drop(reason, source, target)
    found.kept = len(kept)
    lines = [f"{source}\t{target}\n".encode() for source, target in kept]
    piece.out.with_suffix(".tsv").write_bytes(b"".join(lines))
    np.array([len(line) for line in lines], "<u8").tofile(piece.out.with_suffix(".sizes"))
    hashes = [text_hash(*pair) for pair in kept]
    np.array(hashes, "<u8").tofile(piece.out.with_suffix(".hash"))
    if _plan.near:
        band_hashes(kept).astype("<u8").tofile(piece.out.with_suffix(".bands"))
    return found


def _leak(codes: tuple[str, str], source: str, target: str) -> str | None:
    """Why a pair repeats evaluation text; near-duplicates are searched on the English side."""
    for code, text in zip(codes, (source, target), strict=True):
        english = code == ENGLISH
        if why := _held.english_reason(text) if english else _held.translation_reason(code, text):
            return why
    return None


def _lines(piece: _Piece) -> Iterator[tuple[str, bytes | None]]:
    """Place and bytes of the lines that start in a piece, without the file's header."""
    with piece.file.open("rb") as file:
        file.seek(max(piece.start - 1, 0))
        _skip_line(file)  # the header, or the rest of the last line of the piece before
        while (at := file.tell()) < piece.end and (line := file.readline(LINE_LIMIT + 2)):
            where = f"{piece.file}: byte {at}"
            if not line.endswith(b"\n"):
                _skip_line(file)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            yield where, line if len(line) <= LINE_LIMIT else None


def _skip_line(file: BinaryIO) -> None:
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def _without_duplicates(
    pieces: Sequence[_Piece], out: Path, codes: tuple[str, str], plan: CleaningPlan, found: _Found
) -> None:
    """Write the rows of all pieces that repeat no earlier row; remove the others from `found`."""
    work = pieces[0].out.parent
    whole, offsets = work / "all.tsv", work / "offsets"
    at = 0
    with whole.open("wb") as text, offsets.open("wb") as starts:
        for piece in pieces:
            sizes = np.fromfile(piece.out.with_suffix(".sizes"), "<u8")
            (at + np.cumsum(sizes) - sizes).astype("<u8").tofile(starts)
            at += int(sizes.sum())
            part = piece.out.with_suffix(".tsv")
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, text)
            part.unlink()
    lines = Lines(whole, offsets)
    state = np.lib.format.open_memmap(work / "state.npy", "w+", np.uint8, (max(found.kept, 1),))
    state = state[: found.kept]
    if plan.rules.drop_duplicates:
        mark_exact([piece.out.with_suffix(".hash") for piece in pieces], state, work)
    if plan.near:
        mark_near([piece.out.with_suffix(".bands") for piece in pieces], state, lines, work)
    with out.open("wb") as kept, whole.open("rb") as text:
        kept.write("\t".join(codes).encode() + b"\n")
        for row, line in enumerate(text):
            if state[row] == KEPT:
                kept.write(line)
            else:
                near = state[row] == NEAR_DUPLICATE
                found.drop("near-duplicate" if near else "duplicate", *lines(row))
                found.kept -= 1
    lines.close()
