"""The command line: verbs only, no logic."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from gradvac.cli import corpus as cli_corpus
from gradvac.cli import scores as cli_scores
from gradvac.cli import start as cli_start
from gradvac.cli import tagging as cli_tagging
from gradvac.cli.options import (
    Changes,
    CheckpointName,
    RecipePath,
    RunFolder,
    Size,
    Verbs,
    console,
    finite,
    placed,
    say,
)
from gradvac.errors import GradvacError
from gradvac.terminal import any_encoding, complain

app = typer.Typer(
    cls=Verbs,
    help="Train one model on many languages and control how their gradients interact.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_start.app)  # first in the help


def _version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        from gradvac import __version__

        say(f"gradvac {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Train one model on many languages and control how their gradients interact."""


@app.command()
def train(
    recipe: RecipePath,
    run: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder. Default: runs/NAME, or runs/NAME-SIZE/VARIANT/seed-N."
        ),
    ] = None,
    size: Size = None,
    variant: Annotated[str | None, typer.Option(help="One of the recipe's variants.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the recipe's.")] = None,
    set_: Changes = None,
) -> None:
    """Train a run from a recipe of any kind; the same command again resumes it.

    recipes/reference.yaml lists every key. batches.sampling balances the directions, method.name
    chooses the gradient method. Use torchrun for several ranks.

    Example: gradvac train recipes/starting-model.yaml --set method.name=gradvac --run runs/gradvac
    Example: torchrun --nproc-per-node 2 -m gradvac train recipes/starting-model.yaml
    """
    from gradvac.experiment.recipe.load import load_recipe
    from gradvac.experiment.training.start import train_recipe

    loaded = load_recipe(recipe, set_, size=size, variant=variant, seed=seed)
    _, code = train_recipe(loaded, run, console, say)
    if code:
        raise typer.Exit(code)


@app.command()
def sweep(
    recipe: RecipePath,
    size: Size = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this variant; may be given several times.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Only this seed; may be given several times.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The sweep's folder. Default: runs/NAME-SIZE.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, without --gpu.")] = 1,
    gpu: Annotated[
        list[str] | None, typer.Option(help="A GPU to run on; one run at a time on each given.")
    ] = None,
    set_: Changes = None,
) -> None:
    """Train and score every variant of a recipe under every seed; the same command resumes.

    A run that fails does not stop the others. Methods share text, initial parameters and batches.

    Example: gradvac sweep recipes/gradvac/table1-to-en.yaml --size small --jobs 2
    """
    from gradvac.experiment.sweep.sweep import run_sweep

    code = run_sweep(
        recipe,
        out,
        size=size,
        only=only or (),
        seeds=seed or (),
        changes=set_,
        gpus=gpu or [""] * jobs,
        console=console,
    )
    if code:
        raise typer.Exit(code)


app.add_typer(cli_scores.app)
app.add_typer(cli_tagging.app)
app.add_typer(cli_corpus.app, name="corpus")


@app.command()
def replay(
    run: RunFolder,
    step: Annotated[int | None, typer.Argument(help="A kept step. Default: the first.")] = None,
) -> None:
    """Repeat a step with a loss or gradient that was not finite, and find the cause.

    Prints the task, module and parameter group that are the first with a value that is not finite,
    and the sentences. Exit code 0 if the step fails again, 1 if it does not.

    Example: gradvac replay runs/gradvac 512
    """
    from gradvac.experiment.training.replay import replay_run

    if not replay_run(run, step, say):
        raise typer.Exit(1)


@app.command()
def translate(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A run or model folder. Default: shipped:start, which translates eight languages "
            "into English; into one of these, shipped:start-from-en.",
            callback=placed,
        ),
    ] = None,
    to: Annotated[str, typer.Option(help="Language to translate into.")] = "en",
    beam: Annotated[int, typer.Option(min=1, help="Beam size; 1 is greedy.")] = 5,
    length_penalty: Annotated[
        float, typer.Option(min=0, callback=finite, help="Exponent of the length penalty.")
    ] = 1.0,
    checkpoint: CheckpointName = "best",
    engine: Annotated[str, typer.Option(help="Engine: gradvac or ctranslate2.")] = "gradvac",
) -> None:
    """Translate standard input, one sentence a line, to standard output.

    Example: echo "Ouvrir le fichier" | gradvac translate --to en
    """
    from gradvac.experiment.translation.filter import translate_lines

    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  as the input
    translate_lines(
        model, to, beam, length_penalty, checkpoint, engine, sys.stdin.buffer, sys.stdout
    )


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="gradvac (16 bits), huggingface or ctranslate2.")
    ] = "gradvac",
    quantization: Annotated[
        str | None, typer.Option(help="For ctranslate2: float32, int8, ... Default: float32.")
    ] = None,
    checkpoint: CheckpointName = "best",
) -> None:
    """Write the model of a run to a separate folder, for gradvac or for other programs.

    Example: gradvac export shipped:start --to ctranslate2 models/start
    """
    from gradvac.experiment.translation.export import export_run

    say(f"{export_run(run, out, to, checkpoint, quantization):,} bytes in {out}")


