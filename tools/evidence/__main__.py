"""Write docs/evidence.md, docs/laboratory.md and their pictures from the files in evidence/ alone.

    python -m tools.evidence [--size small] [--evidence evidence] [--out docs]

No figure on the page is typed: claims are those of claims.py, their figures those of files.py,
their verdicts those of verdicts.py, pictures those of pictures.py, tables those of `gradvac
compare`. The words around them are in evidence.md and laboratory.md beside this file. Other pages
that cite the evidence have their figures renewed where they stand, by numbers.py.
`python -m tools.evidence.collect` makes files of run folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.pages import filled

from .files import Evidence
from .numbers import fresh
from .page import judged, page
from .together import summary

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted(Path(__file__).parent.glob("*.md"))
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
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pages")
    args = parser.parse_args()
    pictures = args.out / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    for template in TEMPLATES:
        text = page(
            template.read_text("utf-8"), Evidence(args.evidence, args.size), pictures, "images"
        )
        (args.out / template.name).write_text(text, encoding="utf-8")
        print(args.out / template.name)
    if args.size == "small":
        for file, text in cited(Evidence(ROOT / "evidence", args.size)).items():
            file.write_text(text, encoding="utf-8")
            print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
