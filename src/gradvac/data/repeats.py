"""Repeated keys among any number: hashes of 8 bytes go to buckets on disk that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

# A billion pairs make buckets of 80 MB.
_BUCKETS = 256
_BUFFER = 2**20
_RECORD = np.dtype([("hash", "<u8"), ("place", "<u8"), ("group", "<u4")])


class Repeats:
    """Marks every occurrence of a key but the first, among any number of them.

    Two keys are told apart by 8 bytes of hash: among 100 million the chance that any two are taken
    for the same is 3 in 10,000.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._buffer, self._spilled = folder, bytearray(), False
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, keys: Sequence[bytes], group: int, place: int) -> None:
        """Keys from ``place`` of ``group`` on; equal keys of two groups are different keys."""
        empty = blake2b(digest_size=8, salt=group.to_bytes(4, "little"))
        digests = bytearray()
        for key in keys:
            digest = empty.copy()  # half the time of a new one with its parameters
            digest.update(key)
            digests += digest.digest()
        records = np.empty(len(keys), _RECORD)
        records["hash"] = np.frombuffer(digests, "<u8")
        records["place"], records["group"] = np.arange(place, place + len(keys)), group
        self._buffer += records.tobytes()
        if len(self._buffer) >= _BUFFER * _RECORD.itemsize:
            self._spill()

    def flags(self, counts: Sequence[int]) -> list[np.ndarray]:
        """For each group a boolean array [places] on disk: whether the key was met before."""
        files = [self.folder / f"{group}.repeats" for group in range(len(counts))]
        flags = [
            np.memmap(f, bool, "w+", shape=(max(n, 1),)) for f, n in zip(files, counts, strict=True)
        ]
        for records in self._buckets():
            # In a bucket records are in the order they came: a stable sort keeps the first first.
            records = records[np.argsort(records["hash"], kind="stable")]
            repeated = records[1:][records["hash"][1:] == records["hash"][:-1]]
            for group in np.unique(repeated["group"]).tolist():
                flags[group][repeated["place"][repeated["group"] == group]] = True
        return [f[:n] for f, n in zip(flags, counts, strict=True)]

    def _buckets(self) -> Iterator[np.ndarray]:
        if not self._spilled:
            yield np.frombuffer(bytes(self._buffer), _RECORD)
            return
        self._spill()
        for file in sorted(self.folder.glob("*.hashes")):
            yield np.fromfile(file, _RECORD)
            file.unlink()

    def _spill(self) -> None:
        records = np.frombuffer(bytes(self._buffer), _RECORD)
        bucket = records["hash"] % np.uint64(_BUCKETS)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(_BUCKETS + 1))
        for number in range(_BUCKETS):
            with (self.folder / f"{number:03}.hashes").open("ab") as out:
                records[order[ends[number] : ends[number + 1]]].tofile(out)
        self._buffer, self._spilled = bytearray(), True
