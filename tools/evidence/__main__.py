"""Write docs/evidence.md and its pictures from the files in evidence/, and from nothing else.

    python -m tools.evidence [--size small] [--evidence evidence] [--out docs/evidence.md]

No figure on the page is typed: claims are those of claims.py, their figures those of files.py,
their verdicts those of verdicts.py, pictures those of pictures.py, tables those of `gradvac
compare`. The words around them are in page.md. Other pages that cite the evidence have their
figures renewed where they stand, by numbers.py. `python -m tools.evidence.collect` makes files of
run folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.pages import filled

from .files import Evidence
from .numbers import fresh
from .page import judged, page, summary

ROOT = Path(__file__).parents[2]
CITING = ("README.md", "docs/which-method.md", "docs/table1.md", "docs/tagging.md")
"""Pages written by hand that cite evidence/ at size small."""


def cited(e: Evidence) -> dict[Path, str]:
    """Each citing page with its figures as the evidence has them."""
    found, readme = judged(e), ROOT / "README.md"
    pages = {ROOT / name: (ROOT / name).read_text(encoding="utf-8") for name in CITING}
    pages[readme] = filled(readme, "evidence", {"summary": summary(found)})
    return {file: fresh(text, e, found) for file, text in pages.items()}


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--evidence", type=Path, default=Path("evidence"))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence.md"))
    args = parser.parse_args()
    pictures = args.out.parent / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    template = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    text = page(template, Evidence(args.evidence, args.size), pictures, "images")
    args.out.write_text(text, encoding="utf-8")
    print(args.out)
    if args.size == "small":
        for file, text in cited(Evidence(ROOT / "evidence", args.size)).items():
            file.write_text(text, encoding="utf-8")
            print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
