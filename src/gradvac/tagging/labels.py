"""The labels of a task: renamed, checked, and the same for all languages."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradvac.errors import CorpusError, RecipeError
from gradvac.tagging.readers import Tagged

# https://universaldependencies.org/u/pos, in the order of the page's table
UPOS = (
    "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split()
)  # fmt: skip
REST = "*"


def iob2(entities: Sequence[str]) -> list[str]:
    """The labels for kinds of entities: ``O``, then B- and I- of each."""
    return ["O", *(f"{mark}-{kind}" for kind in entities for mark in "BI")]


def renamed(sentences: Sequence[Tagged], names: Mapping[str, str]) -> list[Tagged]:
    """Rename tags; ``B-`` and ``I-`` are kept, ``*`` means all tags that are not in ``names``.

    ``names`` maps kinds of entities, or whole tags, to kinds or tags; one that becomes ``O`` loses
    its B- or I-.
    """

    def rename(tag: str) -> str:
        mark, dash, kind = tag.partition("-")
        if not dash:
            mark, kind = "", tag
        new = names.get(kind, kind if tag == "O" else names.get(REST, kind))
        return new if new == "O" or not dash else f"{mark}-{new}"

    return [replace(s, tags=tuple(map(rename, s.tags))) for s in sentences]


def check_labels(sentences: Sequence[Tagged], labels: Sequence[str]) -> None:
    """Raise CorpusError at the first tag not in ``labels``, with file:line and nearest label."""
    known = set(labels)
    for sentence in sentences:
        for place, tag in enumerate(sentence.tags, 1):
            if tag not in known:
                near = difflib.get_close_matches(tag, labels, 1)
                word = sentence.words[place - 1]
                raise CorpusError(
                    f"{sentence.where}: word {place} of this sentence, {word!r}, has tag {tag!r}; "
                    f"labels: {', '.join(labels)}"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                )


def common_labels(sentences: Mapping[str, Sequence[Tagged]]) -> list[str]:
    """The labels that all languages use, sorted, ``O`` first.

    Raises RecipeError if languages use different labels, with the missing ones of each.
    """
    used = {lang: {t for s in found for t in s.tags} for lang, found in sentences.items()}
    union = sorted(set().union(*used.values()), key=lambda t: (t != "O", t.partition("-")[2], t))
    if all(own == set(union) for own in used.values()):
        return union
    lines = [
        f"  {lang} has no {', '.join(sorted(set(union) - own))}"
        for lang, own in used.items()
        if own != set(union)
    ]
    raise RecipeError(
        "data.labels: the languages use different tags; name the labels all share in data.labels, "
        f"or map tags by data.languages.LANG.map. All: {', '.join(union)}\n" + "\n".join(lines)
    )
