"""Verbs about scores: evaluate, compare, comet, tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradvac.cli.options import (
    Beam,
    Changes,
    CheckpointName,
    RecipePath,
    Size,
    console,
    finite,
    say,
)

app = typer.Typer()


@app.command(name="evaluate")
def evaluate_runs(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of runs or sweeps.", show_default=False)
    ],
    checkpoint: CheckpointName = "best",
    beam: Beam = None,
    sentences: Annotated[
        int | None, typer.Option(min=1, help="Only the first N per direction.")
    ] = None,
    bleu_tokenize: Annotated[
        str | None,
        typer.Option(
            help="BLEU's tokenizer: 13a, intl, char, flores200, spm:PATH, spm:vocabulary."
        ),
    ] = None,
    zero_shot: Annotated[
        list[str] | None,
        typer.Option(help="A direction that was not trained, or all; may be given several times."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Only this named test set; may be given several times."),
    ] = None,
) -> None:
    """Translate, or tag, and score the test sets of each run, in every direction or language.

    Scores of fewer sentences never replace those of more: they are written beside them.

    Under torchrun every rank translates a part; the result is the same as with one process.

    Example: gradvac evaluate runs/joint runs/gradvac --zero-shot fr-de --bleu-tokenize flores200
    """
    from gradvac.experiment.run.below import all_runs
    from gradvac.experiment.run.folder import any_recipe
    from gradvac.experiment.training.kind import score_run
    from gradvac.experiment.training.together import shared
    from gradvac.experiment.translation.evaluate import tokenizer_option

    options = {
        "checkpoint": checkpoint,
        "beam": beam,
        "sentences": sentences,
        "bleu_tokenize": tokenizer_option(bleu_tokenize),
        "zero_shot": zero_shot,
        "test": test,
    }
    runs = all_runs(folders)
    with shared(any_recipe(runs[0]).device, console) as ranks:
        for run in runs:
            for scored in score_run(run, options, say, ranks):
                console.print(scored.table)
                for line in scored.notes:
                    say(line)


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of sweeps or runs.", show_default=False)
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Row to compare with. Default: the recipe's, or the first.")
    ] = None,
    test: Annotated[
        str, typer.Option(help="Paired test of directions: bootstrap, randomization, or none.")
    ] = "bootstrap",
    samples: Annotated[
        int,
        typer.Option(
            min=0, help="Samples of the test. 0: 1,000 (bootstrap) or 10,000 (randomization)."
        ),
    ] = 0,
    directions: Annotated[
        bool, typer.Option("--directions", help="Show every direction, however many.")
    ] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Also write FILE.md, .tex, .csv or .json; may be given several times."),
    ] = None,
    comet: Annotated[
        Path | None, typer.Option(help="Folder of gradvac comet, scored by COMET.")
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Compare with the front of swept temperatures, weights.")
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="A row of the front. Default: the recipe's, or all joint or static ones."
        ),
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Columns of the front. Default: high,low of every side.")
    ] = None,
    reference: Annotated[
        tuple[float, float] | None,
        typer.Option(
            callback=lambda found: found and tuple(map(finite, found)),
            help="Worst point of the hypervolume. Default: 0 0, or for NLL ln V.",
        ),
    ] = None,
    pictures: Annotated[Path, typer.Option(help="Folder for pictures of the front.")] = Path(
        "figures"
    ),
    test_set: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this named test set; may be given several times. Default: each apart."
        ),
    ] = None,
) -> None:
    """Compare methods: means over seeds, intervals, significant differences, costs.

    Example: gradvac compare runs/front-small --front --out front.tex --out front.csv
    """
    from gradvac.experiment.compare.show import FrontAsked, show_comparison

    show_comparison(
        folders,
        baseline=baseline,
        test=test,
        samples=samples,
        comet=comet,
        every_direction=directions,
        out=out or (),
        front=FrontAsked(sweep or (), axes, reference, pictures) if front else None,
        console=console,
        sets=test_set or (),
    )


@app.command()
def comet(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of sweeps or runs.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("comet"),
    model: Annotated[
        str, typer.Option(help="COMET's name of the model.")
    ] = "Unbabel/wmt22-comet-da",
) -> None:
    """Write the input for COMET; score.sh in that folder scores it in COMET's own environment.

    Example: gradvac comet runs/table1-to-en-small --out comet
    """
    from gradvac.experiment.compare.comet import export_comet

    export_comet(folders, out, model, say)


@app.command()
def tune(
    recipe: RecipePath,
    size: Size = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this variant; may be given several times.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials of each variant. Default: the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's seed.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The search's folder. Default: runs/NAME-SIZE-tuned.")
    ] = None,
    set_: Changes = None,
) -> None:
    """Search hyper-parameters on validation text, with equally many trials for every variant.

    The measure is perplexity, or for sequence labelling the error. The recipe's section tune
    defines the search. The best recipe of each variant is written as best.yaml. The same command
    resumes; a trial that fails does not stop the others.

    Example: gradvac tune recipes/gradvac/tune.yaml --size small --only gradvac
    """
    from gradvac.experiment.sweep.tune import run_tune

    code = run_tune(
        recipe,
        out,
        size=size,
        only=only or (),
        trials=trials,
        seed=seed,
        changes=set_,
        console=console,
    )
    if code:
        raise typer.Exit(code)
