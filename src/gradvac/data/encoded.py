"""Encoded sentences, in memory or on disk, for batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PAD, UNK, BOS, EOS = 0, 1, 2, 3
"""Ids of padding, the unknown symbol, and the first and last symbol of a sentence."""


class Side(ABC):
    """The encoded sentences of one side of a direction."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of all sentences, with end symbols (and tags); known without reading them."""

    @abstractmethod
    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of the sentences ``rows`` [N]; returns [N], int64."""

    @abstractmethod
    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The ids of the sentences ``rows``, concatenated."""

    def __getitem__(self, i: int) -> np.ndarray:
        return self.gather(np.array([i]))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every sentence [N]; for small sets, because it reads the whole index."""
        return self.lengths_of(np.arange(len(self)))


def spans(ids: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``ids[first[k] : first[k] + lengths[k]]`` for every k, concatenated."""
    before = np.cumsum(lengths) - lengths
    return ids[np.repeat(first - before, lengths) + np.arange(int(lengths.sum()))]


@dataclass(frozen=True)
class Sentences(Side):
    """Concatenated sentences.

    ``ids`` [total tokens]; sentence ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """Tokens of all sentences."""
        return int(self.offsets[-1] - self.offsets[0])

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of some sentences."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The ids of some sentences."""
        return spans(self.ids, self.offsets[rows], self.lengths_of(rows))

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]]) -> Sentences:
        """Pack lists of ids."""
        lengths = np.fromiter((len(s) for s in sentences), np.int64, len(sentences))
        ids = np.fromiter((i for s in sentences for i in s), np.int32, int(lengths.sum()))
        return cls(ids, np.concatenate([[0], np.cumsum(lengths)]))


@dataclass(frozen=True)
class EncodedTask:
    """The encoded pairs of one direction: ``source[i]`` translates to ``target[i]``."""

    source: Side
    target: Side

    def __len__(self) -> int:
        return len(self.source)
