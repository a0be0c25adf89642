"""Writing scores without losing better ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradvac.errors import RunError
from gradvac.experiment.run.contents import scores_of
from gradvac.experiment.run.files import SCORES, write_scored

_SETTINGS = ("checkpoint", "beam", "length_penalty", "bleu_tokenize", "first_sentences")


def keep_scores(
    out: Path,
    name: str,
    lines: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Write ``scores.json``, and ``lines`` into the file ``name``, in the folder ``out``.

    If the scores that are there have more sentences of a direction, they stay, and the new ones are
    written beside them, as ``scores-first-N.json`` and ``NAME-first-N.jsonl``. If they were made
    otherwise, ``say`` gets a line that says how.
    """
    out.mkdir(parents=True, exist_ok=True)
    before: Mapping[str, Any] = {}
    with suppress(RunError):  # damaged: nothing to keep
        before = scores_of(out) or {}
    first = scores.get("first_sentences")
    if first and _has_more(before, scores):
        texts, numbers = (f"-first-{first}.".join(n.split(".")) for n in (name, SCORES))
        write_scored(out, texts, lines, scores, numbers)
        say(
            f"{out / SCORES}: kept, it has more sentences; the scores of the first {first:,} of "
            f"each direction are in {out / numbers}"
        )
        return
    if changed := _changed(before, scores):
        say(f"{out / SCORES}: replaced; before: {changed}")
    write_scored(out, name, lines, scores)


def _has_more(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether any direction of both has more sentences in the earlier scores."""
    count = lambda scores, name: scores["directions"][name].get("sentences", 0)
    both = before.get("directions", {}).keys() & now["directions"].keys()
    return any(count(before, name) > count(now, name) for name in both)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings of earlier scores that differ, and directions that they alone have."""
    found = [
        f"{key.replace('_', ' ')} {before[key]}"
        for key in _SETTINGS
        if key in before and before[key] != now.get(key)
    ]
    if gone := [name for name in before.get("directions", {}) if name not in now["directions"]]:
        found.append(f"with {', '.join(gone)}")
    return ", ".join(found)