@app.command()
def geometry(
    run: RunFolder,
    every: Annotated[
        int | None, typer.Option(min=1, help="Only checkpoints at multiples of this step.")
    ] = None,
    granularity: Annotated[
        str,
        typer.Option(
            help="What to keep Gram matrices of: parameter (the finest; all others follow from "
            "it), parameter_kind, all_matrix, all_adapter, all_module, all_layer, enc_dec, "
            "whole_model."
        ),
    ] = "parameter",
    strings: Annotated[int | None, typer.Option(min=1, help="Only the first N sentences.")] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Multi-way parallel text to measure on, TSV or JSONL. Default: the run's own."
        ),
    ] = None,
    curvature: Annotated[
        int,
        typer.Option(
            min=0, help="Also the top Hessian eigenvalue, on N sentences per direction. 0: no."
        ),
    ] = 0,
    memory: Annotated[
        float,
        typer.Option(
            min=0.001,
            callback=finite,
            help="GiB of gradients held at a time; a lower value needs more passes.",
        ),
    ] = 4.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: RUN/geometry/measured.")
    ] = None,
    directions: Annotated[
        str | None,
        typer.Option(help="Only these, as fr-en,hi-en,en-fr; required for a Hugging Face model."),
    ] = None,
    code: Annotated[
        list[str] | None,
        typer.Option(help="A Hugging Face tokenizer's name of a language: fr=fra_Latn."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device. Default: the recipe's.")] = None,
) -> None:
    """Measure the gradients of every direction on the same sentences, at saved checkpoints.

    Existing measurements are kept, so the same command continues after a stop.
    A run of tagging is measured on each language's validation text. Under torchrun every rank
    measures some of the directions.
    RUN may also be the folder of a sweep: every run of it is measured, and seeds are averaged. Or
    that of a Hugging Face seq2seq model, or of a Trainer's checkpoint-N.

    Example: gradvac geometry runs/gradvac --every 1000 --curvature 8
    Example: gradvac geometry models/m2m --rows valid.tsv --directions fr-en,hi-en,en-fr,en-hi
    """
    from gradvac.experiment.view.measurement import measure_and_print

    measure_and_print(
        run,
        out,
        rows,
        directions.split(",") if directions else None,
        codes=code or (),
        curvature=curvature,
        every=every,
        granularity=granularity,
        strings=strings,
        device=device,
        hold=int(memory * 2**28),  # number of float32 values
        console=console,
    )


@app.command()
def figures(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs or sweeps.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("figures"),
    measured: Annotated[
        Path | None, typer.Option(help="Measurement of the run, if not in its folder.")
    ] = None,
) -> None:
    """Draw the counterparts of the papers' figures that these runs allow; seeds are averaged.

    Example: gradvac figures runs/gradvac runs/joint --out figures
    """
    from gradvac.experiment.figures import write_figures

    write_figures(runs, out, say, measured)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs or sweeps.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    watch: Annotated[
        int,
        typer.Option(min=0, help="Write it again every N seconds until the runs end. 0: once."),
    ] = 0,
) -> None:
    """Write one self-contained HTML page about the given runs; seeds are averaged.

    Example: gradvac report runs/joint runs/gradvac --out report.html
    """
    from gradvac.experiment.report import watch_report, write_report

    if watch:
        watch_report(out, runs, title="gradvac runs", seconds=watch, say=say)
        return
    say(f"report: {write_report(out, runs, title='gradvac runs', start=None, notes=[])}")


def main() -> None:
    """Entry point: a GradvacError gives a message and exit code 2, never a traceback.

    An error of the file system gives a message and exit code 74.
    """
    any_encoding()
    try:
        app()
    except GradvacError as e:
        complain(e)
        raise SystemExit(2) from e
    except BrokenPipeError:  # the reader closed the output, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as e:
        from gradvac.experiment.run.disk import DISK, explain, is_refusal

        if not is_refusal(e):
            raise
        complain(explain(e))
        raise SystemExit(DISK) from e
    except UnicodeEncodeError as e:  # in a file name or the output
        text = f"{e.object!a} cannot be written in {e.encoding}, the encoding of this system"
        complain(f"{text}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1")
        raise SystemExit(2) from e
    except KeyboardInterrupt:
        raise SystemExit(130) from None
