"""The documentation site: built without a warning, all pages and names, without a server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.website.api import public_names
from tools.website.build import ROOT, TOP, menu, with_links


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "tools.website.build", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr  # a link, an anchor or a docstring is wrong
    return out


def test_every_page_is_listed_in_the_index_once() -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    pages |= {Path(name).stem for name in TOP.values()}
    index = with_links(ROOT / "docs" / "index.md", set())
    listed = re.findall(r" <(.+)>$", menu(index), re.MULTILINE)
    assert sorted(listed) == sorted(pages), "put each page into docs/index.md, once"


def test_every_page_and_public_name_is_on_the_site(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for module, names in public_names().items():
        html = (site / "api" / f"{module}.html").read_text(encoding="utf-8")
        missing = [name for name in names if f'id="{name}"' not in html]
        assert not missing, missing


def test_a_page_of_no_menu_leads_on_to_other_files(site: Path) -> None:
    """docs/evidence.md links to the page of a starting model, and that one to another's."""
    folder = site / "files" / "src" / "gradvac" / "assets"
    page = (folder / "start" / "README.html").read_text(encoding="utf-8")
    assert 'href="../start-from-en/README.html"' in page
    assert (folder / "start-from-en" / "README.html").exists()


def test_the_site_asks_no_server_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", html)
        assert not loaded, f"{page}: {loaded}"
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(")  # loaded by a script element, also from file://
    assert "vaccin" in index  # the stem of a word of the front page
