"""From files to encoded directions: read, clean, split by direction, encode, keep on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gradvac.errors import RecipeError, RunError
from gradvac.translation.cleaning import Account, CleaningRules, clean, text_key
from gradvac.translation.encoded import EncodedTask, Sentences
from gradvac.translation.languages import Direction
from gradvac.translation.readers import Row, Source, read_rows
from gradvac.translation.vocabulary import Vocabulary

ENGLISH = "en"


@dataclass(frozen=True)
class Bitext:
    """Sentence pairs of one direction: ``sources[i]`` translates to ``targets[i]``."""

    direction: Direction
    sources: list[str]
    targets: list[str]

    def __len__(self) -> int:
        return len(self.sources)


def read_corpus(sources: Sequence[Source], account: Account) -> list[Row]:
    """All rows of several sources, problems counted in ``account``."""
    return [row for source in sources for row in read_rows(source, account)]


def directions_of(
    rows: Iterable[Row],
    wanted: Literal["to_en", "from_en", "both"] | Sequence[str],
    languages: Sequence[str] | None = None,
) -> list[Direction]:
    """The directions a recipe asks for, in a fixed order: into English first, by language code.

    ``wanted`` "both" is every language of ``rows`` (or ``languages``) to and from English.
    Raises RecipeError when a language has no text at all.
    """
    found = {language for row in rows for language in row.texts}
    if not isinstance(wanted, str):
        directions = [Direction.parse(name) for name in wanted]
        asked = {code for d in directions for code in (d.source, d.target)}
    else:
        asked = set(languages or found) | {ENGLISH}
        others = sorted(asked - {ENGLISH})
        into = [Direction(code, ENGLISH) for code in others]
        out_of = [Direction(ENGLISH, code) for code in others]
        directions = {"to_en": into, "from_en": out_of, "both": into + out_of}[wanted]
    missing = sorted(asked - found)
    if missing or not directions:
        have = ", ".join(sorted(found)) or "none"
        raise RecipeError(
            f"data: no text in {', '.join(missing) or 'two languages'}; found: {have}"
        )
    return directions


def bitext(
    rows: Iterable[Row],
    direction: Direction,
    rules: CleaningRules,
    account: Account,
    exclude: frozenset[str] = frozenset(),
    part: str = "train",
) -> Bitext:
    """The clean pairs of one direction; pairs with a side in ``exclude`` are dropped.

    ``account`` counts them under ``part`` and the direction's name.
    """
    source, target = direction.source, direction.target
    name = f"{part} {direction.name}"
    pairs = list(clean(rows, source, target, rules, account, exclude=exclude, corpus=name))
    return Bitext(direction, [p.source for p in pairs], [p.target for p in pairs])


def held_out_keys(rows: Iterable[Row]) -> frozenset[str]:
    """Letters-only keys of every string of an evaluation set, whatever its language."""
    return frozenset(text_key(text) for row in rows for text in row.texts.values())


def encode(text: Bitext, vocabulary: Vocabulary, max_tokens: int) -> tuple[EncodedTask, np.ndarray]:
    """Encode a bitext. Pairs with a side over ``max_tokens`` are left out.

    Also returns which pairs were kept, as a boolean array over the pairs of ``text``.
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


def save_encoded(folder: Path, corpus: Mapping[str, EncodedTask], fingerprint: str) -> None:
    """Write encoded directions as ``.npy`` files that are memory-mapped on load."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in corpus.items():
        for side in ("source", "target"):
            sentences = getattr(task, side)
            np.save(folder / f"{name}.{side}.ids.npy", sentences.ids)
            np.save(folder / f"{name}.{side}.offsets.npy", sentences.offsets)
    index = {"tasks": list(corpus), "vocabulary": fingerprint}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def load_encoded(folder: Path, fingerprint: str) -> dict[str, EncodedTask]:
    """Open what `save_encoded` wrote; RunError when it was encoded with another vocabulary."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["vocabulary"] != fingerprint:
            other = index["vocabulary"]
            raise RunError(f"{folder}: encoded with vocabulary {other}, the run has {fingerprint}")
        return {name: EncodedTask(*_open(folder, name)) for name in index["tasks"]}
    except (OSError, ValueError, KeyError) as e:
        raise RunError(f"{folder}: cannot read the encoded corpus: {e}") from e


def _open(folder: Path, name: str) -> tuple[Sentences, Sentences]:
    part = lambda side, what: np.load(folder / f"{name}.{side}.{what}.npy", mmap_mode="r")
    source, target = (
        Sentences(part(side, "ids"), part(side, "offsets")) for side in ("source", "target")
    )
    return source, target
