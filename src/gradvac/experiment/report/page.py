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
from gradvac.experiment.report.scores import LEVELS, Row, averages_section, directions_section
from gradvac.experiment.report.weights import weights_section
from gradvac.experiment.view.run_view import RunView, TaskView, by_family, load_runs
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
    rows: list[Row] = [(START, None, start)] if start else []
    rows += [(run.name, n, run.scores) for n, run in enumerate(views)]
    tasks = _tasks(views, rows)
    pictures = Pictures()
    sections = {
        "scores": ("Scores", averages_section(rows, tasks, views)),
        "directions": ("Direction by direction", directions_section(rows, tasks, pictures)),
        "training": ("Training", _training(views, pictures)),
        "weights": ("Task weights", weights_section(views, tasks, pictures)),
        "similarity": (
            "Similarity of gradients",
            similarity_section(views, tasks, pictures, tests=refresh is None),
        ),
        "conflicts": ("Conflicts of gradients", conflicts_section(views, pictures)),
        "edits": ("Edits to gradients", edits_section(views, pictures)),
        "samples": ("Translations", samples_section(views, tasks)),
        "again": ("Running it again", _again(views, out, rows)),
    }
    page = _whole_page(title, _header(title, views, notes), sections, refresh)
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


def _tasks(views: Sequence[RunView], rows: Sequence[Row]) -> list[TaskView]:
    """Every task of any run or score, in the order of the tables and heat maps."""
    infos = {name: info for view in reversed(views) for name, info in view.tasks.items()}
    scored = (name for _, _, scores in rows if scores for name in scores["directions"])
    names = dict.fromkeys([*infos, *scored])
    return by_family(TaskView.of(name, infos.get(name)) for name in names)


def _header(title: str, views: Sequence[RunView], notes: Sequence[str]) -> str:
    """The runs: shared properties as a list, different ones as a table."""
    facts = [view.facts() for view in views]
    keys = list(dict.fromkeys(key for one in facts for key in one))
    differ = [k for k in keys if len({one.get(k) for one in facts}) > 1]
    shared = [k for k in keys if k not in differ]
    markup = element("h1", escape(title))
    names = ", ".join(f"{view.name} ({view.method})" for view in views)
    markup += paragraph(f"{'Runs' if len(views) > 1 else 'Run'}: {names}.", class_="lead")
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


def _training(views: Sequence[RunView], pictures: Pictures) -> str:
    """Curves of the training and validation NLL, the latter also by resource level."""

    def lines(kind: str, key: str) -> list[Line]:
        found = []
        for n, view in enumerate(views):
            points = [p for p in getattr(view, kind) if key in p]
            if points:
                found.append(
                    Line(view.name, [p["step"] for p in points], [p[key] for p in points], n)
                )
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
    silent = [view.name for view in views if not view.train and not view.valid]
    unsaid = "".join(missing(f"{name} has no training log yet.") for name in silent)
    return element("div", "".join(drawn), class_="grid") + unsaid


def _again(views: Sequence[RunView], out: Path, rows: Sequence[Row]) -> str:
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
        for *_, scores in rows
        if scores
        for metric, text in scores.get("signatures", {}).items()
    }
    if signatures:
        text = "\n".join(f"{metric}: {s}" for metric, s in sorted(signatures))
        markup += paragraph("Signatures of the scores (sacreBLEU):")
        markup += element("pre", escape(text), tabindex=0)
    return markup
