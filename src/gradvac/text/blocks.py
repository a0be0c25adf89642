"""Rows of parallel text, one by one or some thousand lines at a time.

Most lines of a corpus need no normalisation. Which these are, and how many characters and words
their columns have, is computed from the bytes of a whole block at once. Every other line (a control
character, a double or unusual space, text that is not in NFC, a wrong number of columns, bytes that
are not UTF-8) is read alone, and becomes a row or a fault. So the checks are the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import cast

import numpy as np
import regex

from gradvac.text.account import EXAMPLES
from gradvac.text.textfiles import Fault

LINES = 4096
"""Lines of a block. Chosen here: about a megabyte, which stays in a processor's cache."""

_TAB, _NEWLINE, _SPACE, _DELETE = 9, 10, 32, 127
# Three-byte characters that `str.split` treats as white space.
_SPACES = np.array([0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000])


@dataclass(frozen=True, slots=True)
class Row:
    """The same sentence in at least two languages, and the `file:line` it came from."""

    texts: dict[str, str]
    where: str


# Invisible characters, first and last of each range; below, their first three bytes.
_HIDDEN_RANGES = """ad-ad 34f-34f 61c-61c 115f-1160 17b4-17b5 180b-180f 200b-200f 202a-202e
2060-206f 2800-2800 3164-3164 fe00-fe0f feff-feff ffa0-ffa0 fff0-fff8 1bca0-1bca3 1d173-1d17a
e0000-e0fff"""
_HIDDEN = np.unique(
    [
        int.from_bytes(chr(n).encode()[:3].ljust(3, b"\0"), "big")
        for ends in _HIDDEN_RANGES.split()
        for n in range(int(ends.split("-")[0], 16), int(ends.split("-")[1], 16) + 1)
    ]
)
_LEADS = np.unique(_HIDDEN >> 16)
_INVISIBLE = regex.compile(r"[\s\p{Z}\p{Cc}\p{Default_Ignorable_Code_Point}\u2800]*")


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: white space, U+200B, fillers, the empty Braille."""
    return _INVISIBLE.fullmatch(text) is not None


def row_of(texts: Mapping[str, str], where: str) -> Row:
    """A row without its invisible texts; Fault when fewer than two remain."""
    kept = {code: text for code, text in texts.items() if not is_blank(text)}
    if len(kept) < 2:
        raise Fault("fewer than two texts" if kept else "empty line", where)
    return Row(kept, where)


def normalise(text: str) -> str:
    """`text` in Unicode NFC, each run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class Block:
    """Rows of consecutive lines of one file, n of them in w languages.

    ``texts[i]`` are the texts of row i as `normalise` returns them, in the order of ``languages``,
    separated by tabs, empty where a text is missing; ``lines`` are the same in UTF-8.
    ``characters``, ``words`` and ``first`` (the first byte) are [n, w]. ``numbers`` [n] are line
    numbers in the file; ``place`` is the part before them in a `file:line`. ``mended`` has the rows
    that were not in normal form, as they are in the file; ``faults`` the lines that are not rows,
    each with the number of rows before it.
    """

    place: str
    languages: tuple[str, ...]
    numbers: np.ndarray
    texts: list[str]
    lines: list[bytes]
    characters: np.ndarray
    words: np.ndarray
    first: np.ndarray
    mended: dict[int, Row]
    faults: list[tuple[int, Fault]]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def cells(self) -> list[list[str]]:
        """The texts of each row by language."""
        return [text.split("\t") for text in self.texts]

    def where(self, row: int) -> str:
        """The `file:line` of a row."""
        return f"{self.place}{self.numbers[row]}"

    def items(self) -> Iterator[Row | Fault]:
        """Rows and faults one by one, in the order of the file."""
        at = 0
        for i, cells in enumerate(self.cells):
            while at < len(self.faults) and self.faults[at][0] <= i:
                yield self.faults[at][1]
                at += 1
            found = self.mended.get(i)
            if found is None:
                texts = {c: t for c, t in zip(self.languages, cells, strict=True) if t}
                found = Row(texts, self.where(i))
            yield found
        for _, fault in self.faults[at:]:
            yield fault


