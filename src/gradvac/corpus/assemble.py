"""From extracted pairs to training, validation and test text; memory is that of one bucket.

Pairs are distributed to buckets on disk by the letters of their English side, so that all pairs of
an English string are in one bucket; all cores then process the buckets. The result depends on the
order of the given files, not on the number of processes.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from gradvac.corpus.losses import Losses
from gradvac.corpus.workers import workers
from gradvac.text.cleaning import text_key
from gradvac.text.heldout import HeldOut, NearIndex
from gradvac.text.languages import ENGLISH

# Chosen here: ten million pairs make buckets of about 25 MB each.
BUCKETS = 64


class Row(NamedTuple):
    """An English string, the document it was first seen in, and its translations."""

    document: str
    english: str
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class Split:
    """How much is held out.

    `rows` is the desired number of rows of validation and of test text; a language gives at most
    `share` of its pairs to both, and a document is at most an eighth of either.
    """

    rows: int = 2000
    share: float = 0.1


@dataclass(slots=True)
class Assembled:
    """Pairs by split and language, losses, number of documents in all and held out by split."""

    pairs: dict[str, Counter[str]]
    losses: Losses
    documents: dict[str, int]


def scatter(files: Sequence[Path], folder: Path, tick: Callable[[], None]) -> list[Path]:
    """Distribute extracted pairs to buckets; within a bucket they keep the order of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    buckets = [folder / f"{number:02}.jsonl" for number in range(BUCKETS)]
    with ExitStack() as stack:
        open_ = [stack.enter_context(b.open("w", encoding="utf-8")) for b in buckets]
        for file in files:
            with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    open_[_bucket(json.loads(line)[2])].write(line)
            tick()
    return buckets


@lru_cache(maxsize=1 << 16)
def _bucket(english: str) -> int:
    return hash_of(text_key(english)) % BUCKETS


def hash_of(text: str) -> int:
    """A fixed pseudo-random number in [0, 2^64) for a text."""
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


@dataclass(slots=True)
class _Document:
    rows: int = 0
    cells: Counter[str] = field(default_factory=Counter)


def gather(bucket: Path) -> tuple[dict[str, tuple[int, dict[str, int]]], Losses]:
    """Turn a bucket of pairs into one of rows, one translation per English string and language.

    The first translation of a string is kept. Returns rows and cells of each document.
    """
    rows: dict[str, Row] = {}
    losses = Losses()
    with bucket.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            language, document, english, translation = json.loads(line)
            row = rows.setdefault(english, Row(document, english, {}))
            if language in row.cells:
                same = row.cells[language] == translation
                why = "repeated" if same else "another translation of a string seen before"
                losses.add(why, [language, english, translation], language)
            else:
                row.cells[language] = translation
    documents: dict[str, _Document] = defaultdict(_Document)
    with bucket.with_suffix(".rows").open("w", encoding="utf-8") as out:
        for row in rows.values():
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            documents[row.document].rows += 1
            documents[row.document].cells.update(row.cells.keys())
    bucket.unlink()
    return {name: (d.rows, dict(d.cells)) for name, d in documents.items()}, losses


def read_rows(bucket: Path) -> Iterator[Row]:
    """The rows of a gathered bucket."""
    with bucket.with_suffix(".rows").open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield Row(*json.loads(line))


def choose_documents(
    documents: Mapping[str, tuple[int, Mapping[str, int]]], languages: Sequence[str], split: Split
) -> dict[str, str]:
    """Document -> `valid` or `test`, for the documents held out.

    First the documents with strings translated into the most languages, for the multi-way set;
    then, for each language with less than a quarter of `split.rows` or half its share,
    documents in it. Ties are ordered by a hash of the name.
    """
    total = Counter[str]()
    for _, cells in documents.values():
        total.update(cells)
    room = {code: split.share * total[code] for code in languages}
    held = {part: Counter[str]() for part in ("valid", "test")}
    chosen: dict[str, str] = {}

    def width(name: str) -> int:
        rows, cells = documents[name]
        return round(sum(cells.values()) / rows)

    def take(name: str) -> None:
        rows, cells = documents[name]
        taken = held["valid"] + held["test"]
        if name in chosen or rows > max(split.rows / 8, 1):
            return
        if any(taken[code] + count > room[code] for code, count in cells.items()):
            return
        part = min(held, key=lambda p: held[p]["rows"])
        chosen[name] = part
        held[part].update(cells)
        held[part]["rows"] += rows

    for name in sorted(documents, key=lambda n: (-width(n), hash_of(n), n)):
        if min(counts["rows"] for counts in held.values()) >= split.rows:
            break
        take(name)
    for code in sorted(languages, key=lambda c: (total[c], c)):
        enough = min(split.rows / 4, room[code] / 4)
        for name in sorted(documents, key=lambda n: (hash_of(n), n)):
            if min(counts[code] for counts in held.values()) >= enough:
                break
            if code in documents[name][1]:
                take(name)
    return chosen


