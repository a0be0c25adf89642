"""`gradvac demo`: continues training the shipped model, jointly and with GradVac, and compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from gradvac.experiment.recipe.load import load_recipe, of_kind
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.report import write_report
from gradvac.experiment.run.contents import scores_of
from gradvac.experiment.run.folder import task_infos
from gradvac.experiment.run.resuming import build_once
from gradvac.experiment.training.build import device_of
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.job import Prepared
from gradvac.experiment.training.prepare import prepare, share_text
from gradvac.experiment.training.train import Trainer
from gradvac.experiment.translation.evaluate import (
    evaluate_model,
    evaluate_run,
    table_rows,
    test_bitexts,
)
from gradvac.experiment.translation.job import TranslationJob
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.prepare import open_prepared, test_rows
from gradvac.experiment.translation.recipe import Recipe
from gradvac.tables import Table
from gradvac.translation.scoring import DirectionScores

METHODS = {"joint": "joint", "gradvac": "GradVac"}
NOTES = (
    "One seed, a few minutes, one small model: this says nothing about which method is better.",
    "The evaluation strings are short texts of user interfaces; scores are higher than on news.",
)


def run_demo(out: Path, *, steps: int, sentences: int, console: Console) -> Path:
    """Train both runs (or resume them), score them beside the starting model, write the report.

    Returns the report's path. Everything is in ``out``: ``joint/``, ``gradvac/``,
    ``starting-model/`` and ``report.html``.
    """
    changes = [f"training.steps={steps}", f"training.validate_every={max(1, steps // 4)}"]
    file = resolve("shipped:recipes/demo.yaml")
    recipes = {
        name: of_kind(load_recipe(file, [*changes, f"method.name={name}"]), Recipe, str(file))
        for name in METHODS
    }
    runs: dict[str, Path] = {}
    for name, recipe in recipes.items():
        console.rule(f"{METHODS[name]}: {steps} steps from the starting model")
        first = next(iter(runs.values()), None)
        prepared = _prepared(recipe, out / name, first, console)
        code = Trainer(TranslationJob(prepared), Display(console)).train()
        if code:
            raise SystemExit(code)
        runs[name] = out / name
    console.rule("scores on held-out strings")
    scores = {"starting model": _score_start(recipes["joint"], out, sentences, console)}
    for name, run in runs.items():
        scores[METHODS[name]] = evaluate_run(run, sentences=sentences, say=console.print)
    console.print(comparison(scores).terminal(whole=()))
    for signature in next(iter(scores.values())).signatures.values():
        console.print(signature, markup=False)
    report = write_report(
        out / "report.html",
        list(runs.values()),
        title="gradvac demo: twelve languages into English, jointly and with GradVac",
        start=scores_of(out / "starting-model"),
        notes=NOTES,
    )
    console.print(NOTES[0])
    console.print(f"report: {report.resolve()}", soft_wrap=True)
    return report


def comparison(scores: dict[str, DirectionScores]) -> Table:
    """chrF++ and BLEU of several models side by side; the others started from the first."""
    rows = [
        [
            f"{of_all[0]['name']} {of_all[0]['level']}".strip(),
            *(f"{row['chrf']:.1f} ({row['bleu']:.1f})" for row in of_all),
        ]
        for of_all in zip(*map(table_rows, scores.values()), strict=True)
    ]
    return Table(["direction", *scores], rows, "chrF++ (BLEU) into English")


def _prepared(
    recipe: Recipe, folder: Path, first: Path | None, console: Console
) -> Prepared[Any, Any]:
    """Prepare a run; the second one reuses the encoded text of the first."""
    if first and build_once(folder, lambda: share_text(first, folder, recipe)):
        return open_prepared(folder)
    prepared = prepare(recipe, folder, lambda text: None)
    pairs = sum(info.pairs for info in prepared.tasks.values())
    console.print(
        f"{pairs:,} training pairs in {len(prepared.tasks)} directions; "
        f"what cleaning dropped and why: {folder / 'data' / 'account.json'}",
        soft_wrap=True,
    )
    return prepared


def _score_start(recipe: Recipe, out: Path, sentences: int, console: Console) -> DirectionScores:
    """Score the starting model on the test set of the joint run."""
    infos = task_infos(out / "joint")
    return evaluate_model(
        find_model(resolve(str(recipe.training.start_from))),
        *test_bitexts(test_rows(out / "joint"), list(infos)),
        levels={name: info.level for name, info in infos.items()},
        beam=recipe.search.beam,
        length_penalty=recipe.search.length_penalty,
        batch_tokens=recipe.search.batch_tokens,
        device=device_of(recipe.device),
        sentences=sentences,
        out=out / "starting-model",
        name="starting model",
        say=console.print,
    )
