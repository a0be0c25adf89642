"""Whether gradients are exact, for models and operators nobody wrote the engine for.

    python -m tools.exactness [models|adapters|operators] [--quick] [--part 2/12] [--only PATTERN]
                              [--json FILE] [--page docs/exactness.md]
    python -m tools.exactness --read FILE FILE --page docs/exactness.md

Run from the root of the repository. Needs transformers for the models and PEFT for the adapters;
torchvision's models are tried if it is installed. The exit status is 1 if a row is WRONG or a
CRASH.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .report import BAD, Row, page, read_json, versions, write_json
from .run import Part, run

KINDS = "models", "adapters", "operators"


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.exactness", description=__doc__)
    parser.add_argument("what", nargs="?", choices=KINDS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer ways and samples for each")
    parser.add_argument("--part", type=Part.parse, default=Part(1, 1), metavar="I/N")
    parser.add_argument("--only", default="", metavar="PATTERN", help="names to try, a regex")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown")
    parser.add_argument(
        "--read", type=Path, nargs="+", default=[], metavar="FILE", help="rows of earlier runs"
    )
    options = parser.parse_args(arguments)
    kinds = [options.what] if options.what else list(KINDS)
    rows, used = [], versions()
    for file in options.read:
        used, more = read_json(file)
        rows += more
    for kind in [] if options.read else kinds:
        before = list(rows)

        def keep(found: list[Row], before: list[Row] = before) -> None:
            if options.json:
                write_json(options.json, before + found)

        rows += run(kind, options.part, options.only, options.quick, say, keep)
    if options.page:
        options.page.write_text(page(rows, used))
    bad = [row for row in rows if row.outcome in BAD]
    print(f"{len(rows)} rows, {len(bad)} of them wrong or a crash")
    for row in bad:
        print(" ", row.line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