def evaluation_rows(
    rows: Iterable[Row], chosen: Mapping[str, str], losses: Losses
) -> dict[str, list[dict[str, str]]]:
    """Rows of the held-out documents by split, without near-duplicates or equal letters."""
    kept: dict[str, list[dict[str, str]]] = {"valid": [], "test": []}
    ordered = sorted(rows, key=lambda row: (-len(row.cells), hash_of(row.english), row.english))
    near = NearIndex(row.english for row in ordered)
    keys: dict[str, set[str]] = defaultdict(set)
    for index, row in enumerate(ordered):
        texts = {ENGLISH: row.english, **row.cells}
        repeated = text_key(row.english) in keys[ENGLISH] or near.find(row.english) != index
        cells = {
            code: text
            for code, text in texts.items()
            if not repeated and text_key(text) not in keys[code]
        }
        for code in texts.keys() - cells.keys():
            sample = [code, row.english, texts[code]]
            losses.add("evaluation text that repeats", sample, code)
        if len(cells) > 1 and ENGLISH in cells:
            kept[chosen[row.document]].append(cells)
            for code, text in cells.items():
                keys[code].add(text_key(text))
    return kept


def _held_out_rows(bucket: Path, chosen: Mapping[str, str]) -> list[Row]:
    return [row for row in read_rows(bucket) if row.document in chosen]


_held: HeldOut | None = None


def _start(rows: list[dict[str, str]]) -> None:
    global _held
    _held = HeldOut(rows)


def _training(bucket: Path, chosen: Mapping[str, str]) -> tuple[Counter[str], Losses]:
    """Write a bucket's training pairs, one file per language; count them and what is left out."""
    assert _held is not None
    lines: dict[str, list[str]] = defaultdict(list)
    losses = Losses()
    for row in read_rows(bucket):
        why = _held.english_reason(row.english)
        if why is None and row.document in chosen:
            why = "document held out, string not taken"
        for code, translation in row.cells.items():
            leak = why or _held.translation_reason(code, translation)
            if leak is None:
                lines[code].append(f"{row.english}\t{translation}\n")
            elif leak != "English side held out":
                losses.add(leak, [code, row.english, translation], code)
    for code, found in lines.items():
        part = bucket.with_suffix(f".{code}.tsv")
        part.write_text("".join(found), encoding="utf-8", newline="\n")
    bucket.with_suffix(".rows").unlink()
    return Counter({code: len(found) for code, found in lines.items()}), losses


def assemble(
    files: Sequence[Path],
    languages: Sequence[str],
    out: Path,
    split: Split,
    jobs: int,
    tick: Callable[[str, int, int], None],
) -> Assembled:
    """Write `train/en-XX.tsv`, `valid.tsv` and `test.tsv` of the pairs in `files` into `out`.

    `tick` gets the stage, how much of it is done and how much there is.
    """
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    done = iter(range(1, len(files) + 1))
    buckets = scatter(files, work, lambda: tick("sorting", next(done), len(files)))
    losses = Losses()
    documents: dict[str, tuple[int, dict[str, int]]] = {}
    with workers(jobs) as map_:
        for number, (found, lost) in enumerate(map_(gather, buckets), 1):
            _merge_documents(documents, found)
            losses.merge(lost.counts, lost.samples)
            tick("joining languages", number, BUCKETS)
        chosen = choose_documents(documents, languages, split)
        held = [
            row for rows in map_(partial(_held_out_rows, chosen=chosen), buckets) for row in rows
        ]
    parts = evaluation_rows(held, chosen, losses)
    pairs = {
        part: Counter(code for row in rows for code in row if code != ENGLISH)
        for part, rows in parts.items()
    }
    pairs["train"] = Counter({code: 0 for code in languages})
    everything = [row for rows in parts.values() for row in rows]
    with workers(jobs, partial(_start, everything)) as map_:
        results = map_(partial(_training, chosen=chosen), buckets)
        for number, (kept, lost) in enumerate(results, 1):
            pairs["train"].update(kept)
            losses.merge(lost.counts, lost.samples)
            tick("keeping evaluation text out", number, BUCKETS)
    for part, rows in parts.items():
        write_multiway(out / f"{part}.tsv", rows, languages)
    _concatenate(buckets, languages, out / "train")
    shutil.rmtree(work)
    counts = Counter(chosen.values())
    return Assembled(pairs, losses, {"all": len(documents), **counts})


def _merge_documents(
    documents: dict[str, tuple[int, dict[str, int]]],
    found: Mapping[str, tuple[int, dict[str, int]]],
) -> None:
    for name, (rows, cells) in found.items():
        before, counts = documents.setdefault(name, (0, {}))
        for code, count in cells.items():
            counts[code] = counts.get(code, 0) + count
        documents[name] = (before + rows, counts)


def write_multiway(file: Path, rows: Iterable[Mapping[str, str]], languages: Sequence[str]) -> None:
    """A table with one column per language, English first; a cell is empty if there is no text."""
    codes = [ENGLISH, *languages]
    with file.open("w", encoding="utf-8", newline="\n") as out:
        out.write("\t".join(codes) + "\n")
        out.writelines("\t".join(row.get(code, "") for code in codes) + "\n" for row in rows)


def _concatenate(buckets: Sequence[Path], languages: Sequence[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for code in languages:
        with (folder / f"{ENGLISH}-{code}.tsv").open("wb") as out:
            out.write(f"{ENGLISH}\t{code}\n".encode())
            for bucket in buckets:
                part = bucket.with_suffix(f".{code}.tsv")
                if part.exists():
                    with part.open("rb") as lines:
                        shutil.copyfileobj(lines, out)
