"""Writes every figure that runs have data for, and says what the others lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gradvac.experiment.figures import several, similarity, training
from gradvac.experiment.figures.base import Drawer, Picture, each
from gradvac.experiment.view.geometry import Missing, Subject, subjects_of
from gradvac.experiment.view.numbers import HEADER, findings, row
from gradvac.experiment.view.run_view import FROM_ENGLISH, TO_ENGLISH, load_runs
from gradvac.experiment.view.seeds import of_seed, over_seeds
from gradvac.geometry.plots import save
from gradvac.writing import replacing, write_csv, write_text

_ENCODER = similarity.clustered("gradvac-fig-01-encoder-any-en", "encoder", TO_ENGLISH)
_DECODER = similarity.clustered("gradvac-fig-10-decoder-en-any", "decoder", FROM_ENGLISH)

CATALOGUE: dict[str, Drawer] = {
    "GradVac Figure 1": each(_ENCODER),
    "GradVac Figure 2a": each(similarity.both_sides),
    "GradVac Figure 2b": several.quality_and_similarity,
    "GradVac Figure 3": each(training.active_edits),
    "GradVac Figure 4a": each(similarity.encoder_minus_decoder),
    "GradVac Figure 4b": each(similarity.through_layers),
    "GradVac Figure 4c": each(similarity.pairs_over_steps),
    "GradVac Figure 6": several.over_bilingual,
    "GradVac Figure 7": each(training.data_sizes, once=True),
    "GradVac Figure 8": each(similarity.whole_model),
    "GradVac Figure 9": several.smaller_model,
    "GradVac Figure 10": each(_DECODER),
    "GradVac Figure 11": several.smaller_batches,
    "CATS Figure 1": training.train_and_validation,
    "CATS Figure 2": similarity.kinds_and_settings,
    "CATS Figure 3": similarity.alignment_by_setting,
    "CATS Figure 5": each(training.curvature_and_similarity),
    "CATS Figure 6": training.methods_compared,
    "CATS Figure 7": training.sample_efficiency,
    "CATS Figure 8": several.batch_sizes,
    "CATS Figure 9": several.model_sizes,
}
"""Figure of a paper -> the function that draws its counterpart. GradVac is Wang et al. 2021, CATS
the poster of Li and Gong 2021; figures without measurements (GradVac 5 and 12, CATS 4) have no
counterpart."""

FORMATS = ("svg", "pdf", "png")


def draw_all(subjects: Sequence[Subject]) -> tuple[dict[str, list[Picture]], dict[str, str]]:
    """Pictures by figure of a paper, and for the other figures what is missing.

    Subjects joined by `over_seeds` have each seed's numbers beside the mean.
    """
    drawn: dict[str, list[Picture]] = {}
    missing: dict[str, str] = {}
    seeds = sorted({s.run.recipe.seed for subject in subjects for s in subject.seeds})
    for figure, draw in CATALOGUE.items():
        try:
            pictures = draw(subjects)
        except Missing as e:
            missing[figure] = str(e)
            continue
        for seed in seeds:
            with suppress(Missing):
                own = [s for subject in subjects if (s := of_seed(subject, seed)) is not None]
                beside = {p.name: p for p in draw(own)}
                pictures = [with_seed(p, beside.get(p.name), seed) for p in pictures]
        drawn[figure] = pictures
    return drawn, missing


def with_seed(picture: Picture, own: Picture | None, seed: int) -> Picture:
    """The picture with the numbers of one seed added as columns, if the seed has them.

    Rows are matched by all columns that are not measured numbers.
    """
    columns = [n for n, v in enumerate(picture.rows[0]) if isinstance(v, float)]
    columns = [n for n in columns if "_seed_" not in picture.header[n]]
    width = next((n for n, h in enumerate(picture.header) if "_seed_" in h), len(picture.header))
    key = lambda row: tuple(v for n, v in enumerate(row[:width]) if n not in columns)
    found = {key(row): row for row in own.rows} if own else {}
    more = [[found[key(r)][n] if key(r) in found else "" for n in columns] for r in picture.rows]
    if not any(cell != "" for cells in more for cell in cells):
        return picture
    header = (*picture.header, *(f"{picture.header[n]}_seed_{seed}" for n in columns))
    rows = [(*row, *cells) for row, cells in zip(picture.rows, more, strict=True)]
    return replace(picture, header=header, rows=rows)


def write_figures(
    runs: Sequence[Path],
    out: Path,
    say: Callable[[str], None],
    measured: Path | None = None,
) -> list[Path]:
    """Write all figures of ``runs`` into ``out``: SVG, PDF, PNG, the numbers as CSV, captions.

    ``say`` gets a line for each figure, drawn or missing. ``measured`` is where the measurement
    of the only run lies, if not in its folder. Returns the files without suffix.
    """
    subjects = over_seeds(subjects_of(load_runs(runs), measured))
    drawn, missing = draw_all(subjects)
    out.mkdir(parents=True, exist_ok=True)
    files, captions = [], []
    for figure in CATALOGUE:
        for picture in drawn.get(figure, []):
            file = write_picture(picture, out)
            files.append(file)
            captions.append(f"{picture.name}\nCounterpart of {figure}. {picture.caption}\n")
            say(f"{figure}: {file}.{{{','.join((*FORMATS, 'csv'))}}}")
        if figure in missing:
            say(f"{figure}: not drawn; it needs {missing[figure]}")
    write_text(out / "captions.txt", "\n".join(captions))
    _write_numbers(subjects, out)
    return files


def _write_numbers(subjects: Sequence[Subject], out: Path) -> None:
    """``numbers.csv``: the tests of gradient similarity, for every run with enough tasks."""
    asked = [(s, f) for s in subjects if s.geometry is not None for f in findings(s)[0]]
    if asked:
        lines = [("run", *HEADER), *((s.run.name, *row(f)) for s, f in asked)]
        write_csv(out / "numbers.csv", lines)


def write_picture(picture: Picture, out: Path) -> Path:
    """Write a picture in every format, its numbers as CSV; returns the file without suffix."""
    file = out / picture.name
    for kind in FORMATS:
        with replacing(file.with_name(f"{file.name}.{kind}")) as new:
            save(picture.figure, new)
    write_csv(file.with_name(f"{file.name}.csv"), [picture.header, *picture.rows])
    return file