def block_of(
    lines: Sequence[bytes],
    columns: dict[str, int],
    width: int,
    place: str,
    first: int,
    parse: Callable[[int], Row],
) -> Block:
    """The rows of `lines`, which have `width` cells separated by tabs; `first` is their number.

    `columns` gives the cell of each language. `parse` reads line i alone, or raises Fault.
    """
    joined = b"\n".join([*lines, b""])
    texts = _decoded(joined, lines)
    plain, *measures = _measured(joined, width)
    picked = list(columns.values())
    characters, words, first_bytes = (measure[:, picked] for measure in measures)
    plain &= (characters > 0).sum(1) > 1
    if not joined.isascii():
        _find_unnormalised(texts, np.frombuffer(joined, np.uint8), plain)
    every = picked == list(range(width))
    kept, own = np.ones(len(lines), bool), list(lines)
    mended, faults = dict[int, Row](), _Faults()
    for i in range(len(lines)) if not every else np.flatnonzero(~plain).tolist():
        if plain[i]:
            cells = cast(str, texts[i]).split("\t")
            cells = [cells[column] for column in picked]
        elif _is_empty(lines[i], width):
            faults.add_empty(i, f"{place}{first + i}")
            kept[i] = False
            continue
        else:
            try:
                row = parse(i)
            except Fault as fault:
                faults.add(i, fault)
                kept[i] = False
                continue
            mended[i - faults.lines] = row
            cells = [normalise(row.texts.get(code, "")) for code in columns]
            characters[i] = [len(cell) for cell in cells]
            words[i] = [cell.count(" ") + 1 for cell in cells]
            first_bytes[i] = [(cell[:1].encode() or b"\0")[0] for cell in cells]
        texts[i] = text = "\t".join(cells)
        own[i] = text.encode("utf-8")
    if faults.lines:
        texts, own = list(compress(texts, kept)), list(compress(own, kept))
    return Block(
        place, tuple(columns), first + np.flatnonzero(kept), cast(list[str], texts), own,
        characters[kept], words[kept], first_bytes[kept], mended, faults.found,
    )  # fmt: skip


def _is_empty(line: bytes, width: int) -> bool:
    return not line or (not line.strip(b" \t") and line.count(b"\t") == width - 1)


class _Faults:
    """Lines that are not rows, each with the number of rows before it.

    A run of empty lines is one entry, except its first few: an account names as many places.
    """

    def __init__(self) -> None:
        self.found, self.lines = list[tuple[int, Fault]](), 0
        self._empty = (-1, 0)  # the last empty line, length of its run

    def add(self, line: int, fault: Fault) -> None:
        self.found.append((line - self.lines, fault))
        self.lines += 1

    def add_empty(self, line: int, where: str) -> None:
        last, run = self._empty
        self._empty = (line, run + 1 if last == line - 1 else 1)
        if self._empty[1] > EXAMPLES + 1:
            self.found[-1][1].count += 1
            self.lines += 1
        else:
            self.add(line, Fault("empty line", where))


def _decoded(data: bytes, lines: Sequence[bytes]) -> list[str | None]:
    """The text of each line, None where it is not UTF-8."""
    try:
        return [*data.decode("utf-8").split("\n")[:-1]]
    except UnicodeDecodeError:
        return [_decoded_line(line) for line in lines]


