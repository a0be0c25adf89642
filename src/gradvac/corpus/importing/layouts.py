"""Contents of published files: detected from names and first lines, and printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Literal

from gradvac.errors import CorpusError
from gradvac.text import datasets, markup
from gradvac.text.account import Account
from gradvac.text.alignment import watched
from gradvac.text.escapes import noted, unescaped
from gradvac.text.readers import Row, counted, one_by_one, read_rows
from gradvac.text.sources import Source
from gradvac.text.tags import language_code, merged
from gradvac.text.textfiles import COMPRESSED, Fault, decode, open_bytes, raw_lines

Split = Literal["train", "valid", "test"]
KINDS = (
    "moses", "opus100", "flores", "tmx", "sgml", "xml", "ted", "tsv", "csv", "jsonl",
    "parquet", "datasets",
)  # fmt: skip
_SPLITS: Mapping[str, Split] = {
    "train": "train", "training": "train", "dev": "valid", "valid": "valid", "validation": "valid",
    "val": "valid", "test": "test", "devtest": "test",
}  # fmt: skip
# Names of evaluation sets, with a year or without.
_TEST_NAMES = ("newstest", "wmttest", "generaltest", "tst", "flores", "ntrex")
_BY_SUFFIX = {"tmx": "tmx", "sgm": "sgml", "sgml": "sgml", "xml": "xml", "tsv": "tsv", "csv": "csv",
              "jsonl": "jsonl", "json": "jsonl", "parquet": "parquet"}  # fmt: skip
# Suffixes that are also language codes, but of files without text.
_NO_LANGUAGE = {"zip", "txt", "csv", "md", "ids", "xml", "tsv", "gz", "tar", "arrow", "log", "src"}


@dataclass(frozen=True)
class Piece:
    """Files that belong together: display name, languages, rows.

    ``languages`` maps tags in the files to codes; rows have codes.
    """

    kind: str
    split: Split
    files: tuple[Path, ...]
    languages: Mapping[str, str]
    items: Callable[[], Iterable[Row | Fault]]

    @property
    def name(self) -> str:
        """The files, as an account names them."""
        return ", ".join(map(str, self.files))

    def rows(self, account: Account, check: bool = False, unescape: bool = False) -> Iterator[Row]:
        """The rows with the codes of the piece; problems and texts without a code are counted.

        `check` raises if columns do not belong together (`alignment`); `unescape` undoes Moses'
        escapes of special characters (`escapes`).
        """
        items = self._coded(account)
        items = unescaped(items) if unescape else noted(items, self.name, account)
        return counted(self.name, one_by_one(watched(items) if check else items), account)

    def _coded(self, account: Account) -> Iterator[Row | Fault]:
        for item in self.items():
            if isinstance(item, Fault):
                yield item
                continue
            texts: dict[str, str] = {}
            for tag, text in item.texts.items():
                code = self.languages.get(tag)
                if code is None:
                    account.note(self.name, f"{tag!r} names no language; left out", item.where)
                elif texts.setdefault(code, text) != text:
                    account.note(self.name, f"a second text in {code!r} left out", item.where)
            if len(texts) > 1:
                yield Row(texts, item.where)
            else:
                yield Fault("fewer than two languages", item.where, skip=True)


@dataclass(frozen=True)
class Found:
    """Pieces, and the files that are in none."""

    pieces: list[Piece]
    ignored: list[Path]


def find_pieces(
    files: Sequence[Path],
    kind: str | None = None,
    split: Split | None = None,
    languages: Sequence[str] = (),
    quoted: bool = False,
) -> Found:
    """Sort files into pieces.

    ``kind``, ``split`` and ``languages`` (of tables without a header) give what names do not;
    ``quoted`` says that TSV cells may be in quotation marks.

    Raises:
        CorpusError: two columns or files of one language, or a table whose languages are unknown.
    """
    pieces, left = list[Piece](), list[Path]()
    folders = {f.parent for f in files if f.name == "dataset_info.json"} & {
        f.parent for f in files if f.name == "state.json"
    }
    for folder in sorted(folders):
        pieces += _saved(folder, split)
    inside = {folder.parent / "dataset_dict.json" for folder in folders}
    rest = [f for f in files if f.parent not in folders and f not in inside]
    marked = list[Path]()
    for file in rest:
        suffix = _suffixes(file)[-1] if _suffixes(file) else ""
        found = kind if kind in set(_BY_SUFFIX.values()) | {"ted"} else _BY_SUFFIX.get(suffix)
        if found == "sgml":
            marked.append(file)
        elif found is None:
            left.append(file)
        elif (piece := _single(file, found, split, languages, quoted)) is not None:
            pieces.append(piece)
        else:
            left.append(file)
    pieces += _test_sets(marked, split)
    groups, ignored = _aligned(left, split)
    pieces += groups
    wrong = [p for p in pieces if kind is not None and p.kind != kind]
    kept = [p for p in pieces if p not in wrong]
    return Found(kept, ignored + [f for p in wrong for f in p.files])


def _suffixes(file: Path) -> list[str]:
    name = file.with_suffix("").name if file.suffix in COMPRESSED else file.name
    return name.split(".")[1:]


def split_of(file: Path, default: Split = "train") -> Split:
    """The split of a file, by the words of its name, then by its folder."""
    for word in re.split(r"[^a-z0-9]+", file.name.lower()):
        if word in _SPLITS:
            return _SPLITS[word]
        if word.startswith(("newsdev", "newsdiscussdev")):
            return "valid"
        if word.startswith(_TEST_NAMES):
            return "test"
    return _SPLITS.get(file.parent.name.lower(), default)


def _named(names: Iterable[str], where: str) -> dict[str, str]:
    """Tags -> codes of the names that are tags; CorpusError if two are the same language."""
    found = merged([list(names)])
    seen: dict[str, str] = {}
    for tag, code in found.items():
        if code in seen:
            raise CorpusError(f"{where}: {seen[code]!r} and {tag!r} are both {code!r}")
        seen[code] = tag
    return found


def _single(
    file: Path, kind: str, split: Split | None, languages: Sequence[str], quoted: bool
) -> Piece | None:
    """The piece that one file is, or None."""
    of = split or split_of(file)
    if kind in ("tsv", "ted"):
        return _table(file, split, languages, datasets.Shape("\t", quoted))
    if kind == "csv":
        comma = datasets.Shape(",", quoted=True)
        semicolons = len(datasets.header(file, comma)) == 1
        return _table(file, split, languages, datasets.Shape(";", True) if semicolons else comma)
    if kind == "jsonl":
        tags = merged(_json_keys(file))
        if len(tags) < 2:
            return None
        source = Source(format="jsonl", path=file, languages=tuple(tags), check=False)
        return Piece(kind, of, (file,), tags, _source_items(source))
    if kind == "parquet":
        tags = _named(datasets.parquet_columns(file), str(file))
        items = lambda: datasets.parquet(file, list(tags))
        return Piece(kind, of, (file,), tags, items) if len(tags) > 1 else None
    with open_bytes(file) as data:
        start = data.read(4096).replace(b"\0", b"")  # keeps the ASCII of UTF-16
    if kind == "xml" and not re.search(rb"<(tmx|dataset|doc|tstset|collection)\b", start):
        return None
    kind = "tmx" if b"<tmx" in start else kind
    reader = markup.tmx if kind == "tmx" else markup.wmt_xml
    of = split or split_of(file, "train" if kind == "tmx" else "test")
    tags = merged(item.texts for item in reader(file) if isinstance(item, Row))
    return Piece(kind, of, (file,), tags, lambda: reader(file)) if len(tags) > 1 else None


def _source_items(source: Source) -> Callable[[], Iterable[Row | Fault]]:
    """The rows of a source of `readers`, its problems as faults."""
    return lambda: _items(source)


def _items(source: Source) -> Iterator[Row | Fault]:
    faults: list[Fault] = []

    class _Collect(Account):
        def problem(
            self, corpus: str, reason: str, where: str, detail: str = "", count: int = 1
        ) -> None:
            faults.append(Fault(reason, where, detail, count=count))

    for row in read_rows(source, _Collect()):
        yield from faults
        faults.clear()
        yield row
    yield from faults


def _json_keys(file: Path) -> Iterator[list[str]]:
    """The keys of each object whose values are texts; none for lines that are not objects."""
    for number, line in enumerate(raw_lines(file), 1):
        try:
            found = json.loads(decode(line, f"{file}:{number}"))
        except (Fault, ValueError, RecursionError):
            if number == 1:
                raise CorpusError(f"{file}:1: not a line of JSON") from None
            continue
        inner = found.get("translation", found) if isinstance(found, dict) else {}
        if isinstance(inner, dict):
            yield [key.replace("-", "_") for key, text in inner.items() if isinstance(text, str)]


def _table(
    file: Path, split: Split | None, languages: Sequence[str], shape: datasets.Shape
) -> Piece | None:
    cells = datasets.header(file, shape)
    kind = "ted" if cells and cells[0].strip() == "talk_name" else "tsv"
    kind = kind if shape.separator == "\t" else "csv"
    names = [cell.strip() for cell in cells]
    tags = _named(names, f"{file}:1")
    columns = {names.index(tag): tag for tag in tags}
    headed = len(tags) > 1 and (kind == "ted" or len(tags) == len(names))
    if not headed:
        given = list(languages) or _pair_in(file)
        if len(given) != len(cells) or len(cells) < 2:
            told = f"{len(cells)} columns and no header of languages"
            raise CorpusError(f"{file}:1: {told}; name them, as in --languages 'en fr'")
        tags = _named(given, "--languages")
        columns = dict(enumerate(given))
    of = split or split_of(file)
    items = lambda: datasets.tsv(file, columns, headed, len(cells), shape)
    return Piece(kind, of, (file,), tags, items)


def _pair_in(file: Path) -> list[str]:
    """The languages of `news.en-de.tsv`."""
    for word in file.name.split("."):
        pair = word.split("-")
        if len(pair) == 2 and all(map(language_code, pair)):
            return pair
    return []


def _saved(folder: Path, split: Split | None) -> Iterator[Piece]:
    for name, data in datasets.saved_splits(folder).items():
        tags = _named(datasets.saved_columns(data), str(folder))
        if len(tags) > 1:
            items = lambda data=data, tags=tags: datasets.saved(data, list(tags), str(folder))
            of = split or split_of(Path(name))
            yield Piece("datasets", of, tuple(sorted(folder.glob("*.arrow"))), tags, items)


_SIDE = re.compile(r"(.*)-(src|ref)\.([\w-]+)\.sgml?(?:\.gz)?")


def _test_sets(files: Sequence[Path], split: Split | None) -> Iterator[Piece]:
    """Files `newstest2014-deen-src.de.sgm` and `-ref.en.sgm` together."""
    sets: dict[Path, dict[str, Path]] = {}
    for file in files:
        found = _SIDE.fullmatch(file.name)
        if found is None:
            raise CorpusError(f"{file}: SGML test sets are called NAME-src.XX.sgm and -ref.XX.sgm")
        sets.setdefault(file.parent / found[1], {})[found[3]] = file
    for stem, paths in sets.items():
        tags = _named(paths, str(stem))
        if len(tags) < 2:
            only = next(iter(paths.values()))
            raise CorpusError(f"{only}: the other language of this test set is missing")
        of = split or split_of(stem, "test")
        items = lambda paths=paths: markup.sgml(paths)
        yield Piece("sgml", of, tuple(paths.values()), tags, items)


def _aligned(files: Sequence[Path], split: Split | None) -> tuple[list[Piece], list[Path]]:
    """Files of one language each, whose names differ only in the language."""
    sets: dict[tuple[Path, str], dict[str, Path]] = {}
    ignored = []
    for file in files:
        place = _place(file)
        if place is None:
            ignored.append(file)
        else:
            sets.setdefault((file.parent / place[0], place[2]), {})[place[1]] = file
    pieces = []
    for (stem, kind), paths in sets.items():
        paths = _in_stem(stem.name, paths)
        tags = _named(paths, str(stem))
        if len(tags) < 2:
            ignored += paths.values()
            continue
        of = split or split_of(next(iter(paths.values())))
        by_tag = {tag.replace("-", "_"): path for tag, path in paths.items()}
        source = Source(format="text", paths=by_tag, check=False)  # `Piece.rows` can check
        spelled = {tag.replace("-", "_"): code for tag, code in tags.items()}
        kind = "opus100" if stem.name.startswith("opus.") else kind
        pieces.append(Piece(kind, of, tuple(paths.values()), spelled, _source_items(source)))
    return pieces, ignored


def _in_stem(stem: str, paths: dict[str, Path]) -> dict[str, Path]:
    """For `news.de-en.de`, `.en` and an extra `.fr`, only those that the name states."""
    for one, other in permutations(paths, 2):
        if f"{one}-{other}" in stem:
            return {one: paths[one], other: paths[other]}
    return paths


def _place(file: Path) -> tuple[str, str, str] | None:
    """(name without the language, language tag, kind) of a file of one language."""
    name = file.with_suffix("").name if file.suffix in COMPRESSED else file.name
    stem, _, last = name.rpartition(".")
    if last in ("dev", "devtest", "test") and language_code(stem):
        return f"*.{last}", stem, "flores"
    if stem and last not in _NO_LANGUAGE and language_code(last):
        return stem, last, "moses"
    return None
