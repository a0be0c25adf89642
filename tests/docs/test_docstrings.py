"""Examples in docstrings are run, and everything public has one."""

import ast
import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import gradvac
from tools.website.api import public_modules

PUBLIC = public_modules()
SOURCE = Path(gradvac.__file__).parent
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [  # those with examples
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts)
    for file in sorted(SOURCE.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]


def public() -> dict[str, Any]:
    """Every public class and function, by its full name where it is defined."""
    found = (getattr(import_module(m), n) for m in PUBLIC for n in import_module(m).__all__)
    return {
        f"{x.__module__}.{x.__qualname__}": x
        for x in found
        if (inspect.isclass(x) or inspect.isfunction(x)) and x.__module__.startswith("gradvac")
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_all_names_exist(name: str) -> None:
    module = import_module(name)
    assert all(hasattr(module, n) for n in module.__all__)


@pytest.mark.parametrize("name", sorted(public()))
def test_public_names_have_an_example(name: str) -> None:
    assert ">>> " in (inspect.getdoc(public()[name]) or ""), f"{name} has no example"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_import_public_names_or_say_that_they_may_change(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    imported = [
        (node.module, alias.name)
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradvac")
        for alias in node.names
    ]
    inner = [(m, n) for m, n in imported if m not in PUBLIC or n not in import_module(m).__all__]
    assert not inner or "may change" in text, inner


def with_examples() -> list[doctest.DocTest]:
    return [
        test
        for name in MODULES
        for test in doctest.DocTestFinder(exclude_empty=True).find(import_module(name))
        if test.examples
    ]


@pytest.mark.parametrize("example", with_examples(), ids=lambda test: test.name)
def test_examples_run(example: doctest.DocTest) -> None:
    found: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=found.append)
    assert not found, "".join(found)
