"""`gradvac translate`: a filter from lines to lines."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO

from gradvac.errors import CorpusError, RunError
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.translation.export import open_with_ctranslate2
from gradvac.experiment.translation.model_folder import (
    check_target,
    find_model,
    trained_directions,
)
from gradvac.translation.translate import Translator

SHIPPED_MODELS = ("shipped:start", "shipped:start-from-en")
ENGINES = ("gradvac", "ctranslate2")
LINES_AT_ONCE = 512  # read ahead, so that similar lengths share a batch


def translate_lines(
    folder: Path | None,
    target: str,
    beam: int,
    length_penalty: float,
    checkpoint: str,
    engine: str,
    source: BinaryIO,
    out: TextIO,
) -> None:
    """Translate every line of ``source`` into ``target``; one output line per input line.

    ``folder`` None is the shipped model that writes it; ``engine`` is "gradvac" or "ctranslate2".
    Raises CorpusError for a line that is not UTF-8, RunError for a language the model was not
    trained to write.
    """
    if engine not in ENGINES:
        raise RunError(f"--engine {engine}; allowed: {', '.join(ENGINES)}")
    opened = folder or shipped_model(target)
    found = find_model(opened, checkpoint)
    check_target(opened, target)
    model = found.load() if engine == "gradvac" else open_with_ctranslate2(folder, found)
    translator = Translator(model, found.vocabulary, beam=beam, length_penalty=length_penalty)
    done = 0
    while raw := list(islice(source, LINES_AT_ONCE)):
        lines = [_text(line, done + k) for k, line in enumerate(raw, 1)]
        for text in translator.translate(lines, [target] * len(lines)):
            print(text, file=out)
        out.flush()
        done += len(raw)


def shipped_model(target: str) -> Path:
    """The folder of the shipped model that translates into ``target``; RunError if none does."""
    written: dict[str, Path] = {}
    for folder in map(resolve, SHIPPED_MODELS):
        written |= {direction.target: folder for direction in trained_directions(folder)}
    if target not in written:
        raise RunError(
            f"--to {target}: the shipped models translate into: {', '.join(sorted(written))}; "
            "name a run or model folder for others"
        )
    return written[target]


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as e:
        raise CorpusError(f"<stdin>:{number}: not UTF-8 at byte {e.start}") from e
