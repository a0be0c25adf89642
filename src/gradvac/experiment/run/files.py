"""File names in a run folder; for contents see :mod:`gradvac.experiment.run.contents`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gradvac.writing import replacing

VOCABULARY = "vocabulary.model"
MODEL = "model.json"
METRICS, SPEED, DONE = "metrics.jsonl", "speed.jsonl", "done.json"
LOGGED = "loggers.json"  # by logger, the id of this run there
ENDED = "ended.json"  # the earlier end of a resumed run, until its next checkpoint
SCORES, TRANSLATIONS, TAGS = "scores.json", "translations.jsonl", "tags.jsonl"
TESTS = "tests"  # folders of the scores of further test sets


def scored_folder(run: Path, test: str, sets: Sequence[str]) -> Path:
    """The folder of the scores of a test set: that of the run for the first of its ``sets``."""
    return run if test in ("", *sets[:1]) else run / TESTS / test


def write_scored(
    folder: Path, name: str, lines: Iterable[Any], scores: Any, scores_name: str = SCORES
) -> None:
    """Write ``name``, a line of JSON for each of ``lines``, and their ``scores_name``.

    Scores always match the lines: if the process is killed in between, there are no scores.
    """
    with replacing(folder / scores_name) as new:
        new.write_text(json.dumps(scores, indent=1, ensure_ascii=False), encoding="utf-8")
        with replacing(folder / name) as said:
            with said.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / scores_name).unlink(missing_ok=True)
