"""Duplicates and near-duplicates among any number of rows, in constant memory.

Rows are numbered. Hashes are written to buckets on disk, each small enough to be sorted in memory:
16 bytes per row for exact duplicates, 160 for near ones (ten bands), and one byte per row for the
result.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from gradvac.data.repeats import Buckets
from gradvac.text.heldout import NEAR, bag, jaccard

# 2 M records of 16 bytes; sorting one bucket takes about 100 MB.
BUCKET_RECORDS = 2**21

# MinHash (Broder 1997) with banding (Leskovec et al. 2020, chapter 3): two sets with a Jaccard of
# 0.8 share one of ten bands of four values with probability 1 - (1 - 0.8**4)**10 = 0.995.
BANDS = 10
BAND_ROWS = 4

KEPT, EXACT, NEAR_DUPLICATE = 0, 1, 2


def text_hash(*texts: str) -> int:
    """A 64-bit hash. Among 100 million rows, the probability of any collision is 3e-4."""
    joined = "\n".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(joined, digest_size=8).digest(), "little")


def mark_exact(parts: Sequence[Path], state: np.ndarray, folder: Path) -> None:
    """Mark rows with the hash of an earlier row; `parts` are files of hashes, in row order."""
    buckets = Buckets(folder / "exact", 1 + len(state) // BUCKET_RECORDS)
    row = 0
    for part in parts:
        hashes = np.fromfile(part, "<u8")
        buckets.add(hashes, np.arange(row, row + len(hashes), dtype=np.uint64))
        row += len(hashes)
    for _, later in buckets.repeats():
        state[later] = EXACT


def band_hashes(texts: Iterable[tuple[str, str]]) -> np.ndarray:
    """Hashes [n, BANDS] of the bands of each pair's words; equal if the words probably are."""
    known: dict[tuple[int, str], int] = {}
    values: list[int] = []
    starts: list[int] = []
    for pair in texts:
        starts.append(len(values))
        words = [(side, word) for side, text in enumerate(pair) for word in sorted(bag(text))]
        for word in words or [(2, "")]:
            if word not in known:
                known[word] = text_hash(str(word[0]), word[1])
            values.append(known[word])
    if not starts:
        return np.empty((0, BANDS), np.uint64)
    hashed = np.array(values, np.uint64)
    constants = np.random.default_rng(0).integers(
        0, 2**64, (BANDS, BAND_ROWS, 2), np.uint64, endpoint=False
    )
    bands = np.zeros((len(starts), BANDS), np.uint64)
    for band in range(BANDS):
        for row in range(BAND_ROWS):
            factor, shift = constants[band, row] | np.array([1, 0], np.uint64)
            mixed = hashed * factor + shift
            mixed ^= mixed >> np.uint64(29)
            least = np.minimum.reduceat(mixed, starts)
            bands[:, band] = (bands[:, band] ^ least) * factor + shift
    return bands


def mark_near(
    parts: Sequence[Path],
    state: np.ndarray,
    line: Callable[[int], tuple[str, str]],
    folder: Path,
) -> None:
    """Mark rows that share at least `NEAR` of the words of both sides with an earlier row.

    `parts` are files of band hashes, `line` returns the text of a row. A row is compared with the
    first row of each of its bands, so every mark is a true near-duplicate; a few are missed.
    """
    buckets = Buckets(folder / "near", 1 + BANDS * len(state) // BUCKET_RECORDS)
    row = 0
    for part in parts:
        bands = np.fromfile(part, "<u8").reshape(-1, BANDS)
        kept = np.flatnonzero(state[row : row + len(bands)] == KEPT)
        for band in range(BANDS):
            buckets.add(bands[kept, band], (row + kept).astype(np.uint64))
        row += len(bands)
    for first, later in buckets.repeats():
        for one, other in zip(first.tolist(), later.tolist(), strict=True):
            if state[other] == KEPT and _near(line(one), line(other)):
                state[other] = NEAR_DUPLICATE


def _near(one: tuple[str, str], other: tuple[str, str]) -> bool:
    tagged = [
        frozenset((side, word) for side, text in enumerate(pair) for word in bag(text))
        for pair in (one, other)
    ]
    return jaccard(*tagged) >= NEAR  # type: ignore[arg-type]


class Lines:
    """Random access to the two columns of each line of a file, by 8 bytes per line on disk."""

    def __init__(self, file: Path, offsets: Path) -> None:
        self._file = file.open("rb")
        size = file.stat().st_size
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._offsets = np.memmap(offsets, "<u8", "r") if offsets.stat().st_size else np.empty(0)

    def __len__(self) -> int:
        return len(self._offsets)

    def __call__(self, row: int) -> tuple[str, str]:
        """Both columns of a line."""
        start = int(self._offsets[row])
        end = int(self._offsets[row + 1]) if row + 1 < len(self._offsets) else len(self._map)
        source, _, target = self._map[start:end].decode("utf-8").rstrip("\n").partition("\t")
        return source, target

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._map, mmap.mmap):
            self._map.close()
        self._file.close()
