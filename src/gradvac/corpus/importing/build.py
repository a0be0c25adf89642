"""From published files to a corpus folder: unpack, detect, check, hold out evaluation text."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any, cast

from gradvac.corpus.folder import new_folder, write_folder
from gradvac.corpus.importing.layouts import KINDS, Piece, Split, find_pieces
from gradvac.corpus.importing.unpack import is_archive, unpack
from gradvac.data.spool import Spool
from gradvac.errors import CorpusError, RecipeError, RunError
from gradvac.reading import sha256_of
from gradvac.text.account import Account, Policy
from gradvac.text.cleaning import CleaningRules, normalise, text_key
from gradvac.text.columns import SAMPLE, check_columns
from gradvac.text.heldout import HeldOut
from gradvac.text.identify import Identifier
from gradvac.text.languages import ENGLISH, Direction, family_order, pivot
from gradvac.text.readers import Row
from gradvac.text.scripts import in_script

Say = Callable[[str], None]
# Chosen here: a file with more bad lines is not in the format it seems to have.
_BAD_SHARE = 0.1
_UNEQUAL = "unequal numbers of lines"
_CHUNK = 10_000
TRAINING = "training rows"  # name in the account, besides rows near evaluation text


@dataclass(frozen=True)
class Options:
    """How to read sources; None means: detect it.

    ``languages`` name the columns of tables without a header; ``keep_out`` are more files whose
    text is kept out of training; ``check`` False skips the checks that columns are in their
    languages and belong together. ``quoted`` says that TSV cells may be in quotation marks;
    ``unescape`` undoes Moses' escapes of special characters.
    """

    format: str | None = None
    split: str | None = None
    languages: tuple[str, ...] = ()
    keep_out: tuple[Path, ...] = ()
    on_problem: Policy = "drop"
    check: bool = True
    quoted: bool = False
    unescape: bool = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in KINDS:
            raise RecipeError(f"--format is {self.format!r}: allowed are {', '.join(KINDS)}")
        if self.split not in (None, "train", "valid", "test"):
            raise RecipeError(f"--split is {self.split!r}: allowed are train, valid, test")


def import_corpus(sources: Sequence[Path], out: Path, options: Options, say: Say) -> dict[str, Any]:
    """Build the corpus folder ``out`` from files, folders and archives; returns its manifest.

    ``out`` is created only if there was no error.

    Raises:
        CorpusError: ``out`` exists, or a source is missing, damaged, of an unknown layout, not in
            its stated languages, or given twice.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CorpusError(f"{out}: is there already; choose another folder")
    with new_folder(out) as new:
        return _build(sources, new, options, say)


def _build(sources: Sequence[Path], folder: Path, options: Options, say: Say) -> dict[str, Any]:
    unpacked: dict[str, str] = {}
    work = folder / "work"
    account = Account(options.on_problem)
    try:
        given = _files(sources, work, unpacked)
        pieces = _pieces(given, options, unpacked, say)
        others = _pieces(_files(options.keep_out, work, unpacked), options, unpacked, say)
        identifier = _identifier(pieces) if options.check else None
        for piece in pieces if options.check else ():
            check_columns(piece.name, list(islice(piece.rows(Account()), SAMPLE)), identifier)
        read = partial(_rows, pieces, account, options)
        held = {part: list(read(part)) for part in ("valid", "test")}
        held["valid"] = _without(held["valid"], held["test"], account)
        extra = [row for piece in others for row in piece.rows(Account())]
        evaluation = [*held["valid"], *held["test"], *extra]
        spool = _training(pieces, read("train"), evaluation, work, account)
    except CorpusError as error:
        raise CorpusError(_shown(str(error), unpacked)) from error
    say(_shown(str(account), unpacked))
    pairs = {"train": _write_training(spool, folder / "train")}
    languages = [ENGLISH, *family_order(_codes([*held["valid"], *held["test"]]) - {ENGLISH})]
    for part, rows in held.items():
        if rows:
            _write_rows(folder / f"{part}.tsv", rows, languages)
        pairs[part] = Counter(c for row in rows for c in row.texts if c != ENGLISH)
    manifest = {
        "kind": "import",
        "sources": [
            {"name": name, "bytes": size, "sha256": digest} for name, size, digest in _sums(sources)
        ],
        "pieces": [
            {
                "kind": p.kind,
                "split": p.split,
                "files": [_shown(str(f), unpacked) for f in p.files],
                "languages": dict(p.languages),
            }
            for p in pieces
        ],
        "pairs": {part: dict(counts) for part, counts in pairs.items()},
    }
    shutil.rmtree(work, ignore_errors=True)
    report = _shown_tree(account.to_dict(), unpacked)
    write_folder(folder, manifest, report, list(pairs["train"]))
    return manifest


