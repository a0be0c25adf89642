"""Clean training pairs of every direction, on disk: one pass over the sources, bounded memory.

Repeated pairs are found by hashes of 8 bytes that go to buckets on disk, each of which fits in
memory; so the number of pairs does not matter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from gradvac.translation.account import EXAMPLES, Account
from gradvac.translation.cleaning import CleaningRules, judge
from gradvac.translation.languages import Direction
from gradvac.translation.readers import Row

ENGLISH = "en"
Wanted = Literal["to_en", "from_en", "both"] | Sequence[str]

# A billion pairs make buckets of 80 MB.
_BUCKETS = 256
_BUFFER = 2**20
_RECORD = np.dtype([("hash", "<u8"), ("place", "<u8"), ("group", "<u4")])
_PACK = struct.Struct("<QQI").pack


class Repeats:
    """Marks every occurrence of a key but the first, among any number of them.

    Two keys are told apart by 8 bytes of hash: among 100 million the chance that any two are taken
    for the same is 3 in 10,000.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._buffer, self._spilled = folder, bytearray(), False
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, key: bytes, group: int, place: int) -> None:
        """The key at ``place`` of ``group``; equal keys of different groups are different keys."""
        digest = blake2b(key, digest_size=8, salt=group.to_bytes(4, "little")).digest()
        self._buffer += _PACK(int.from_bytes(digest, "little"), place, group)
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


class _Lane:
    """The pairs of one direction."""

    def __init__(self, direction: Direction, number: int, folder: Path) -> None:
        self.direction, self.number, self.file = (
            direction,
            number,
            folder / f"{direction.name}.pairs",
        )
        self.name = f"train {direction.name}"
        self.met, self.count = 0, 0  # rows in both languages, pairs kept of them
        self.missing: list[str] = []  # where the first few rows are that are not in both
        self.out: TextIO = self.file.open("w", encoding="utf-8", newline="\n")
        self.flags = np.zeros(0, bool)


class Spool:
    """What cleaning leaves of the training rows, by direction; ``folder`` may be removed after use.

    Directions that are not all named (`wanted` a word, no `languages`) follow from the languages
    that are met. ``account`` counts every row once per direction, as `clean` does.
    """

    def __init__(
        self,
        folder: Path,
        rules: CleaningRules,
        account: Account,
        wanted: Wanted,
        languages: Sequence[str] | None,
        held_out: frozenset[str],
    ) -> None:
        self.folder, self.rules, self.account, self.wanted = folder, rules, account, wanted
        self.held_out = held_out - {""}
        self.found: set[str] = set()
        self.rows, self._first = 0, list[str]()
        self._lanes: dict[str, _Lane] = {}
        self._from: dict[str, list[_Lane]] = {}
        self._curious: list[_Lane] = []  # those that miss few rows so far
        self._repeats = Repeats(folder / "repeats")
        self._follow = isinstance(wanted, str) and languages is None
        if not self._follow:
            for direction in directions(wanted, languages or ()):
                self._open(direction)

    def fill(self, rows: Iterable[Row]) -> None:
        """Clean all rows there are, keep what is left, and complete the account."""
        try:
            for row in rows:
                if not row.texts.keys() <= self.found:
                    self._meet(row.texts.keys() - self.found)
                self._put(row)
        finally:
            for lane in self._lanes.values():
                lane.out.close()
        lanes = list(self._lanes.values())
        flags = self._repeats.flags([lane.count for lane in lanes])
        for lane, own in zip(lanes, flags, strict=True):
            lane.flags = own
            self._drop(lane, "not in both languages", lane.missing, self.rows - lane.met)
            repeated = int(own.sum())
            self.account.keep(lane.name, lane.count - repeated)
            self._drop(lane, "duplicate", self._places(lane, own) if repeated else [], repeated)

    @property
    def names(self) -> list[str]:
        """The directions there are."""
        return list(self._lanes)

    def pairs(self, direction: Direction) -> int:
        """Clean pairs of a direction."""
        lane = self._lanes[direction.name]
        return lane.count - int(lane.flags.sum())

    def texts(
        self, direction: Direction, size: int, most: int
    ) -> Iterator[tuple[list[str], list[str]]]:
        """The first ``most`` clean pairs of a direction, about ``size`` at a time."""
        lane = self._lanes[direction.name]
        with lane.file.open(encoding="utf-8", newline="\n") as lines:
            unique = (line for line, flag in zip(lines, lane.flags, strict=True) if not flag)
            unique = islice(unique, most)
            while chunk := list(islice(unique, size)):
                cells = [line.split("\t", 2) for line in chunk]
                yield [source for source, _, _ in cells], [target for _, target, _ in cells]

    def _meet(self, languages: Iterable[str]) -> None:
        new = set(languages)
        self.found |= new
        if self._follow:
            for direction in directions(self.wanted, sorted(new - {ENGLISH})):
                if direction.name not in self._lanes:
                    # The rows so far had no text in one of the two languages.
                    self._open(direction).missing.extend(self._first)

    def _drop(self, lane: _Lane, reason: str, first: Sequence[str], total: int) -> None:
        """Count ``total`` rows, of which the ``first`` few are located."""
        for n, where in enumerate(first):
            count = 1 if n + 1 < len(first) else total - n
            self.account.drop(lane.name, reason, where, count)

    def _open(self, direction: Direction) -> _Lane:
        self.folder.mkdir(parents=True, exist_ok=True)
        lane = _Lane(direction, len(self._lanes), self.folder)
        self._lanes[direction.name] = lane
        self._from.setdefault(direction.source, []).append(lane)
        self._curious.append(lane)
        self.account.start(lane.name)
        return lane

    def _put(self, row: Row) -> None:
        self.rows += 1
        if len(self._first) < EXAMPLES:
            self._first.append(row.where)
        for code in row.texts:
            for lane in self._from.get(code, ()):
                if lane.direction.target in row.texts:
                    self._clean(lane, row)
        for lane in self._curious:
            if lane.met + len(lane.missing) < self.rows:
                lane.missing.append(row.where)
        self._curious = [lane for lane in self._curious if len(lane.missing) < EXAMPLES]

    def _clean(self, lane: _Lane, row: Row) -> None:
        lane.met += 1
        source, target = lane.direction.source, lane.direction.target
        found = judge(row, source, target, self.rules, self.held_out)
        if isinstance(found, str):
            self.account.drop(lane.name, found, row.where)
            return
        text = f"{found.source}\t{found.target}"
        lane.out.write(f"{text}\t{row.where}\n")
        if self.rules.drop_duplicates:
            self._repeats.add(text.encode("utf-8"), lane.number, lane.count)
        lane.count += 1

    def _places(self, lane: _Lane, flags: np.ndarray) -> list[str]:
        """Where the first few repeated pairs came from."""
        with lane.file.open(encoding="utf-8", newline="\n") as lines:
            repeated = (line for line, flag in zip(lines, flags, strict=False) if flag)
            return [line[:-1].split("\t", 2)[2] for line in islice(repeated, EXAMPLES)]


def directions(wanted: Wanted, languages: Sequence[str]) -> list[Direction]:
    """The directions of ``languages`` that a recipe asks for: into English first, by code."""
    if not isinstance(wanted, str):
        return [Direction.parse(name) for name in wanted]
    others = sorted({*languages} - {ENGLISH})
    into = [Direction(code, ENGLISH) for code in others]
    out_of = [Direction(ENGLISH, code) for code in others]
    return {"to_en": into, "from_en": out_of, "both": into + out_of}[wanted]
