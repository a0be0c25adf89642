"""docs/faults.md tells what is tried here: every row names its test, and the test is there."""

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "faults.md"
HERE = Path(__file__).parent
ROW = re.compile(r"^\| (?P<fault>[^|]+) \| (?P<outcome>[^|]+) \| `(?P<test>\w+::\w+)` \|$")


def rows() -> list[re.Match]:
    table = [t for t in DOCS.read_text(encoding="utf-8").splitlines() if "::" in t]
    found = [ROW.match(text) for text in table]
    assert all(found), table[found.index(None)]
    return [match for match in found if match]


@pytest.mark.parametrize("name", [row["test"] for row in rows()])
def test_a_fault_of_the_table_is_tried(name):
    module, test = name.split("::")
    assert callable(getattr(importlib.import_module(f"tests.faults.{module}"), test))


def test_what_is_tried_is_in_the_table():
    tests = {
        f"{file.stem}::{name}"
        for file in HERE.glob("test_*.py")
        if file.stem != Path(__file__).stem
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    missing = tests - {row["test"] for row in rows()}
    assert not missing, f"docs/faults.md has no row for {sorted(missing)}"
