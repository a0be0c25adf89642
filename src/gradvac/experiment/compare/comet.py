"""COMET scores through files, because COMET's pinned dependencies conflict with ours.

`gradvac comet` writes into a folder, for every direction, the sources and references, the
translations of every run, ``manifest.json`` and ``score.sh``, whose commands run where COMET is
installed. They write COMET's own JSON (``comet-score --to_json``) in the folder: for each file of
translations a list of {"mt": ..., "COMET": score}. `gradvac compare --comet FOLDER` reads those.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from gradvac.errors import RunError
from gradvac.experiment.compare.results import collect
from gradvac.experiment.run.contents import CometLine, Manifest, Translation
from gradvac.reading import read_json, read_lines
from gradvac.writing import write_json, write_text

MANIFEST, SCRIPT = "manifest.json", "score.sh"
MODEL = "Unbabel/wmt22-comet-da"


def export_comet(
    folders: Sequence[Path], out: Path, model: str = MODEL, say: Callable[[str], None] = print
) -> None:
    """Write what COMET needs to score runs, or the runs of sweeps.

    RunError if no run is scored, or runs were scored on different sentences of a direction.
    """
    runs = [r for seeds in collect(folders).results.values() for r in seeds.values()]
    texts: dict[str, tuple[list[str], list[str]]] = {}
    files: dict[str, list[str]] = {}
    manifest: list[dict[str, str]] = []
    out.mkdir(parents=True, exist_ok=True)
    for number, folder in enumerate(f for r in runs for f in r.folders):
        for direction, (sources, references, translations) in _translations(folder).items():
            if texts.setdefault(direction, (sources, references)) != (sources, references):
                raise RunError(f"{direction}: the runs were scored on different sentences")
            name = f"{number:03d}.{direction}.hyp"
            _write(out / name, translations)
            files.setdefault(direction, []).append(name)
            manifest.append({"file": name, "run": str(folder.resolve()), "direction": direction})
    if not manifest:
        raise RunError(f"no scored run in {', '.join(map(str, folders))}; try gradvac evaluate")
    lines = ["#!/bin/sh", "# In an environment with COMET: pip install unbabel-comet", "set -e"]
    lines.append('cd "$(dirname "$0")"')
    for direction, (sources, references) in texts.items():
        _write(out / f"{direction}.src", sources)
        _write(out / f"{direction}.ref", references)
        words = ["comet-score", "--model", model, "-s", f"{direction}.src", "-t", *files[direction]]
        words += ["-r", f"{direction}.ref", "--to_json", f"{direction}.json"]
        lines.append(shlex.join(words))
    write_text(out / SCRIPT, "\n".join(lines) + "\n")
    write_json(out / MANIFEST, {"model": model, "files": manifest})
    say(
        f"{len(manifest)} files of {len(texts)} directions; next, where COMET is: sh {out / SCRIPT}"
    )


def read_comet(folder: Path) -> tuple[str, dict[Path, dict[str, float]]]:
    """The model's name, and mean scores by run and direction.

    RunError if a file is missing or broken, or its translations differ from those of the run.
    """
    tree = read_json(folder / MANIFEST, Manifest)
    scores: dict[Path, dict[str, float]] = {}
    made: dict[str, dict[str, list[CometLine]]] = {}
    for entry in tree["files"]:
        direction, run = entry["direction"], Path(entry["run"])
        file = folder / f"{direction}.json"
        if not file.exists():
            raise RunError(f"{folder / MANIFEST}: {direction}: no {file}; score.sh writes it")
        if direction not in made:
            made[direction] = read_json(file, dict[str, list[CometLine]])
        lines = made[direction].get(entry["file"], [])
        now = _translations(run).get(direction, ([], [], []))[2]
        if not lines or [line["mt"] for line in lines] != [" ".join(t.split()) for t in now]:
            raise RunError(f"{file}: {entry['file']}: not the translations of {run} any more")
        scores.setdefault(run, {})[direction] = statistics.fmean(x["COMET"] for x in lines)
    return tree["model"], scores


def _translations(run: Path) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """Sources, references and translations by direction."""
    found: dict[str, tuple[list[str], list[str], list[str]]] = {}
    for line in read_lines(run / "translations.jsonl", Translation):
        three = found.setdefault(line["direction"], ([], [], []))
        for texts, key in zip(three, ("source", "reference", "hypothesis"), strict=True):
            texts.append(line[key])
    return found


def _write(file: Path, texts: Sequence[str]) -> None:
    """Write one text per line; COMET also splits at carriage returns, and strips lines."""
    lines = [" ".join(text.split()) + "\n" for text in texts]
    write_text(file, "".join(lines))
