"""One self-contained HTML page about one or more runs.

It shows everything without network or script; the script only recolours heat maps and opens the
samples for printing. One line names each part that a run does not have yet. The same folders give
the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from gradvac.errors import RunError
from gradvac.experiment.report.geometry import (
    conflicts_section,
    edits_section,
    similarity_section,
)
from gradvac.experiment.report.markup import Pictures, element, missing, paragraph, series, table
from gradvac.experiment.report.samples import samples_section
from gradvac.experiment.report.scores import (
    LEVELS,
    Row,
    averages_section,
    directions_section,
    unscored,
)
from gradvac.experiment.report.summary import summary
from gradvac.experiment.report.weights import weights_section
from gradvac.experiment.run.contents import scores_of
from gradvac.experiment.run.files import TESTS
from gradvac.experiment.view.geometry import Subject, subjects_of
from gradvac.experiment.view.run_view import RunView, TaskView, by_family, load_runs
from gradvac.experiment.view.seeds import over_seeds
from gradvac.geometry.plots import Line, curves
from gradvac.writing import write_text

START = "starting model"


def write_report(
    out: Path,
    runs: Sequence[Path],
    *,
    title: str,
    start: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    refresh: int | None = None,
) -> Path:
    """Write the report of ``runs`` to the file ``out``, atomically, and return ``out``.

    ``start``: scores of the model the runs began with, as in ``scores.json``: the first row of the
    tables. ``notes``: warnings for the reader. ``refresh``: the page reloads after so many seconds,
    and omits the tests of the similarity. Raises RunError for a folder that is not a run and for
    damaged files.
    """
    views = load_runs(runs)
    subjects = over_seeds(subjects_of(views))
    groups = [s.run for s in subjects]
    own = [_row(n, s, "") for n, s in enumerate(subjects)]
    rows = [Row(START, None, {0: start["directions"]}), *own] if start else own
    tasks = _tasks(views, rows)
    pictures = Pictures()
    header = _header(title, subjects, notes, summary(own, groups))
    sections = {
        "scores": ("Scores", _scores(rows, subjects, tasks, views)),
        "directions": ("Direction by direction", directions_section(rows, tasks, pictures)),
        "training": ("Training", _training(subjects, pictures)),
        "weights": ("Task weights", weights_section(groups, tasks, pictures)),
        "similarity": (
            "Similarity of gradients",
            similarity_section(subjects, tasks, pictures, tests=refresh is None),
        ),
        "conflicts": ("Conflicts of gradients", conflicts_section(subjects, pictures)),
        "edits": ("Edits to gradients", edits_section(subjects, pictures)),
        "samples": ("Translations", samples_section(_with_samples(subjects), tasks)),
        "again": ("Running it again", _again(views, out, [start, *(v.scores for v in views)])),
    }
    page = _whole_page(title, header, sections, refresh)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        raise RunError(f"--out {out}: is a folder; name a file for the page, such as report.html")
    write_text(out, page)  # atomically: a browser may be reading the old one
    return out


def _whole_page(
    title: str, header: str, sections: Mapping[str, tuple[str, str]], refresh: int | None
) -> str:
    """The HTML of a page with these sections: key -> heading and markup."""
    links = "".join(
        element("li", element("a", escape(name), href=f"#{key}"))
        for key, (name, _) in sections.items()
    )
    body = element("header", header + element("nav", element("ul", links)))
    body += element(
        "main",
        "\n".join(
            element("section", element("h2", escape(name), id=key) + markup)
            for key, (name, markup) in sections.items()
        ),
    )
    files = importlib.resources.files("gradvac.experiment.report")
    script = (files / "page.js").read_text("utf-8")
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return Template((files / "page.html").read_text("utf-8")).substitute(
        title=escape(title),
        body=body,
        script=script,
        refresh=again,
        hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _row(number: int, subject: Subject, test: str) -> Row:
    """The scores of a subject's seeds on its first test set, or on a further one."""
    found = {}
    for view in seeds_of(subject):
        scores = scores_of(view.folder / TESTS / test) if test else view.scores
        if scores is not None:
            found[view.recipe.seed] = scores["directions"]
    return Row(subject.run.name, number, found)


def seeds_of(subject: Subject) -> list[RunView]:
    """The runs of a subject, one for each seed."""
    return [s.run for s in subject.seeds] or [subject.run]


def _scores(
    rows: Sequence[Row],
    subjects: Sequence[Subject],
    tasks: Sequence[TaskView],
    views: Sequence[RunView],
) -> str:
    """Averages on the first test set, then on each further one."""
    first = next((v.recipe.test_sets[0] for v in views if v.recipe.test_sets), "")
    heading = element("h3", escape(f"Test set {first}")) if first else ""
    markup = heading + averages_section(rows, tasks) + unscored(views)
    for test in dict.fromkeys(name for v in views for name in v.recipe.test_sets[1:]):
        found = averages_section([_row(n, s, test) for n, s in enumerate(subjects)], tasks)
        markup += element("h3", escape(f"Test set {test}"))
        markup += found or missing("Not scored yet: gradvac evaluate scores every test set.")
    return markup


def _with_samples(subjects: Sequence[Subject]) -> list[RunView]:
    """The first run with translations of each subject; its name says of which seed."""
    views = []
    for subject in subjects:
        runs = seeds_of(subject)
        view = next((v for v in runs if v.translations), runs[0])
        name = f"{subject.run.name}, seed {view.recipe.seed}" if subject.seeds else view.name
        views.append(replace(view, name=name))
    return views