def _identifier(pieces: Sequence[Piece]) -> Identifier | None:
    """An identifier of all languages of the pieces; None without the extra."""
    try:
        return Identifier({code for piece in pieces for code in piece.languages.values()})
    except RunError:
        return None


def _files(sources: Sequence[Path], work: Path, unpacked: dict[str, str]) -> list[Path]:
    """All files of the sources, archives unpacked; ``unpacked`` maps a folder to its archive."""
    files: list[Path] = []
    for source in sources:
        if not source.exists():
            raise CorpusError(f"{source}: no such file or folder")
        if source.is_dir():
            inner = sorted(f for f in source.rglob("*") if f.is_file())
            files += _files([f for f in inner if is_archive(f)], work, unpacked)
            files += [f for f in inner if not is_archive(f)]
        elif is_archive(source):
            place = work / f"archive-{len(unpacked)}"
            unpacked[str(place)] = str(source)
            unpack(source, place)
            files += sorted(f for f in place.rglob("*") if f.is_file())
        else:
            files.append(source)
    return files


def _pieces(
    files: Sequence[Path], options: Options, unpacked: Mapping[str, str], say: Say
) -> list[Piece]:
    """The pieces of files, each printed; a repeated piece is used once."""
    if not files:
        return []
    split = cast(Split | None, options.split)
    found = find_pieces(files, options.format, split, options.languages, options.quoted)
    for file in found.ignored:
        say(_shown(f"{file}: no parallel text recognised; left out", unpacked))
    if not found.pieces:
        raise CorpusError(
            f"{files[0]}: no parallel text found in {len(files)} files; allowed are "
            f"{', '.join(KINDS)}"
        )
    kept: dict[tuple[str, ...], Piece] = {}
    for piece in found.pieces:
        sums = tuple(map(sha256_of, piece.files))
        if len({*sums}) < len(sums):
            raise CorpusError(f"{piece.name}: have the same content: one language is missing")
        if (first := kept.setdefault(sums, piece)) is not piece:
            say(_shown(f"{piece.name}: the same content as {first.name}; left out", unpacked))
            continue
        tags = ", ".join(t if t == c else f"{t} as {c}" for t, c in piece.languages.items())
        say(_shown(f"{piece.name}: {piece.kind}, {piece.split}: {tags}", unpacked))
    return list(kept.values())


def _rows(pieces: Iterable[Piece], account: Account, options: Options, split: str) -> Iterator[Row]:
    """Rows of a split, each text in a script of its language; a bad file ends the reading."""
    check = options.check
    for piece in pieces:
        if piece.split != split:
            continue
        for row in piece.rows(account, check, options.unescape):
            odd = [c for c, text in row.texts.items() if check and not in_script(c, text)]
            if odd:
                account.drop(f"{piece.name} by script", f"{odd[0]} in another script", row.where)
            texts = {c: normalise(t) for c, t in row.texts.items() if c not in odd}
            if len(texts) > 1:
                yield Row(texts, row.where)
        name = piece.name
        lines = [x for x in account.table() if x.corpus == name and x.reason != "kept"]
        bad = [x for x in lines if x.reason not in ("empty line", "fewer than two texts")]
        for line in bad:
            if line.reason == _UNEQUAL or line.share > _BAD_SHARE:
                raise CorpusError(
                    f"{line.first}: {line.reason}: {line.count:,} lines, {line.share:.0%} of "
                    f"{name}; nothing was written"
                )


def _without(valid: list[Row], test: Sequence[Row], account: Account) -> list[Row]:
    """Validation rows without a text that has the letters of a test text in its language."""
    keys = {(c, text_key(t)) for row in test for c, t in row.texts.items()}
    kept = []
    for row in valid:
        if any(text_key(t) and (c, text_key(t)) in keys for c, t in row.texts.items()):
            account.drop("valid", "in test text", row.where)
        else:
            kept.append(row)
    return kept


