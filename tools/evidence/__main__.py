"""Write docs/evidence.md and its pictures from the files in evidence/, and from nothing else.

    python -m tools.evidence [--size small] [--evidence evidence] [--out docs/evidence.md]

No figure on the page is typed: claims are those of claims.py, their figures those of files.py,
pictures those of pictures.py, tables those of `gradvac compare`. The words around them are in
page.md. `python -m tools.evidence.collect` makes files of run folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .files import Evidence
from .page import page


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


if __name__ == "__main__":
    main()
