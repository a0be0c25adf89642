"""Clean training pairs of every direction, on disk: one pass over the sources, limited memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from gradvac.data.repeats import Repeats
from gradvac.text.account import ABSENT, EXAMPLES, Account
from gradvac.text.blocks import Block, Row
from gradvac.text.cleaning import REASONS, BlockJudge, CleaningRules, judge
from gradvac.text.languages import ENGLISH, Direction, Wanted, directions

_NONE = -1


class _Grown:
    """A file that is open only while data is appended: hundreds of directions have three each."""

    def __init__(self, path: Path) -> None:
        self.path, self._waiting = path, bytearray()
        path.write_bytes(b"")

    def write(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) > 2**16:
            self.flush()

    def flush(self) -> None:
        with self.path.open("ab") as file:
            file.write(self._waiting)
        self._waiting.clear()


class _Lane:
    """The pairs of one direction on disk, with their places.

    A line of ``pairs`` is a pair, in the order of the languages' codes. ``numbers`` has 8 bytes per
    pair: the line number in the file that the latest line of ``places`` names; `_NONE` if that
    line is the whole place.
    """

    def __init__(self, direction: Direction, number: int, folder: Path) -> None:
        self.direction, self.number = direction, number
        self.name = f"train {direction.name}"
        self.swapped = direction.source > direction.target
        self.met, self.count = 0, 0  # rows in both languages, pairs kept of them
        self.missing: list[str] = []  # places of the first few rows that are not in both
        name = f"{direction.name}."
        self.pairs, self.numbers, self.places = (
            _Grown(folder / f"{name}{kind}") for kind in ("pairs", "numbers", "places")
        )
        self.flags = np.zeros(0, bool)

    def keep(self, lines: list[bytes], place: str, numbers: np.ndarray) -> None:
        """Add pairs, from lines of ``place``, or from ``place`` itself if numbers are `_NONE`."""
        self.places.write(f"{self.count}\t{place}\n".encode("utf-8", "surrogateescape"))
        self.numbers.write(numbers.astype("<i8").tobytes())
        self.pairs.write(b"\n".join([*lines, b""]))
        self.count += len(lines)

    def close(self) -> None:
        """Write what is still in memory."""
        for file in (self.pairs, self.numbers, self.places):
            file.flush()

    def where(self, wanted: Sequence[int]) -> list[str]:
        """The `file:line` of some pairs, whose numbers ascend."""
        numbers = np.memmap(self.numbers.path, "<i8", "r") if wanted else np.zeros(0, int)
        found: list[str] = []
        with self.places.path.open("rb") as lines:
            place, rest = "", (line[:-1].decode("utf-8", "surrogateescape") for line in lines)
            after, _, next_place = next(rest, "").partition("\t")
            for pair in wanted:
                while after and int(after) <= pair:
                    place = next_place
                    after, _, next_place = next(rest, "").partition("\t")
                number = int(numbers[pair])
                found.append(place if number == _NONE else f"{place}{number}")
        return found


class Spool:
    """The training pairs left by cleaning, by direction; ``folder`` may be removed after use.

    If directions are not all named (`wanted` is a word, no `languages`), they follow from the
    languages in the rows. ``account`` counts every row once per direction, as `clean` does.
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
        self._curious: list[_Lane] = []  # those with few missing rows so far
        self._repeats = Repeats(folder / "repeats")
        self._follow = isinstance(wanted, str) and languages is None
        if not self._follow:
            for direction in directions(wanted, languages or ()):
                self._open(direction)

    def fill(self, rows: Iterable[Row | Block]) -> None:
        """Clean all rows, keep the clean pairs, and complete the account."""
        try:
            for item in rows:
                if isinstance(item, Block):
                    self._put_block(item)
                    continue
                if not item.texts.keys() <= self.found:
                    self._meet(item.texts.keys() - self.found)
                self._put(item)
        finally:
            for lane in self._lanes.values():
                lane.close()
        lanes = list(self._lanes.values())
        flags = self._repeats.flags([lane.count for lane in lanes])
        for lane, own in zip(lanes, flags, strict=True):
            lane.flags = own
            self._drop(lane, ABSENT, lane.missing, self.rows - lane.met)
            repeated = int(own.sum())
            self.account.keep(lane.name, lane.count - repeated)
            self._drop(lane, "duplicate", lane.where(_first(own)), repeated)

    @property
    def names(self) -> list[str]:
        """Names of all directions."""
        return list(self._lanes)

    def pairs(self, direction: Direction) -> int:
        """Number of clean pairs of a direction."""
        lane = self._lanes[direction.name]
        return lane.count - int(lane.flags.sum())

    def texts(
        self, direction: Direction, size: int, most: int
    ) -> Iterator[tuple[list[str], list[str]]]:
        """The first ``most`` clean pairs of a direction, about ``size`` at a time."""
        lane = self._lanes[direction.name]
        with lane.pairs.path.open(encoding="utf-8", newline="\n") as lines:
            unique = (line for line, flag in zip(lines, lane.flags, strict=True) if not flag)
            unique = islice(unique, most)
            while chunk := list(islice(unique, size)):
                cells = [line[:-1].split("\t") for line in chunk]
                one, other = [first for first, _ in cells], [second for _, second in cells]
                yield (other, one) if lane.swapped else (one, other)

    def _meet(self, languages: Iterable[str]) -> None:
        new = set(languages)
        self.found |= new
        if self._follow:
            for direction in directions(self.wanted, sorted(new | {ENGLISH})):
                if direction.name not in self._lanes:
                    # The rows so far had no text in one of the two languages.
                    self._open(direction).missing.extend(self._first)

    def _drop(self, lane: _Lane, reason: str, first: Sequence[str], total: int) -> None:
        """Count ``total`` rows; ``first`` has the places of the first few."""
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
        cells = (found.target, found.source) if lane.swapped else (found.source, found.target)
        self._keep(lane, ["\t".join(cells).encode()], row.where, np.array([_NONE]))

    def _keep(self, lane: _Lane, lines: list[bytes], place: str, numbers: np.ndarray) -> None:
        if self.rules.drop_duplicates:
            self._repeats.add(lines, lane.number, lane.count)
        lane.keep(lines, place, numbers)

    def _put_block(self, block: Block) -> None:
        """Do for a block what `_put` does for each row, one direction after the other."""
        present = block.characters > 0
        columns = {c: n for n, c in enumerate(block.languages) if present[:, n].any()}
        if not columns.keys() <= self.found:
            self._meet(columns.keys() - self.found)
        self.rows += len(block)
        self._first += map(block.where, range(min(EXAMPLES - len(self._first), len(block))))
        judge = BlockJudge(block, self.rules, self.held_out)
        for lane in self._lanes.values():
            source = columns.get(lane.direction.source)
            target = columns.get(lane.direction.target)
            both = np.zeros(len(block), bool)
            if source is not None and target is not None:
                both = present[:, source] & present[:, target]
                self._clean_block(lane, judge, source, target, np.flatnonzero(both))
            missing = np.flatnonzero(~both)[: EXAMPLES - len(lane.missing)]
            lane.missing += map(block.where, missing.tolist())
        self._curious = [lane for lane in self._curious if len(lane.missing) < EXAMPLES]

    def _clean_block(
        self, lane: _Lane, judge: BlockJudge, source: int, target: int, rows: np.ndarray
    ) -> None:
        """Clean the ``rows`` of a block that have both sides of a direction."""
        lane.met += len(rows)
        block, reasons = judge.block, judge(source, target, rows)
        for row in np.flatnonzero(reasons).tolist():
            self.account.drop(lane.name, REASONS[reasons[row]], block.where(rows[row]))
        rows = rows[reasons == 0]
        columns = [target, source] if lane.swapped else [source, target]
        if columns == [0, 1] and len(block.languages) == 2:
            every = len(rows) == len(block)
            lines = block.lines if every else [block.lines[row] for row in rows.tolist()]
        else:
            one, other = columns
            cells = [block.cells[row] for row in rows.tolist()]
            lines = [f"{own[one]}\t{own[other]}".encode() for own in cells]
        if lines:
            self._keep(lane, lines, block.place, block.numbers[rows])


def _first(flags: np.ndarray) -> list[int]:
    """Indices of the first few true ``flags``; reads no more than needed."""
    found: list[int] = []
    for start in range(0, len(flags), 2**20):
        found += (start + np.flatnonzero(flags[start : start + 2**20])).tolist()
        if len(found) >= EXAMPLES:
            break
    return found[:EXAMPLES]
