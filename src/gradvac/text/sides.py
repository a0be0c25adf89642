"""Finds swapped columns by byte pairs: how often each column has them is learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# All chosen here.
LEARNED, _TRIED = 200, 100  # rows to learn from, rows to test on
_SAMPLE = 8  # one row of this many is tested
# Shares of test rows that must be right, and may be wrong; else columns are not checked.
_TOLD, _MISTAKEN = 0.65, 0.03
_SWAPPED = 0.4  # share of swapped rows in a window
_WINDOW = 128  # rows judged together


class Sides:
    """Decides which of two columns a text is from, by its byte pairs, learned from first rows."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []
        self._table = np.zeros(0, np.float32)  # evidence of each byte pair for the first column
        self._telling = False

    def first_swapped(self, lines: list[bytes]) -> int | None:
        """The first line from which on columns are swapped; None if they are not."""
        if not len(self._table):
            self._rows += lines[: LEARNED + _TRIED - len(self._rows)]
            if len(self._rows) < LEARNED + _TRIED:
                return None
            self._learn()
        if not self._telling:
            return None
        wrong = self._sides(lines[::_SAMPLE]) < 0
        size = _WINDOW // _SAMPLE
        starts = range(0, len(wrong) - size // 2, size // 2)
        for start in starts:
            if wrong[start : start + size].mean() > _SWAPPED:
                odd = np.where(self._sides(lines[: (start + size) * _SAMPLE]) < 0, 1.0, -0.25)
                return int(np.cumsum(odd[::-1])[::-1].argmax())
        return None

    def _learn(self) -> None:
        counts = np.ones((2, 2**16))
        for side in (0, 1):
            text = b"\n".join(line.split(b"\t")[side] for line in self._rows[:LEARNED])
            pairs = _byte_pairs(np.frombuffer(text, np.uint8))
            counts[side] += np.bincount(pairs, minlength=2**16)
        logs = np.log(counts / counts.sum(1, keepdims=True))
        table = (logs[0] - logs[1]).astype(np.float32).reshape(256, 256)
        for end in b"\t\n":  # they show which column it is
            table[end] = table[:, end] = 0
        self._table = table.reshape(-1)
        tried = self._sides(self._rows[LEARNED:])
        self._telling = bool((tried > 0).mean() >= _TOLD and (tried < 0).mean() <= _MISTAKEN)
        self._rows = []

    def _sides(self, lines: Sequence[bytes]) -> np.ndarray:
        """1 for rows [n] whose texts resemble their columns, -1 for swapped ones."""
        data = np.frombuffer(b"\n".join([*lines, b""]), np.uint8)
        values = np.append(self._table[_byte_pairs(data)], np.float32(0))
        starts = np.append(0, np.flatnonzero(data <= 10)[:-1] + 1)
        first, second = np.add.reduceat(values, starts).reshape(-1, 2).T
        return np.where((first > 0) & (second < 0), 1, np.where((first < 0) & (second > 0), -1, 0))


def _byte_pairs(data: np.ndarray) -> np.ndarray:
    return data[:-1].astype(np.uint16) << 8 | data[1:]