def _decoded_line(line: bytes) -> str | None:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _measured(text: bytes, width: int) -> tuple[np.ndarray, ...]:
    """For each line: whether it has `width` tidy cells [n]; their measures [n, width].

    Measures are characters, words and first bytes. Each line of `text` ends in a newline. The
    measures of lines that are not tidy are undefined.
    """
    data = np.frombuffer(text, np.uint8)
    blanks = np.flatnonzero(data <= _SPACE)
    kinds = data[blanks]
    breaks = np.flatnonzero(kinds != _SPACE)  # indices into `blanks`
    ends = blanks[breaks]
    last = np.flatnonzero(kinds[breaks] == _NEWLINE)  # indices into `breaks`
    tidy = np.diff(last, prepend=-1) == width
    for odd in _odd(text, data, blanks, kinds):
        tidy[np.searchsorted(ends[last], odd)] = False
    words = np.diff(breaks, prepend=-1)
    characters = np.diff(ends, prepend=-1) - 1
    first = data[ends - characters]
    if not text.isascii():
        for hidden in _begin_invisible(data, ends - characters):
            tidy[np.searchsorted(ends[last], hidden)] = False
        inside = np.flatnonzero(data.view(np.int8) < -64)  # 0x80 to 0xBF: not the first byte
        characters -= np.diff(np.searchsorted(inside, ends), prepend=0)
    cells = np.maximum(last[:, None] + np.arange(1 - width, 1), 0)
    return tidy, characters[cells], words[cells], first[cells]


def _odd(
    text: bytes, data: np.ndarray, blanks: np.ndarray, kinds: np.ndarray
) -> Iterator[np.ndarray]:
    """Positions of, or at the start of, anything that a tidy line does not have."""
    yield blanks[(kinds < _SPACE) & (kinds != _TAB) & (kinds != _NEWLINE)]
    space = kinds == _SPACE
    touch = np.flatnonzero((np.diff(blanks) == 1) & (space[1:] | space[:-1]))
    yield blanks[touch + space[touch + 1]]  # the space, which belongs to the line
    if len(blanks) and blanks[0] == 0 and space[0]:
        yield blanks[:1]
    if b"\x7f" in text:
        yield np.flatnonzero(data == _DELETE)
    if text.isascii():
        return
    if b"\xc2" in text:  # U+0080 to U+009F are control characters, U+00A0 is a space
        lead = np.flatnonzero(data[:-1] == 0xC2)
        yield lead[data[lead + 1] <= 0xA0]
    lead = np.flatnonzero(data[:-2] - np.uint8(0xE1) < 3)  # 0xE1 to 0xE3, since it wraps around
    code = (data[lead].astype(np.int32) & 15) << 12
    code |= (data[lead + 1].astype(np.int32) & 63) << 6 | data[lead + 2] & 63
    yield lead[np.isin(code, _SPACES)]


def _begin_invisible(data: np.ndarray, starts: np.ndarray) -> Iterator[np.ndarray]:
    """The cell starts at which there is an invisible character."""
    lead = data[starts]
    starts = starts[(lead >= 0xC2) & np.isin(lead, _LEADS)]
    code = np.zeros(len(starts), np.int32)
    for n in range(3):
        code = code << 8 | data[np.minimum(starts + n, len(data) - 1)]
    two = code >> 16 < 0xE0
    code[two] &= 0xFFFF00
    yield starts[np.isin(code, _HIDDEN)]


def doubtful(data: np.ndarray) -> np.ndarray:
    """Which bytes [n] begin a character that may be in a text which is not in NFC.

    Characters up to U+02FF, the Cyrillic of U+0400 to U+047F, and the ideographs of U+4000 to
    U+9FFF are not doubtful.
    """
    marked = data >= 0xCC
    if marked.any():
        marked &= ((data != 0xD0) & (data != 0xD1)) & ((data < 0xE4) | (data > 0xE9))
    return marked


def _find_unnormalised(texts: Sequence[str | None], data: np.ndarray, plain: np.ndarray) -> None:
    """Remove lines from `plain` that are not UTF-8 or not in NFC."""
    line = np.zeros(len(texts), bool)
    if (marked := doubtful(data)).any():
        starts = np.flatnonzero(data == _NEWLINE) + 1
        line = np.logical_or.reduceat(marked, np.concatenate([[0], starts[:-1]]))
    for i in np.flatnonzero(line & plain).tolist():
        text = texts[i]
        plain[i] = text is not None and unicodedata.is_normalized("NFC", text)
    if None in texts:
        plain &= np.array([text is not None for text in texts])
