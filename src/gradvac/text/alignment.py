"""Checks while rows are read that the columns of a file still belong together.

If one of two files loses or gains a line, all later lines are shifted; when files are joined,
columns can be swapped. Every row is still a pair, so nothing else notices either error. Windows of
rows are checked in two stages. First by the lengths of their texts alone, which is very cheap: the
lengths of translations correlate, and where they do, the rows belong together. Only the other
windows are compared at every small shift, by lengths, numbers, final punctuation and shared words;
a shift that fits far better than none ends the reading. Swapped columns are found by byte pairs:
how often each column has them is learned from the first rows.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradvac.errors import CorpusError
from gradvac.text.blocks import Block, Row, normalise
from gradvac.text.languages import pivot
from gradvac.text.sides import LEARNED, Sides
from gradvac.text.textfiles import Fault

# All chosen here. In windows of 128 rows, lengths of unrelated texts correlate by 0.09, those of
# translations by 0.5 to 0.95.
WINDOW = 128
_KEPT = 6 * WINDOW  # earlier rows that are kept for comparison
_NEAR, _FAR = 4, 64  # largest shift by lengths alone, and by all features
_SURE = 0.4
_MARGIN = 0.15
# Standard errors by which a shift must be better than none: 5 happen by chance once in three
# million times, and in rows that belong together no shift is by far the best.
_ERRORS = 5.0
_CLIP = 4.0
_ONLY = 0.7  # share of its gain that another shift may have
_GAP = 8  # rows between an empty line and the estimated start of a shift
_FEWEST = 12  # rows in which a shift must be better

_FIX = "fix the files, or skip the check with check: false (in an import, --no-check)"
_WORD = re.compile(r"\w{3,}")
_NUMBER = re.compile(r"\d{1,18}")


_Place = tuple[str, int | None]  # a file and a line number, or both in one string


def _told(place: _Place) -> str:
    return place[0] if place[1] is None else f"{place[0]}{place[1]}"


def watched(items: Iterable[Row | Fault | Block]) -> Iterator[Row | Fault | Block]:
    """The items of a source, unchanged.

    Raises:
        CorpusError: the columns do not belong together; names the first wrong line.
    """
    watch = _Watch()
    for item in items:
        if isinstance(item, Block):
            watch.flush()
            watch.block(item)
        elif isinstance(item, Row):
            watch.row(item)
        elif item.reason == "fewer than two texts":
            watch.gap(item.where)
        yield item
    watch.flush()
    for pair in watch.pairs.values():
        pair.end()


class _Watch:
    """Gives the rows of a source to one `_Pair` for its first column and each other column."""

    def __init__(self) -> None:
        self.pairs = dict[str, _Pair]()
        self._rows: list[Row] = []
        self._first = ""

    def row(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= 4 * WINDOW:
            self.flush()

    def gap(self, where: str) -> None:
        self.flush()
        for pair in self.pairs.values():
            pair.gap(where)

    def flush(self) -> None:
        """Check the rows that came one by one."""
        rows, self._rows = self._rows, []
        codes = dict.fromkeys(code for row in rows for code in row.texts)
        self._first = self._first or (pivot(codes) if codes else "")
        for code in sorted(codes):
            own = [row for row in rows if self._first in row.texts and code in row.texts]
            if code != self._first and own:
                cells = [[normalise(row.texts[c]) for c in (self._first, code)] for row in own]
                lines = ["\t".join(pair).encode("utf-8", "replace") for pair in cells]
                lengths = np.array([[len(text) for text in pair] for pair in cells])
                self._pair(code).add(lines, lengths, [(row.where, None) for row in own])

    def block(self, block: Block) -> None:
        """Check the rows of a block."""
        codes = block.languages
        self._first = self._first or pivot(codes)
        if self._first not in codes:
            return
        one = codes.index(self._first)
        for other, code in enumerate(codes):
            if other == one:
                continue
            lengths = block.characters[:, [one, other]]
            both = np.flatnonzero((lengths[:, 0] > 0) & (lengths[:, 1] > 0))
            if len(codes) == 2 and one == 0 and len(both) == len(block):
                lines = block.lines
            else:
                cells = [block.cells[row] for row in both.tolist()]
                lines = [f"{own[one]}\t{own[other]}".encode() for own in cells]
            places = _Places(block.place, block.numbers[both])
            gaps = [f for f in block.faults if f[1].reason == "fewer than two texts"]
            pair = self._pair(code)
            for before, fault in gaps:
                pair.gap(fault.where, int(np.searchsorted(both, before)))
            pair.add(lines, lengths[both], places)

    def _pair(self, code: str) -> _Pair:
        if code not in self.pairs:
            self.pairs[code] = _Pair(self._first, code)
        return self.pairs[code]


@dataclass(frozen=True)
class _Places:
    """Places of one file."""

    place: str
    numbers: np.ndarray

    def __getitem__(self, rows: slice) -> list[_Place]:
        return [(self.place, number) for number in self.numbers[rows].tolist()]


@dataclass
class _Pair:
    """Two columns that are checked."""

    one: str
    other: str
    seen: int = 0  # rows before those that are added next
    lines: list[bytes] = field(default_factory=list)  # the last rows seen
    lengths: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    places: list[_Place] = field(default_factory=list)
    gaps: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=64))
    sure: int = 0  # rows up to this one belong together, by lengths
    sides: Sides = field(default_factory=lambda: Sides())

    def gap(self, where: str, after: int = 0) -> None:
        """Note a row that has only one text, `after` rows after those seen."""
        self.gaps.append((self.seen + after, where))

    def add(self, lines: list[bytes], lengths: np.ndarray, places: list[_Place] | _Places) -> None:
        """Check more rows, of `lengths` [n, 2] in characters."""
        before = len(self.lines)
        wrong = self.sides.first_swapped([*self.lines[-WINDOW:], *lines])
        if wrong is not None:
            row = wrong - min(before, WINDOW)
            self._swapped(places[row : row + 1][0] if row >= 0 else self.places[row])
        self._look(np.concatenate([self.lengths, lengths]), before, lines, places)
        keep = range(max(len(lines) - _KEPT, 0), len(lines))
        lost = max(before + len(keep) - _KEPT, 0)
        self.lines = self.lines[lost:] + lines[keep.start :]
        self.places = self.places[lost:] + places[keep.start :]
        self.lengths = np.concatenate([self.lengths[lost:], lengths[keep.start :]])
        self.seen += len(lines)

    def end(self) -> None:
        """Check the last rows, which may not have filled half a window."""
        if len(self.lines) >= 2 * _FEWEST:
            rows = slice(-2 * WINDOW, None)
            first = self.seen - len(self.lines[rows])
            self._compare(self.lines[rows], self.lengths[rows], self.places[rows], first)

    def _look(
        self,
        lengths: np.ndarray,
        before: int,
        lines: list[bytes],
        places: list[_Place] | _Places,
    ) -> None:
        """Check windows of the added rows; the first window also has earlier rows."""
        count = -(-(len(lengths) - before) // WINDOW)
        starts = len(lengths) - WINDOW * np.arange(count, 0, -1)
        if len(starts) and starts[0] < 0:
            starts = np.maximum(starts, 0)
        starts = np.unique(starts[starts + WINDOW <= len(lengths)])
        if not len(starts):
            return
        sure = _sure(np.stack([lengths[start : start + WINDOW] for start in starts]))
        gone = self.seen - before  # the number of the first row of `lengths`
        for start, well in zip(starts.tolist(), sure.tolist(), strict=True):
            end = start + WINDOW
            if well:
                self.sure = gone + start + WINDOW // 2
                continue
            begin = max(self.sure - gone - WINDOW // 2, end - _KEPT, 0)
            text = [*self.lines[begin:before], *lines[max(begin - before, 0) : end - before]]
            where = [*self.places[begin:before], *places[max(begin - before, 0) : end - before]]
            self._compare(text, lengths[begin:end], where, gone + begin)

    def _compare(
        self, lines: Sequence[bytes], lengths: np.ndarray, places: Sequence[_Place], first: int
    ) -> None:
        """Raise where a shift fits the end of these rows far better than none."""
        found = _best_shift(lines, lengths)
        if found is None:
            return
        row, shift = found
        if shift == 0:
            self.sure = first + len(lines) - WINDOW // 2
            return
        near = [gap for gap in self.gaps if abs(gap[0] - (first + row)) <= _GAP]
        gap = min(near, key=lambda gap: abs(gap[0] - (first + row)), default=None)
        where = gap[1] if gap else _told(places[row])
        empty = ", where one of the two is empty" if gap else ""
        lines_ = "1 line" if abs(shift) == 1 else f"{abs(shift)} lines"
        way = f"{lines_} {'later' if shift > 0 else 'earlier'}"
        raise CorpusError(
            f"{where}: from about this line on{empty}, {self.one!r} and {self.other!r} do not "
            f"belong together: what translates a line is {way}, by lengths, numbers, punctuation "
            f"and words in common of {len(lines) - row} lines; {_FIX}"
        )

    def _swapped(self, place: _Place) -> None:
        raise CorpusError(
            f"{_told(place)}: from about this line on, {self.one!r} and {self.other!r} are "
            f"swapped: each has the letters of the other's first {LEARNED} lines; {_FIX}"
        )


def _standard(lengths: np.ndarray) -> np.ndarray:
    """Logarithms of lengths [..., n, 2], with mean 0 and deviation 1 in each column; 0 if equal."""
    logs = np.log(lengths.astype(np.float32) + 3)
    logs -= logs.mean(-2, keepdims=True)
    return logs / np.maximum(logs.std(-2, keepdims=True), 1e-3)


def _sure(windows: np.ndarray) -> np.ndarray:
    """For which windows [m, n, 2] lengths alone show that rows belong together [m]."""
    one, other = np.ascontiguousarray(np.moveaxis(_standard(windows), -1, 0))
    n = one.shape[1]
    here = (one * other).mean(1)
    best = np.full(len(one), -1.0)
    for shift in range(1, _NEAR + 1):
        for a, b in ((one, other), (other, one)):
            best = np.maximum(best, (a[:, : n - shift] * b[:, shift:]).mean(1))
    return (here > _SURE) & (here > best + _MARGIN)


def _best_shift(lines: Sequence[bytes], lengths: np.ndarray) -> tuple[int, int] | None:
    """(row, shift): from this row on, texts fit better with those `shift` rows later.

    Shift 0 where every other shift is worse, None where it cannot be decided.
    """
    scores = _scores(lines, lengths)
    n, far = len(lines), scores.shape[1] // 2
    others = np.delete(scores, far, axis=1)
    spread = np.sqrt(2 * max(float(np.nanvar(others)), 1e-6))
    gain = np.nan_to_num((scores - scores[:, [far]]) / spread)
    after = np.cumsum(gain[::-1], axis=0)[::-1]
    errors = after / np.sqrt(np.arange(n, 0, -1))[:, None]
    errors[max(n - _FEWEST, 0) :] = 0
    shift = int(errors.max(0).argmax())
    if errors[:, shift].max() < _ERRORS:
        worse = np.delete(errors[0], far).max() < -_ERRORS
        return (0, 0) if worse else None
    row = int(after[:, shift].argmax())
    # Repeated lengths (a table of numbers) make many shifts good; a lost line makes only one good.
    if np.delete(after[row], shift).max() > _ONLY * after[row, shift]:
        return None
    return row, shift - far


def _scores(lines: Sequence[bytes], lengths: np.ndarray) -> np.ndarray:
    """How well row i fits row i + shift [n, 2 * far + 1]; NaN where there is no such row."""
    parts = (line.decode("utf-8", "replace").partition("\t") for line in lines)
    cells = [(one, other) for one, _, other in parts]
    n, far = len(lines), min(_FAR, len(lines) // 12)
    z = np.clip(_standard(lengths), -2, 2)
    numbers = np.array([[_number_hash(text) for text in pair] for pair in cells])
    ends = np.array([[ord(_end(text)) for text in pair] for pair in cells])
    features = np.full((4, n, 2 * far + 1), np.nan)
    features[3] = _in_common(cells, far)
    for shift in range(-far, far + 1):
        one = slice(max(-shift, 0), n - max(shift, 0))
        other = slice(one.start + shift, one.stop + shift)
        found = features[:, one, shift + far]
        found[0] = -((z[one, 0] - z[other, 1]) ** 2)
        a, b = numbers[one, 0], numbers[other, 1]
        # Equal numbers count for a pair, different ones against it, a number on one side less so.
        found[1] = np.where(a == b, a != 0, np.where((a != 0) & (b != 0), -1, -0.5))
        found[2] = ends[one, 0] == ends[other, 1]
    features[3][np.isnan(features[0])] = np.nan
    others = np.delete(features, far, axis=2)
    mean, deviation = np.nanmean(others, (1, 2)), np.nanstd(others, (1, 2))
    told = deviation > 1e-6
    standard = (features - mean[:, None, None])[told] / deviation[told][:, None, None]
    return np.clip(standard, -_CLIP, _CLIP).sum(0)


def _in_common(cells: Sequence[tuple[str, str]], far: int) -> np.ndarray:
    """Words that row i has in common with row i + shift [n, 2 * far + 1], as a cosine."""
    words = [[{*_WORD.findall(text.casefold())} for text in pair] for pair in cells]
    rows: dict[str, list[int]] = {}
    for j, (_, own) in enumerate(words):
        for word in own:
            rows.setdefault(word, []).append(j)
    found, most = np.zeros((len(cells), 2 * far + 1)), max(len(cells) // 10, 3)
    for i, (own, _) in enumerate(words):
        for word in own & rows.keys():
            where = rows[word]
            if len(where) > most:  # in too many rows to be informative
                continue
            for j in where[bisect_left(where, i - far) : bisect_right(where, i + far)]:
                found[i, j - i + far] += (len(own) * len(words[j][1])) ** -0.5
    return found


def _number_hash(text: str) -> int:
    """A hash that is equal if two texts have the same numbers; 0 if there is none."""
    return hash(frozenset(map(int, _NUMBER.findall(text)[:50]))) if _NUMBER.search(text) else 0


_ALIKE = str.maketrans(".。।?？؟!！:：", "...???!!::")


def _end(text: str) -> str:
    """The last character of a text; "a" if it is a letter or a digit."""
    last = text.rstrip("\"'”»’)】」 ")[-1:].translate(_ALIKE)
    return "a" if not last or last.isalnum() else last
