"""Small texts in memory: read, split by direction, encode. Training text uses a `Spool`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gradvac.data.encoded import EncodedTask, Sentences
from gradvac.text.cleaning import Account, text_key
from gradvac.text.languages import Direction
from gradvac.text.readers import Row, read_rows
from gradvac.text.sources import Source
from gradvac.translation.vocabulary import Vocabulary


@dataclass(frozen=True)
class Bitext:
    """Sentence pairs of one direction: ``sources[i]`` translates to ``targets[i]``."""

    direction: Direction
    sources: list[str]
    targets: list[str]

    def __len__(self) -> int:
        return len(self.sources)

    def first(self, most: int | None) -> Bitext:
        """The first ``most`` pairs, or all."""
        return Bitext(self.direction, self.sources[:most], self.targets[:most])


def read_corpus(sources: Sequence[Source], account: Account) -> list[Row]:
    """All rows of several sources, problems counted in ``account``."""
    return [row for source in sources for row in read_rows(source, account)]


def as_given(rows: Iterable[Row], direction: Direction) -> tuple[Bitext, list[str]]:
    """The pairs of one direction, unchanged, and the places of rows that have no pair.

    Evaluation text is not cleaned: a copy, a repetition or a long sentence must be translated
    as it is.
    """
    source, target = direction.source, direction.target
    sources, targets, without = list[str](), list[str](), list[str]()
    for row in rows:
        if row.texts.get(source) and row.texts.get(target):
            sources.append(row.texts[source])
            targets.append(row.texts[target])
        else:
            without.append(row.where)
    return Bitext(direction, sources, targets), without


def held_out_keys(rows: Iterable[Row]) -> frozenset[str]:
    """Letters-only keys of every string of an evaluation set, in any language."""
    return frozenset(text_key(text) for row in rows for text in row.texts.values())


def encode(text: Bitext, vocabulary: Vocabulary, max_tokens: int) -> tuple[EncodedTask, np.ndarray]:
    """Encode a bitext. Pairs with a side over ``max_tokens`` are left out.

    Also returns a boolean array over the pairs of ``text``: which were kept.
    """
    sources = vocabulary.encode_sources(text.sources, text.direction.target)
    targets = vocabulary.encode_targets(text.targets)
    kept = np.array(
        [max(len(s), len(t)) <= max_tokens for s, t in zip(sources, targets, strict=True)], bool
    )
    return EncodedTask(
        Sentences.of([s for s, k in zip(sources, kept, strict=True) if k]),
        Sentences.of([t for t, k in zip(targets, kept, strict=True) if k]),
    ), kept
