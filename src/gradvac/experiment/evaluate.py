"""Translate a test set in every direction with one call, and score it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from gradvac.errors import RunError
from gradvac.experiment.build import device_of
from gradvac.experiment.model_folder import FoundModel, find_model
from gradvac.experiment.prepare import run_recipe, task_infos, test_rows
from gradvac.translation.cleaning import Account, CleaningRules
from gradvac.translation.corpus import Bitext, bitext
from gradvac.translation.languages import Direction
from gradvac.translation.readers import Row
from gradvac.translation.scoring import DirectionScores, score_directions
from gradvac.translation.translate import Translator


def evaluate_run(
    folder: Path,
    *,
    checkpoint: str = "best",
    beam: int | None = None,
    length_penalty: float | None = None,
    sentences: int | None = None,
    say: Callable[[str], None] = print,
) -> DirectionScores:
    """Score a run on its own test set; writes ``scores.json`` and ``translations.jsonl``.

    ``sentences`` limits each direction to its first so many. Raises RunError when the run has no
    test set or no checkpoint.
    """
    recipe = run_recipe(folder)
    infos = task_infos(folder)
    rows = test_rows(folder)
    if not rows:
        raise RunError(f"{folder}: the recipe names no data.test to score on")
    return evaluate_model(
        find_model(folder, checkpoint),
        test_bitexts(rows, list(infos)),
        levels={name: info.level for name, info in infos.items()},
        beam=beam or recipe.search.beam,
        length_penalty=recipe.search.length_penalty if length_penalty is None else length_penalty,
        batch_tokens=recipe.search.batch_tokens,
        device=device_of(recipe.device),
        sentences=sentences or recipe.search.sentences,
        out=folder,
        name=checkpoint,
        say=say,
    )


def score_table(title: str, scores: DirectionScores) -> Table:
    """Scores of every direction and average, for the terminal."""
    table = Table(title=title, title_justify="left")
    for name in ("direction", "level", "family", "n", "BLEU", "chrF++"):
        table.add_column(name, justify="right" if name in ("n", "BLEU", "chrF++") else "left")
    for row in table_rows(scores):
        numbers = [str(row["count"]), f"{row['bleu']:.1f}", f"{row['chrf']:.1f}"]
        table.add_row(row["name"], row["level"], row["family"], *numbers)
    for a in scores.averages():
        if a.kind == "family" and a.side != "all":
            numbers = [str(a.directions), f"{a.bleu:.1f}", f"{a.chrf:.1f}"]
            table.add_row(a.side, "", a.subset, *numbers)
    return table


def table_rows(scores: DirectionScores) -> list[dict[str, Any]]:
    """Directions and averages; with English on one side only, that side is all there is."""
    rows = scores.rows()
    sides = {row["name"] for row in rows if row["kind"] == "side"}
    return [row for row in rows if row["name"] != "all" or len(sides) > 2]


def test_bitexts(rows: Sequence[Row], tasks: Sequence[str]) -> list[Bitext]:
    """The test pairs of each direction; directions without any are left out."""
    pairs = [bitext(rows, Direction.parse(t), CleaningRules(), Account()) for t in tasks]
    return [b for b in pairs if len(b)]


def evaluate_model(
    found: FoundModel,
    tests: Sequence[Bitext],
    *,
    levels: dict[str, str],
    beam: int,
    length_penalty: float,
    batch_tokens: int,
    device: torch.device,
    sentences: int | None,
    out: Path,
    name: str,
    say: Callable[[str], None],
) -> DirectionScores:
    """Translate and score ``tests``; all directions share the search's batches."""
    tests = [Bitext(b.direction, b.sources[:sentences], b.targets[:sentences]) for b in tests]
    translator = Translator(
        found.load(device),
        found.vocabulary,
        beam=beam,
        length_penalty=length_penalty,
        batch_tokens=batch_tokens,
    )
    sources = [s for b in tests for s in b.sources]
    targets = [b.direction.target for b in tests for _ in b.sources]
    say(f"translating {len(sources):,} sentences in {len(tests)} directions, beam {beam}")
    hypotheses = iter(translator.translate(sources, targets))
    translated = {b.direction.name: [next(hypotheses) for _ in b.sources] for b in tests}
    scores = score_directions(
        translated,
        {b.direction.name: b.targets for b in tests},
        levels=levels,
    )
    lines = [
        {"direction": b.direction.name, "source": s, "reference": r, "hypothesis": h}
        for b in tests
        for s, r, h in zip(b.sources, b.targets, translated[b.direction.name], strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "translations.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    tree = {"checkpoint": name, **scores.to_dict(), "averages": _averages(scores)}
    text = json.dumps(tree, indent=1, ensure_ascii=False)
    (out / "scores.json").write_text(text, encoding="utf-8")
    return scores


_SIDES = {"all": "", "any-en": "Any->En", "en-any": "En->Any", "other": "X->Y"}


def _averages(scores: DirectionScores) -> dict[str, dict[str, float]]:
    """Averages by name: ``Any->En``, ``Any->En high``, ``high`` (both sides), a family, ``all``."""
    named = {}
    for a in scores.averages():
        parts = [_SIDES[a.side], "" if a.kind == "all" else a.subset]
        named[" ".join(p for p in parts if p) or "all"] = {"bleu": a.bleu, "chrf": a.chrf}
    return named
