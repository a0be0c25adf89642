"""The tables of docs/table1.md are those of the numbers kept in evidence/."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREE = json.loads((ROOT / "evidence" / "table1-to-en-small.json").read_text(encoding="utf-8"))
DIGITS = {"BLEU": ("bleu", 1), "chrF++": ("chrf", 1), "validation NLL": ("nll", 3)}


@pytest.mark.parametrize("title", DIGITS)
def test_the_page_shows_the_numbers_kept(title):
    metric, digits = DIGITS[title]
    kept = {(r["row"], r["column"]): r for r in TREE["records"] if r["metric"] == metric}
    page = (ROOT / "docs" / "table1.md").read_text(encoding="utf-8")
    lines = page.split(f"### {title}\n\n")[1].split("\n\n")[0].splitlines()
    heads, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert {row[0] for row in rows} == {name for name, _ in kept}
    seen = 0
    for name, *cells in rows:
        for column, cell in zip(heads[1:], cells, strict=True):
            if (name, column) in kept:
                r = kept[name, column]
                plain = cell.replace("*", "").replace("\\", "")
                assert plain == f"{r['mean']:.{digits}f} ±{r['half_width']:.{digits}f}"
                assert r["mean"] == pytest.approx(sum(r["values"]) / 3) and r["seeds"] == 3
                seen += 1
    assert seen == len(kept)
