"""Directions that were never trained, between languages that a model reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from gradvac.errors import RecipeError
from gradvac.text.languages import Direction
from gradvac.text.readers import Row


def zero_shot_directions(
    asked: Literal["all"] | Sequence[str], trained: Iterable[str], rows: Iterable[Row]
) -> list[str]:
    """The names of the zero-shot directions of ``search.zero_shot``.

    "all" is every pair of a source and a target of the ``trained`` directions that is not trained
    itself and has test text in ``rows``. RecipeError for a direction that is trained, has an
    untrained source or target language, or has no test text.
    """
    if not asked:
        return []
    known = dict.fromkeys(trained)
    parsed = [Direction.parse(name) for name in known]
    sources = list(dict.fromkeys(d.source for d in parsed))
    targets = list(dict.fromkeys(d.target for d in parsed))
    rows = list(rows)
    tested = lambda d: has_text(rows, d)
    if asked == "all":
        pairs = [Direction(a, b) for a in sources for b in targets if a != b]
        return [d.name for d in pairs if d.name not in known and tested(d)]
    for d in map(Direction.parse, asked):
        reason = ""
        if d.name in known:
            reason = "is trained"
        elif d.source not in sources:
            reason = f"{d.source!r} is never a source; the model reads {', '.join(sources)}"
        elif d.target not in targets:
            reason = f"{d.target!r} is never a target; the model writes {', '.join(targets)}"
        elif not tested(d):
            reason = "no row of data.test has both languages"
        if reason:
            raise RecipeError(f"search.zero_shot: {d.name}: {reason}")
    return list(dict.fromkeys(asked))


def has_text(rows: Iterable[Row], direction: Direction) -> bool:
    """Whether a row has text in both languages of a direction."""
    return any(r.texts.get(direction.source) and r.texts.get(direction.target) for r in rows)