def _training(
    pieces: Sequence[Piece], read: Iterable[Row], held: Sequence[Row], work: Path, account: Account
) -> Spool:
    """Clean training pairs on disk, without pairs near evaluation text."""
    names = dict.fromkeys(
        direction.name
        for piece in pieces
        if piece.split == "train"
        for direction in _directions(list(piece.languages.values()))
    )
    keep = _KeepOut(held, account)
    rows = map(keep, read)
    spool = Spool(work / "spool", CleaningRules(), account, list(names), None, frozenset())
    spool.fill(row for row in rows if row is not None)
    return spool


def _directions(codes: Sequence[str]) -> list[Direction]:
    """English with each other language, or each pair if there is no English."""
    if ENGLISH in codes:
        return [Direction(ENGLISH, code) for code in sorted({*codes} - {ENGLISH})]
    return [Direction(one, other) for one, other in combinations(sorted({*codes}), 2)]


class _KeepOut:
    """Removes texts from training rows that are equal or near to evaluation text."""

    def __init__(self, held: Sequence[Row], account: Account) -> None:
        self.rows, self.account = [row.texts for row in held], account
        self._by_pivot: dict[str, HeldOut] = {}

    def __call__(self, row: Row) -> Row | None:
        if not self.rows:
            self.account.keep(TRAINING)
            return row
        first = pivot(sorted(row.texts))
        held = self._by_pivot.get(first)
        if held is None:
            held = self._by_pivot[first] = HeldOut(self.rows, first)
        why = held.english_reason(row.texts[first])
        if why is None:
            leaks = {c: held.translation_reason(c, t) for c, t in row.texts.items() if c != first}
            why = next(filter(None, leaks.values()), None)
            if why is None:
                self.account.keep(TRAINING)
                return row
            texts = {c: t for c, t in row.texts.items() if not leaks.get(c)}
        else:
            texts = {}
        self.account.drop(TRAINING, why, row.where)
        return Row(texts, row.where) if len(texts) > 1 else None


def _write_training(spool: Spool, folder: Path) -> Counter[str]:
    """One table per language pair; returns pairs by language, or by `de-fr` without English."""
    folder.mkdir()
    counts = Counter[str]()
    for name in spool.names:
        direction = Direction.parse(name)
        total = spool.pairs(direction)
        if not total:
            continue
        source, target = direction.source, direction.target
        counts[target if source == ENGLISH else name] = total
        with (folder / f"{name}.tsv").open("w", encoding="utf-8", newline="\n") as out:
            out.write(f"{source}\t{target}\n")
            for sources, targets in spool.texts(direction, _CHUNK, total):
                out.writelines(f"{s}\t{t}\n" for s, t in zip(sources, targets, strict=True))
    return counts


def _write_rows(file: Path, rows: Sequence[Row], languages: Sequence[str]) -> None:
    present = set(_codes(rows))
    codes = [code for code in languages if code in present]
    with file.open("w", encoding="utf-8", newline="\n") as out:
        out.write("\t".join(codes) + "\n")
        out.writelines("\t".join(r.texts.get(c, "") for c in codes) + "\n" for r in rows)


def _codes(rows: Iterable[Row]) -> set[str]:
    return {code for row in rows for code in row.texts}


def _sums(sources: Iterable[Path]) -> Iterator[tuple[str, int, str]]:
    files = chain.from_iterable(
        [s] if s.is_file() else sorted(f for f in s.rglob("*") if f.is_file()) for s in sources
    )
    for file in files:
        yield str(file), file.stat().st_size, sha256_of(file)


def _shown(text: str, unpacked: Mapping[str, str]) -> str:
    """A text about unpacked files, with the folder replaced by its archive."""
    for place, archive in unpacked.items():
        text = text.replace(place, archive)
    return text


def _shown_tree(tree: Any, unpacked: Mapping[str, str]) -> Any:
    if isinstance(tree, dict):
        return {_shown(k, unpacked): _shown_tree(v, unpacked) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_shown_tree(v, unpacked) for v in tree]
    return _shown(tree, unpacked) if isinstance(tree, str) else tree
