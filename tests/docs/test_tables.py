"""The tables of some pages are those of the numbers kept in evidence/."""

import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NLL = ("nll", 3)
F1, ACCURACY = ("f1", 1), ("accuracy", 1)
PAGES = [  # page, the heading above its tables, file, tables by heading: metric and digits
    (
        "table1.md",
        "## The tables",
        "table1-to-en-small.json",
        {"BLEU": ("bleu", 1), "chrF++": ("chrf", 1), "validation NLL": NLL},
    ),
    (
        "table1.md",
        "## Out of English",
        "table1-from-en-small.json",
        {"BLEU": ("bleu", 1), "chrF++": ("chrf", 1), "validation NLL": NLL},
    ),
    ("tagging.md", "## Table 3 at this size", "table3-ner-small.json", {"F1": F1}),
    (
        "tagging.md",
        "## Table 9 at this size",
        "table9-pos-small.json",
        {"accuracy": ACCURACY, "F1": F1},
    ),
]
TABLES = [
    pytest.param(page, heading, file, title, *of, id=f"{file} {title}")
    for page, heading, file, tables in PAGES
    for title, of in tables.items()
]


def table_of(page, heading, title):
    """Cells of the table below a title, below a heading; its first line are the names."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").split(f"{heading}\n")[1]
    lines = text.split(f"### {title}\n\n")[1].split("\n\n")[0].splitlines()
    heads, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return heads, rows


@pytest.mark.parametrize(("page", "heading", "file", "title", "metric", "digits"), TABLES)
def test_the_page_shows_the_numbers_kept(page, heading, file, title, metric, digits):
    tree = json.loads((ROOT / "evidence" / file).read_text(encoding="utf-8"))
    kept = {(r["row"], r["column"]): r for r in tree["records"] if r["metric"] == metric}
    heads, rows = table_of(page, heading, title)
    assert {row[0] for row in rows} == {name for name, _ in kept}
    seeds = {row: len(cost["seeds"]) for row, cost in tree["costs"].items()}
    directions = {column for _, column in kept} - (tree["averages"].keys() - {"avg"})
    assert directions <= set(heads)
    for name, *cells in rows:
        for column, cell in zip(heads[1:], cells, strict=True):
            if (name, column) in kept:
                r = kept[name, column]
                plain = cell.replace("*", "").replace("\\", "")
                assert plain == f"{r['mean']:.{digits}f} ±{r['half_width']:.{digits}f}"
                assert r["mean"] == pytest.approx(statistics.fmean(r["values"]))
                assert len(r["values"]) == r["seeds"] == seeds[name] >= 3


def test_the_page_counts_the_tests_of_single_languages():
    better, worse, total = [], [], 0
    for name in ("table3-ner", "table9-pos"):
        tree = json.loads((ROOT / "evidence" / f"{name}-small.json").read_text(encoding="utf-8"))
        joint = {(r["metric"], r["column"]): r for r in tree["records"] if r["row"] == "joint"}
        for r in tree["records"]:
            if r["row"] != "joint" and r["kind"] == "direction" and r["p"] is not None:
                total += 1
                if r["p"] <= tree["level"]:
                    over = r["mean"] - joint[r["metric"], r["column"]]["mean"]
                    (better if over > 0 else worse).append(r["row"])
    text = " ".join((ROOT / "docs" / "tagging.md").read_text(encoding="utf-8").split())
    assert not better
    assert (
        f"Of {total} tests of single languages none finds a method better than joint training; "
        f"{len(worse)} find one worse, {worse.count('mgda')} of them MGDA." in text
    )
