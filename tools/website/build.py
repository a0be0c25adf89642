"""Build the documentation site from README.md, docs/ and the docstrings: `make docs`.

    python -m tools.website.build              # into build/site; open build/site/index.html
    python -m tools.website.build --out FOLDER

The Markdown stays as code hosts show it. A copy gets what Sphinx needs: the menu, which is the
list of docs/index.md, and the pages of the API reference. Every warning is an error: a link or an
anchor that leads nowhere, a page that is not in the list, a docstring that is not well formed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

from tools.website.api import write_pages

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# Pages at the top of the repository, and what they are called on the site.
TOP = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "readme.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(\]\(|src=\")(?!\w+:|#)([^)#\"\s]+)")

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def moved(target: str, page: Path, files: set[Path]) -> str:
    """Where a link leads, from the top of the site; what is no page is put into ``files``."""
    path = (page.parent / target).resolve().relative_to(ROOT)
    if str(path) in TOP:
        return TOP[str(path)]
    if path.parts[0] == "docs" and path.suffix != ".ipynb":
        return str(path.relative_to("docs"))
    if (ROOT / path).is_dir():
        path /= "README.md"
    files.add(path)
    return f"files/{path}"


def with_links(page: Path, files: set[Path], folder: str = ".") -> str:
    """The text of a page that lies in ``folder`` of the site, its links as they are there."""

    def link(found: re.Match[str]) -> str:
        return found[1] + os.path.relpath(moved(found[2], page, files), folder)

    parts = FENCED.split(page.read_text(encoding="utf-8"))
    parts[::2] = [LINK.sub(link, text) for text in parts[::2]]  # code is left as it is
    return "".join(parts)


def menu(index: str) -> str:
    """A hidden table of contents for each section of docs/index.md with links to pages."""
    parts = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        entries = re.findall(r"^- \[([^\]]+)\]\(([^)#]+)\.md\)", section, re.MULTILINE)
        pages = [f"{words} <{page}>" for words, page in entries]
        caption = section.splitlines()[0]
        parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```"]))
    return "\n\n".join(parts)


def stage(source: Path) -> None:
    """Fill the source folder of Sphinx."""
    files: set[Path] = set()
    pages = {path.name: path for path in sorted((ROOT / "docs").glob("*.md"))}
    pages |= {name: ROOT / path for path, name in TOP.items()}
    source.mkdir(parents=True)
    for name, path in pages.items():
        (source / name).write_text(with_links(path, files), encoding="utf-8")
    with (source / "index.md").open("a", encoding="utf-8") as index:
        index.write("\n" + menu((source / "index.md").read_text(encoding="utf-8")) + "\n")
    modules = "\n".join(f"api/{name}" for name in write_pages(source / "api"))
    with (source / "api.md").open("a", encoding="utf-8") as api:
        api.write(f"\n```{{toctree}}\n:maxdepth: 2\n{modules}\n```\n")
    shutil.copytree(ROOT / "docs" / "images", source / "images")
    put: set[Path] = set()
    while more := sorted(files - put):  # such a page may link to further files
        for path in more:
            there = source / "files" / path
            there.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":  # a page that is in no menu
                text = with_links(ROOT / path, files, f"files/{path.parent}")
                there.write_text(f"---\norphan: true\n---\n{text}", encoding="utf-8")
            else:
                shutil.copy(ROOT / path, there)
        put.update(more)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    out: Path = parser.parse_args().out
    source = out.with_name(f"{out.name}-source")
    shutil.rmtree(source, ignore_errors=True)
    stage(source)
    options = ["-W", "--keep-going", "-q", "-j", "auto", "-b", "html", "-c", str(HERE)]
    code = sphinx([*options, str(source), str(out)])
    if not code:
        print(f"the site: {(out / 'index.html').resolve()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
