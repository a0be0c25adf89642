"""The text for measuring a geometry: the same sentences in every direction.

Different sentences have different gradients in any language, so the paper measures on a multi-way
aligned set (Wang et al. 2021, section 2.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gradvac.errors import RunError
from gradvac.experiment.training.measuring import AlignedSet
from gradvac.experiment.translation.prepare import test_rows
from gradvac.text.cleaning import Account, normalise
from gradvac.text.languages import Direction
from gradvac.text.readers import Row
from gradvac.text.scripts import script
from gradvac.text.sources import Source
from gradvac.text.spellings import Spellings
from gradvac.translation.bitext import Bitext, as_given, encode, read_corpus
from gradvac.translation.vocabulary import Vocabulary


def aligned_set(
    run: Path,
    tasks: Sequence[str],
    vocabulary: Vocabulary,
    *,
    max_tokens: int,
    strings: int | None,
    file: Path | None,
    say: Callable[[str], None],
) -> AlignedSet:
    """The first ``strings`` sentences of ``file`` or the run in all languages of ``tasks``.

    Without a file: the run's validation rows, or else its test rows. If no row has all languages,
    each direction gets its own sentences, and ``say`` prints this. Raises RunError if a direction
    has no sentence.
    """
    rows, origin = _rows(run, file)
    pairs, multiway = aligned_text(rows, [Direction.parse(task) for task in tasks], origin, say)
    short = [encode(b, vocabulary, max_tokens)[1] for b in pairs]
    if multiway:  # a sentence must be short enough in every direction
        short = [np.logical_and.reduce(short)] * len(short)
    texts = [_only(b, np.flatnonzero(kept)) for b, kept in zip(pairs, short, strict=True)]
    texts = [Bitext(b.direction, b.sources[:strings], b.targets[:strings]) for b in texts]
    if empty := [b.direction.name for b in texts if not len(b)]:
        raise RunError(f"{origin}: no sentence to measure on for {', '.join(empty)}")
    encoded = {b.direction.name: encode(b, vocabulary, max_tokens)[0] for b in texts}
    sides = {b.direction.source: b.sources for b in texts}
    sides |= {b.direction.target: b.targets for b in texts}
    digest = hashlib.sha256("\n".join(s for b in texts for s in b.sources + b.targets).encode())
    return AlignedSet(
        encoded,
        origin,
        multiway,
        digest.hexdigest()[:16],
        {code: script(sentences) for code, sentences in sides.items()},
    )


def _rows(run: Path, file: Path | None) -> tuple[list[Row], str]:
    if file is not None:
        return file_rows(file)
    for part, words in (("valid", "validation text"), ("test", "test text")):
        if rows := test_rows(run, part):
            return rows, words
    raise RunError(f"{run}: it keeps neither validation nor test text; give a file with --rows")


def file_rows(file: Path) -> tuple[list[Row], str]:
    """The rows of a file of parallel text, and their origin in words."""
    return read_corpus([Source(path=file)], Account()), str(file)


def aligned_text(
    rows: Sequence[Row], directions: Sequence[Direction], origin: str, say: Callable[[str], None]
) -> tuple[list[Bitext], bool]:
    """The sentences of every direction, and whether all have the same ones.

    They do if some rows have all languages; otherwise ``say`` prints this.
    """
    codes = list(dict.fromkeys(code for d in directions for code in (d.source, d.target)))
    spellings = Spellings(codes, say)
    rows = [spellings.row(row) for row in rows]
    complete = [row for row in rows if all(row.texts.get(code) for code in codes)]
    if not complete:
        say(f"{origin}: no row is in all {len(codes)} languages; every direction has its own")
        return [as_given(rows, d)[0] for d in directions], False
    column = lambda code: [normalise(row.texts[code]) for row in complete]
    return [Bitext(d, column(d.source), column(d.target)) for d in directions], True


def _only(text: Bitext, rows: np.ndarray) -> Bitext:
    sources, targets = ([side[n] for n in rows] for side in (text.sources, text.targets))
    return Bitext(text.direction, sources, targets)
