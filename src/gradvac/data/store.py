"""Encoded directions on disk: written as a stream, opened at once, shared by many readers.

    index.json                        contents, with counts
    TASK/00000000.ids  .offsets       the first `shard_pairs` pairs, then 00000001, ...

``ids`` holds source 0, target 0, source 1, ... concatenated, in 16 bits if the vocabulary allows;
``offsets`` (64 bits) the 2n + 1 boundaries between them. All is little-endian and memory-mapped, so
processes share one copy. Every shard except the last holds the same number of pairs: the shard of
pair i is computed, and opening a corpus of any size reads only `index.json`. The index has the
SHA-256 of both files of every shard. It is checked when a shard is first opened, in corpora of up
to a gigabyte; in larger ones it would delay the first batches by minutes, so file sizes are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, NotRequired, Self

import numpy as np
from pydantic import Field, PositiveInt
from typing_extensions import TypedDict

from gradvac.data.encoded import EncodedTask, Sentences, Side, spans
from gradvac.errors import RunError
from gradvac.reading import read_json, regular
from gradvac.writing import write_json

FORMAT = 2
# Chosen here: about 100 MB per shard, and 25 billion pairs in 24,000 files.
SHARD_PAIRS = 2**20
# Two open files each; systems allow a thousand or more.
_OPEN_SHARDS = 128
# Corpora up to this many bytes have their sums checked: one or two seconds in all.
_CHECKED = 2**30


@dataclass(frozen=True, slots=True)
class TaskIndex:
    """Counts of one direction: pairs, and tokens of each side."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    pairs: Annotated[int, Field(ge=0)]
    source_tokens: Annotated[int, Field(ge=0)]
    target_tokens: Annotated[int, Field(ge=0)]


class _Index(TypedDict):
    dtype: Literal["<u2", "<i4"]
    shard_pairs: PositiveInt
    tasks: dict[str, TaskIndex]
    sums: NotRequired[dict[str, list[tuple[str, str]]]]


