"""Repeated keys among any number: 8-byte hashes in buckets on disk that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

# A billion pairs make buckets of 60 MB.
_BUCKETS = 256
_BUFFER = 2**20  # records
_RECORD = np.dtype([("hash", "<u8"), ("place", "<u8")])
# Group and place are stored as one number: 16 million groups of a trillion places each.
_PLACES = 2**40


class Buckets:
    """Records of a hash and a place; finds those whose hash an earlier record has.

    Up to a million records are held in memory. More are written to ``count`` files in ``folder``,
    each of which must be small enough to be sorted in memory.
    """

    def __init__(self, folder: Path, count: int = _BUCKETS) -> None:
        self._folder, self._count = folder, count
        self._waiting, self._spilled = bytearray(), False

    def add(self, hashes: np.ndarray, places: np.ndarray) -> None:
        """Add records; ``hashes`` and ``places`` are [n] of 64 bits, places in ascending order."""
        records = np.empty(len(hashes), _RECORD)
        records["hash"], records["place"] = hashes, places
        self._waiting += records.tobytes()
        if len(self._waiting) >= _BUFFER * _RECORD.itemsize:
            self._spill()

    def repeats(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(first place, later place) of all records with equal hashes; both [n]."""
        for records in self._sortable():
            # Records are in order of arrival: a stable sort keeps the first one first.
            records = records[np.argsort(records["hash"], kind="stable")]
            fresh = np.ones(len(records), bool)
            fresh[1:] = records["hash"][1:] != records["hash"][:-1]
            starts = np.maximum.accumulate(np.where(fresh, np.arange(len(records)), 0))
            yield records["place"][starts[~fresh]], records["place"][~fresh]

    def _sortable(self) -> Iterator[np.ndarray]:
        if not self._spilled:
            yield np.frombuffer(bytes(self._waiting), _RECORD)
            return
        self._spill()
        for file in sorted(self._folder.glob("*.hashes")):
            yield np.fromfile(file, _RECORD)
            file.unlink()

    def _spill(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        records = np.frombuffer(bytes(self._waiting), _RECORD)
        bucket = records["hash"] % np.uint64(self._count)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(self._count + 1))
        for number, (start, end) in enumerate(pairwise(ends.tolist())):
            with (self._folder / f"{number:06}.hashes").open("ab") as out:
                records[order[start:end]].tofile(out)
        self._waiting, self._spilled = bytearray(), True


class Repeats:
    """Marks every occurrence of a key except the first, for any number of keys.

    Keys are compared by an 8-byte hash: among 100 million the probability of any collision is
    3 in 10,000.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._buckets = folder, Buckets(folder)

    def add(self, keys: Sequence[bytes], group: int, place: int) -> None:
        """Add keys from ``place`` of ``group`` on; equal keys in two groups are different keys."""
        copy = blake2b(digest_size=8, salt=group.to_bytes(4, "little")).copy
        digests: list[bytes] = []
        for key in keys:
            digest = copy()  # takes half the time of making a new one
            digest.update(key)
            digests.append(digest.digest())
        first = group * _PLACES + place
        places = np.arange(first, first + len(keys), dtype=np.uint64)
        self._buckets.add(np.frombuffer(b"".join(digests), "<u8"), places)

    def flags(self, counts: Sequence[int]) -> list[np.ndarray]:
        """For each group a boolean array [places] on disk: whether the key occurred before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files = [self._folder / f"{group}.repeats" for group in range(len(counts))]
        flags = [
            np.memmap(f, bool, "w+", shape=(max(n, 1),)) for f, n in zip(files, counts, strict=True)
        ]
        for _, later in self._buckets.repeats():
            groups, places = np.divmod(later, np.uint64(_PLACES))
            for group in np.unique(groups).tolist():
                flags[group][places[groups == group]] = True
        return [f[:n] for f, n in zip(flags, counts, strict=True)]
