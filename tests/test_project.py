"""Files for those who carry on the work agree with the package."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import gradvac
from gradvac.cli.main import app

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_command_prints_the_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout.strip()) == (0, f"gradvac {gradvac.__version__}")


def test_the_citation_has_the_version_and_what_its_form_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # required by 1.2.0
    assert citation["version"] == VERSION
    assert citation["license"] == ["Apache-2.0", "MPL-2.0"]


def test_the_changelog_has_the_sections_of_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    sections = set(re.findall(r"^### (.+)", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_issue_forms_can_be_read(file: Path) -> None:
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert {field["type"] for field in form["body"]} <= {"input", "textarea", "dropdown"}