def _tasks(views: Sequence[RunView], rows: Sequence[Row]) -> list[TaskView]:
    """Every task of any run or score, in the order of the tables and heat maps."""
    infos = {name: info for view in reversed(views) for name, info in view.tasks.items()}
    scored = (name for row in rows for each in row.scores.values() for name in each)
    names = dict.fromkeys([*infos, *scored])
    return by_family(TaskView.of(name, infos.get(name)) for name in names)


def _facts(subject: Subject) -> dict[str, str]:
    facts = subject.run.facts()
    if subject.seeds:
        seeds = ", ".join(str(view.recipe.seed) for view in seeds_of(subject))
        facts = {("Seeds" if key == "Seed" else key): value for key, value in facts.items()}
        facts["Seeds"] = seeds
    return facts


def _header(title: str, subjects: Sequence[Subject], notes: Sequence[str], said: str) -> str:
    """What came out, and the runs: shared properties as a list, different ones as a table."""
    facts = [_facts(subject) for subject in subjects]
    views = [subject.run for subject in subjects]
    keys = list(dict.fromkeys(key for one in facts for key in one))
    differ = [k for k in keys if len({one.get(k) for one in facts}) > 1]
    shared = [k for k in keys if k not in differ]
    markup = element("h1", escape(title)) + paragraph(said, class_="summary")
    named = lambda s: f"{s.run.name} ({s.run.method}{_of_seeds(s)})"
    names = ", ".join(map(named, subjects))
    markup += paragraph(f"{'Runs' if len(subjects) > 1 else 'Run'}: {names}.", class_="lead")
    if notes:
        inner = "".join(paragraph(note) for note in notes)
        markup += element("div", inner, class_="notice", role="note")
    if differ:
        head = "".join(element("th", escape(k), scope="col") for k in ("Run", *differ))
        body = [
            element("th", series(view.name, n), scope="row")
            + "".join(
                element("td", escape(one.get(k, "\N{EN DASH}")), class_="words") for k in differ
            )
            for n, (view, one) in enumerate(zip(views, facts, strict=True))
        ]
        markup += table([head], body, "What differs between the runs.")
    items = "".join(
        element("dt", escape(k)) + element("dd", escape(facts[0][k])) for k in shared if facts
    )
    return markup + element("dl", items, class_="facts")


def _of_seeds(subject: Subject) -> str:
    return f", {len(subject.seeds)} seeds" if subject.seeds else ""


def _training(subjects: Sequence[Subject], pictures: Pictures) -> str:
    """Curves of the training and validation NLL, the latter also by resource level."""

    def lines(kind: str, key: str) -> list[Line]:
        found = []
        for n, subject in enumerate(subjects):
            points = {p["step"]: p[key] for p in getattr(subject.run, kind) if key in p}
            if points:
                band = _band(subject, kind, key, list(points))
                line = list(points), list(points.values())
                found.append(Line(subject.run.name, *line, n, False, *band))
        return found

    figures = [("train", "nll", "Training: negative log-likelihood per target token.")]
    figures += [("valid", "nll", "Validation: the same, mean over directions.")]
    levels = [level for level in LEVELS if lines("valid", f"nll/{level}")]
    if len(levels) > 1:
        figures += [("valid", f"nll/{v}", f"Validation: {v}-resource directions.") for v in levels]
    drawn = [
        pictures(curves(found, "NLL"), caption)
        for kind, key, caption in figures
        if (found := lines(kind, key))
    ]
    views = [subject.run for subject in subjects]
    silent = [view.name for view in views if not view.train and not view.valid]
    unsaid = "".join(missing(f"{name} has no training log yet.") for name in silent)
    bands = ""
    if any(subject.seeds for subject in subjects):
        bands = paragraph("Means over seeds; bands reach from the lowest seed to the highest.")
    return bands + element("div", "".join(drawn), class_="grid") + unsaid


def _band(
    subject: Subject, kind: str, key: str, steps: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Lowest and highest value of the seeds at each step; empty for one run."""
    logs = [{p["step"]: p[key] for p in getattr(s.run, kind) if key in p} for s in subject.seeds]
    if not logs:
        return [], []
    each = [[log[step] for log in logs if step in log] for step in steps]
    return [min(values) for values in each], [max(values) for values in each]


def _again(views: Sequence[RunView], out: Path, every: Sequence[Mapping[str, Any] | None]) -> str:
    """The commands that repeat the runs, and the signatures of the scores."""
    commands, folders = [], []
    for view in views:
        folder = os.path.relpath(view.folder, out.resolve().parent)
        folders.append(f"{folder}-again")
        commands.append(
            f"gradvac train {shlex.quote(folder + '/recipe.yaml')} --run {shlex.quote(folders[-1])}"
        )
    named = lambda chosen: " ".join(shlex.quote(folder) for folder in chosen)
    if scored := [f for f, view in zip(folders, views, strict=True) if view.scorable]:
        commands.append(f"gradvac evaluate {named(scored)}")
    commands.append(f"gradvac report {named(folders)}")
    markup = paragraph(
        "From the folder of this page. A run is a function of its recipe, which holds its seed; on "
        "the same machine and versions it gives the same numbers. The same command resumes a "
        "stopped run."
    )
    markup += element("pre", escape("\n".join(commands)), tabindex=0)
    signatures = {
        (metric, text)
        for scores in every
        if scores
        for metric, text in scores.get("signatures", {}).items()
    }
    if signatures:
        text = "\n".join(f"{metric}: {s}" for metric, s in sorted(signatures))
        markup += paragraph("Signatures of the scores (sacreBLEU):")
        markup += element("pre", escape(text), tabindex=0)
    return markup