class Writer:
    """Writes an encoded corpus; `with Writer(...) as w: w.add(task, pairs)`.

    Holds the offsets of one unfinished shard per direction. The index is written when the block
    ends without an error, so a folder without an index is incomplete.
    """

    def __init__(
        self, folder: Path, fingerprint: str, vocabulary_size: int, shard_pairs: int = SHARD_PAIRS
    ) -> None:
        self.folder, self.fingerprint, self.shard_pairs = folder, fingerprint, shard_pairs
        self.dtype = np.dtype("<u2" if vocabulary_size <= 2**16 else "<i4")
        self._tasks: dict[str, _TaskWriter] = {}

    def add(self, name: str, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Append pairs to the direction ``name``, which is created even if there are none."""
        if name not in self._tasks:
            self._tasks[name] = _TaskWriter(self.folder / name, self.dtype, self.shard_pairs)
        for source, target in pairs:
            self._tasks[name].add(source, target)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        for writer in self._tasks.values():
            writer.flush()
        index = {
            "format": FORMAT,
            "vocabulary": self.fingerprint,
            "dtype": self.dtype.str,
            "shard_pairs": self.shard_pairs,
            "tasks": {
                name: {
                    "pairs": w.pairs,
                    "source_tokens": w.tokens[0],
                    "target_tokens": w.tokens[1],
                }
                for name, w in self._tasks.items()
            },
            "sums": {name: w.sums for name, w in self._tasks.items()},
        }
        write_json(self.folder / "index.json", index, indent=None)


class _TaskWriter:
    def __init__(self, folder: Path, dtype: np.dtype, shard_pairs: int) -> None:
        self.folder, self.dtype, self.shard_pairs = folder, dtype, shard_pairs
        self.pairs, self.tokens = 0, [0, 0]
        self._ids: list[int] = []
        self._lengths: list[int] = []
        self._boundary = 0
        self._digests: list[tuple[hashlib._Hash, hashlib._Hash]] = []  # of ids and offsets
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, source: Sequence[int], target: Sequence[int]) -> None:
        for side, ids in enumerate((source, target)):
            self._ids += ids
            self._lengths.append(len(ids))
            self.tokens[side] += len(ids)
        self.pairs += 1
        if len(self._ids) > 2**16 or self.pairs % self.shard_pairs == 0:
            self.flush()

    def flush(self) -> None:
        """Append buffered data to the files of the current shard."""
        if not self._lengths:
            return
        number = (self.pairs - 1) // self.shard_pairs
        name = self.folder / f"{number:08}"
        ends = self._boundary + np.cumsum(self._lengths, dtype="<i8")
        if number == len(self._digests):
            self._digests.append((hashlib.sha256(), hashlib.sha256()))
            ends = np.concatenate([np.zeros(1, "<i8"), ends])
        parts = {".ids": np.array(self._ids, self.dtype), ".offsets": ends}
        for (suffix, part), digest in zip(parts.items(), self._digests[-1], strict=True):
            digest.update(part)
            with name.with_suffix(suffix).open("ab") as file:
                part.tofile(file)
        self._boundary = 0 if self.pairs % self.shard_pairs == 0 else int(ends[-1])
        self._ids, self._lengths = [], []

    @property
    def sums(self) -> list[list[str]]:
        """The SHA-256 of ids and offsets of each shard."""
        return [[digest.hexdigest() for digest in pair] for pair in self._digests]


class Stored(Side):
    """One side of a direction on disk; ``side`` 0 is the source, 1 the target."""

    def __init__(self, store: Store, task: str, side: int) -> None:
        self._store, self._task, self._side = store, task, side
        index = store.tasks[task]
        self._pairs = index.pairs
        self._tokens = (index.source_tokens, index.target_tokens)[side]

    def __len__(self) -> int:
        return self._pairs

    @property
    def tokens(self) -> int:
        """Tokens of all sentences, from the index."""
        return self._tokens

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of some sentences."""
        out = np.empty(len(rows), np.int64)
        for where, _, first, last in self._found(rows):
            out[where] = last - first
        return out

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The ids of some sentences."""
        parts = [
            (where, spans(ids, first, last - first), last - first)
            for where, ids, first, last in self._found(rows)
        ]
        if len(parts) == 1:
            return parts[0][1]
        lengths = np.zeros(len(rows), np.int64)
        for where, _, own in parts:
            lengths[where] = own
        starts = np.cumsum(lengths) - lengths
        out = np.empty(int(lengths.sum()), self._store.dtype)
        for where, ids, own in parts:
            before = np.cumsum(own) - own
            out[np.repeat(starts[where] - before, own) + np.arange(len(ids))] = ids
        return out

    def _found(
        self, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """By shard: which of ``rows``, the shard's ids, start and end of each sentence."""
        shard, within = locate(rows, self._store.shard_pairs)
        for number in np.unique(shard).tolist():
            where = np.flatnonzero(shard == number)
            ids, offsets = self._store.shard(self._task, number)
            place = 2 * within[where] + self._side
            yield where, ids, offsets[place], offsets[place + 1]


def locate(rows: np.ndarray, shard_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Shard of each pair and its index there, [N] each; exact up to 2^63 pairs."""
    shard, within = np.divmod(np.asarray(rows, np.int64), np.int64(shard_pairs))
    return shard, within


class Store:
    """An opened encoded corpus on disk.

    Raises:
        RunError: the folder has none, a newer or damaged one, or one of another vocabulary.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        read_index(folder, fingerprint)
        index = read_json(folder / "index.json", _Index)
        self.folder, self.dtype = folder, np.dtype(index["dtype"])
        self.shard_pairs, self.tasks = index["shard_pairs"], index["tasks"]
        self._unchecked = self._sums(index) if self._bytes() <= _CHECKED else {}
        self.shard = lru_cache(maxsize=_OPEN_SHARDS)(self._map)

    def _bytes(self) -> int:
        tokens = sum(t.source_tokens + t.target_tokens for t in self.tasks.values())
        return tokens * self.dtype.itemsize + 16 * sum(t.pairs for t in self.tasks.values())

    @staticmethod
    def _sums(index: _Index) -> dict[tuple[str, int], tuple[str, str]]:
        """The sums of every shard; none in a corpus of an earlier version."""
        found = index.get("sums", {})
        return {(task, n): pair for task, own in found.items() for n, pair in enumerate(own)}

    def encoded(self) -> dict[str, EncodedTask]:
        """Every direction; none of its data is read yet."""
        return {n: EncodedTask(Stored(self, n, 0), Stored(self, n, 1)) for n in self.tasks}

    def _map(self, task: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        name = self.folder / task / f"{number:08}"
        pairs = min(self.tasks[task].pairs - number * self.shard_pairs, self.shard_pairs)
        try:
            offsets = np.memmap(regular(name.with_suffix(".offsets")), "<i8", "r")
            ids = np.memmap(regular(name.with_suffix(".ids")), self.dtype, "r")
        except (OSError, ValueError) as e:
            raise RunError(f"{name}: a shard of the encoded corpus cannot be opened: {e}") from e
        if len(offsets) != 2 * pairs + 1 or len(ids) != offsets[-1]:
            raise RunError(
                f"{name}: {len(ids):,} ids and {len(offsets):,} offsets, but the index says "
                f"{pairs:,} pairs: a file was cut off; remove {self.folder} and prepare again"
            )
        sums = self._unchecked.pop((task, number), ())
        for suffix, part, wanted in zip((".ids", ".offsets"), (ids, offsets), sums, strict=False):
            if (found := hashlib.sha256(part.data).hexdigest()) != wanted:
                raise RunError(
                    f"{name}{suffix}: damaged: its SHA-256 begins {found[:12]}, and index.json "
                    f"says {str(wanted)[:12]}; remove {self.folder} and prepare again"
                )
        return np.asarray(ids), np.asarray(offsets)


def read_index(folder: Path, fingerprint: str) -> dict[str, Any]:
    """The index of an encoded corpus, after a check of the vocabulary; RunError as for `Store`."""
    file = folder / "index.json"
    index = read_json(file)
    found, version = index.get("vocabulary"), index.get("format", 1)
    if not isinstance(found, str) or type(version) is not int:
        raise RunError(f"{file}: not an index of encoded text: no vocabulary, or no format")
    if found != fingerprint:
        raise RunError(f"{folder}: encoded with vocabulary {found}, the run has {fingerprint}")
    if version > FORMAT:
        raise RunError(
            f"{folder}: encoded in format {version}; this version of gradvac reads up to {FORMAT}"
        )
    return index


def open_encoded(folder: Path, fingerprint: str) -> Mapping[str, EncodedTask]:
    """The encoded directions in ``folder``, of this format or the first one (`.npy` files)."""
    index = read_index(folder, fingerprint)
    if index.get("format", 1) == FORMAT:
        return Store(folder, fingerprint).encoded()
    tasks = index.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        raise RunError(f"{folder / 'index.json'}: not an index of encoded text: no list of tasks")
    side = lambda name: open_sentences(folder, name)
    return {n: EncodedTask(side(f"{n}.source"), side(f"{n}.target")) for n in tasks}


def open_sentences(folder: Path, name: str) -> Sentences:
    """Sentences in two ``.npy`` files, memory-mapped; RunError when one is damaged."""
    parts = []
    for what in ("ids", "offsets"):
        file = regular(folder / f"{name}.{what}.npy")
        try:
            parts.append(np.load(file, mmap_mode="r"))
        except (OSError, ValueError, EOFError) as e:
            raise RunError(f"{file}: cannot be read: {e}") from e
        if parts[-1].ndim != 1 or parts[-1].dtype.kind not in "iu":
            raise RunError(f"{file}: holds {parts[-1].dtype} of {parts[-1].ndim} dimensions")
    ids, offsets = parts
    if (
        not len(offsets)
        or offsets[0] != 0
        or offsets[-1] != len(ids)
        or (np.diff(offsets) < 0).any()
    ):
        raise RunError(f"{folder / name}.offsets.npy: does not fit its {len(ids):,} ids")
    return Sentences(ids, offsets)
