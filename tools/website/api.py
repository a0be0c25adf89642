"""The pages of the API reference: every public name, from its docstring."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from importlib import import_module
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

from gradvac import geometry, integrations


def public_modules() -> list[str]:
    """The modules whose ``__all__`` may be relied on."""
    below = [
        f"{package.__name__}.{module.name}"
        for package in (geometry, integrations)
        for module in pkgutil.iter_modules(package.__path__)
    ]
    listed = [name for name in below if hasattr(import_module(name), "__all__")]
    return ["gradvac", "gradvac.engine", "gradvac.methods", *listed]


def public_names() -> dict[str, list[str]]:
    """Module -> its public names; one that several modules have is with the first of its own.

    ``gradvac.Engine`` is on the page of ``gradvac.engine``, by its shortest name.
    """
    modules = public_modules()
    found: dict[str, list[str]] = {module: [] for module in modules}
    short = {id(getattr(import_module("gradvac"), n)): n for n in import_module("gradvac").__all__}
    seen: set[str] = set()
    for module in [*modules[1:], "gradvac"]:
        for name in sorted(n for n in import_module(module).__all__ if not n.startswith("__")):
            value = getattr(import_module(module), name)
            full = f"gradvac.{short[id(value)]}" if id(value) in short else f"{module}.{name}"
            if full not in seen:
                seen.add(full)
                found[module].append(full)
    return found


def _constant(package: str, full: str) -> str:
    """What is written about a name that is neither class nor function: the words below it."""
    name = full.rsplit(".", 1)[1]
    for module in sorted(name for name in sys.modules if name.startswith(package)):
        found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name))
        if found:
            return f".. py:data:: {full}\n\n   " + "\n   ".join(found)
    raise SystemExit(f"{full} has no docstring below its value")


def _section(module: str, full: str) -> str:
    """What Sphinx is asked to write about a name of a module."""
    home, name = full.rsplit(".", 1)
    value = getattr(import_module(home), name)
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
        body = f".. auto{kind}:: {full}"
    elif inspect.isfunction(value):
        body = f".. autofunction:: {full}"
    else:
        body = _constant(module, full)
    return f"{name}\n{'-' * len(name)}\n\n{body}\n"


def write_pages(folder: Path) -> list[str]:
    """Write a page for each public module into ``folder``; return the names of the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for module, names in public_names().items():
        head = (import_module(module).__doc__ or "").strip()
        body = "\n".join(_section(module, name) for name in names)
        text = f"{module}\n{'=' * len(module)}\n\n{head}\n\n{body}"
        (folder / f"{module}.rst").write_text(text, encoding="utf-8")
        pages.append(module)
    return pages
