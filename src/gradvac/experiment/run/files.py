"""File names in a run folder; for contents see :mod:`gradvac.experiment.run.contents`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradvac.writing import replacing

VOCABULARY = "vocabulary.model"
MODEL = "model.json"
METRICS, SPEED, DONE = "metrics.jsonl", "speed.jsonl", "done.json"
LOGGED = "loggers.json"  # by logger, the id of this run there
ENDED = "ended.json"  # the earlier end of a resumed run, until its next checkpoint
SCORES, TRANSLATIONS, TAGS = "scores.json", "translations.jsonl", "tags.jsonl"


def write_scored(folder: Path, name: str, lines: Iterable[Any], scores: Any) -> None:
    """Write ``name``, a line of JSON for each of ``lines``, and their ``scores.json``.

    Scores always match the lines: if the process is killed in between, there are no scores.
    """
    with replacing(folder / SCORES) as new:
        new.write_text(json.dumps(scores, indent=1, ensure_ascii=False), encoding="utf-8")
        with replacing(folder / name) as said:
            with said.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / SCORES).unlink(missing_ok=True)
