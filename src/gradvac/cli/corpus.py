"""The verbs about parallel text: `gradvac corpus ...`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gradvac.cli.options import console, finite, say
from gradvac.errors import CorpusError
from gradvac.terminal import printable

app = typer.Typer(
    help="Build, import and clean parallel text.",
    no_args_is_help=True,
)

Jobs = Annotated[int, typer.Option(min=1, help="Processes. Default: one a core.")]
CORES = os.cpu_count() or 1
Tick = Callable[[str, int, int], None]


@contextmanager
def _progress() -> Iterator[Tick]:
    """A progress bar for each reported stage: its name, the amount done, the total."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def tick(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(printable(stage))
            progress.update(tasks[stage], completed=done, total=total)

        yield tick


@app.command()
def debian(
    out: Annotated[Path, typer.Argument(help="The corpus folder to build.", show_default=False)],
    languages: Annotated[
        str | None, typer.Option(help="Codes, as in 'fr de hi'. Default: the paper's 25.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="How much to download: tiny 0.2 GB, core 0.4 GB, full 3.3 GB.")
    ] = "core",
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of validation text and of test text.")
    ] = 2000,
    share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="Largest share of a language's pairs that is held out.",
        ),
    ] = 0.1,
    cache: Annotated[
        Path | None, typer.Option(help="Downloads. Default: ~/.cache/gradvac/debian.")
    ] = None,
    jobs: Jobs = CORES,
    update: Annotated[
        bool, typer.Option("--update", help="Ask apt for newer indexes than those in the cache.")
    ] = False,
) -> None:
    """Build parallel text of English and many languages from Debian's translations.

    The system's own apt downloads the packages; they are not installed. The same command continues
    where it was stopped.

    Example: gradvac corpus debian corpora/debian --languages "fr de hi" --profile tiny
    """
    from gradvac.corpus.contents import PROFILES
    from gradvac.corpus.debian import PAPER, Plan, Split, build_debian, default_cache
    from gradvac.corpus.table import size_table

    if profile not in PROFILES:
        raise CorpusError(f"--profile is {profile!r}: allowed are {', '.join(PROFILES)}")
    codes = tuple(languages.replace(",", " ").split()) if languages else tuple(PAPER)
    plan = Plan(codes, profile, Split(rows, share))
    with _progress() as tick:
        build_debian(out, plan, cache or default_cache(), jobs, update, tick)
    console.print(size_table(out).terminal(whole=()))
    say(f"corpus: {out}")


@app.command("import")
def import_(
    sources: Annotated[
        list[Path], typer.Argument(help="Files, folders, archives.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The corpus folder to build.", show_default=False)],
    format_: Annotated[
        str | None, typer.Option("--format", help="Only this format: moses, tmx, ... Default: all.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, valid or test. Default: by the file names.")
    ] = None,
    languages: Annotated[
        str | None, typer.Option(help="Columns of tables without a header, as in 'en fr'.")
    ] = None,
    keep_out: Annotated[
        list[Path] | None, typer.Option(help="Text to keep out of training; several times.")
    ] = None,
    fail: Annotated[bool, typer.Option("--fail", help="Stop at the first bad line.")] = False,
    check: Annotated[
        bool, typer.Option(help="Check that columns have their language and that rows match.")
    ] = True,
    quoted: Annotated[
        bool, typer.Option("--quoted", help="Cells of TSV are in quotation marks, as in CSV.")
    ] = False,
    unescape: Annotated[
        bool, typer.Option("--unescape", help="Undo escapes of Moses: &apos; @-@ and others.")
    ] = False,
) -> None:
    """Turn published corpora into a corpus folder: Moses, TMX, TED, OPUS-100, FLORES, WMT, ...

    The format is guessed and printed. Test sets and their near-duplicates are removed from
    training.

    Example: gradvac corpus import opus-100-corpus.zip flores200.tar.gz --out corpora/mine
    """
    from gradvac.corpus.importing.build import Options, import_corpus
    from gradvac.corpus.table import size_table

    named = tuple((languages or "").replace(",", " ").split())
    policy = "fail" if fail else "drop"
    kept_out = tuple(keep_out or ())
    options = Options(format_, split, named, kept_out, policy, check, quoted, unescape)
    import_corpus(sources, out, options, say)
    console.print(size_table(out).terminal(whole=()))
    say(f"corpus: {out}")


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="A corpus folder.", show_default=False)],
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Also write FILE.md, .csv or .tex; may be given several times."),
    ] = None,
) -> None:
    """Show the languages of a corpus: family, resource level, sizes (Tables 4 and 5 of the paper).

    Example: gradvac corpus table corpora/debian --out table4.tex
    """
    from gradvac.corpus.table import size_table, size_text
    from gradvac.writing import write_text

    console.print(size_table(folder).terminal(whole=()))
    for file in out or ():
        write_text(file, size_text(folder, file.suffix.removeprefix(".")))


@app.command()
def clean(
    folder: Annotated[
        Path, typer.Argument(help="A corpus folder: train/*.tsv, valid.tsv, test.tsv.")
    ],
    out: Annotated[Path, typer.Option(help="The corpus folder to write.")],
    max_words: Annotated[int, typer.Option(min=1, help="Longest side, in words.")] = 200,
    max_ratio: Annotated[float, typer.Option(help="Longer by shorter side, in letters.")] = 4.0,
    identify: Annotated[
        bool, typer.Option(help="Identify languages; needs the extra langid.")
    ] = True,
    near: Annotated[bool, typer.Option(help="Remove near-duplicates too.")] = True,
    jobs: Jobs = CORES,
) -> None:
    """Remove pairs that are not translations, are repeated, or repeat the evaluation text.

    Memory does not grow with the corpus. report.json says what each filter removed, with samples.

    Example: gradvac corpus clean corpora/mine --out corpora/clean
    """
    from gradvac.corpus.clean import CleaningPlan, clean_folder
    from gradvac.corpus.table import report_table
    from gradvac.text.cleaning import CleaningRules

    plan = CleaningPlan(CleaningRules(max_words=max_words, max_ratio=max_ratio), identify, near)
    with _progress() as tick:
        clean_folder(folder, out, plan, jobs, tick)
    console.print(report_table(out).terminal(whole=()))
    say(f"corpus: {out}")
