"""The arrows between the rooms at the top of the package run one way."""

import ast
from pathlib import Path

import pytest

import gradvac

PACKAGE = Path(gradvac.__file__).parent
# What every room may use: errors, reading and writing of files, tables and texts for people.
SHARED = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
# Rooms whose names each room may import, of those below; `gradvac` itself is the public face.
ARROWS = {
    "methods": set(),
    "engine": {"methods"},
    "geometry": {"engine", "methods"},
    "integrations": {"engine", "methods"},
    "text": set(),
    "data": {"text"},
    "corpus": {"data", "text"},
    "translation": {"data", "engine", "text"},
    "tagging": {"data", "text"},
    "experiment": {
        "data", "engine", "geometry", "gradvac", "methods", "tagging", "text", "translation",
    },
}  # fmt: skip


def rooms_of(file):
    """The rooms of gradvac that a file imports from, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
            if node.module == "gradvac":
                inner = [alias.name for alias in node.names]
                names = [f"gradvac.{n}" if (PACKAGE / n).is_dir() else "gradvac" for n in inner]
        parts = [name.split(".") for name in names if name.split(".")[0] == "gradvac"]
        found |= {(part[1] if len(part) > 1 else "gradvac", file) for part in parts}
    return found


@pytest.mark.parametrize("room", ARROWS)
def test_rooms_import_only_what_lies_below(room):
    used = set().union(*map(rooms_of, (PACKAGE / room).rglob("*.py")))
    wrong = {
        (str(file.relative_to(PACKAGE)), other)
        for other, file in used
        if other not in ARROWS[room] | SHARED | {room}
    }
    assert wrong == set()
    assert ARROWS[room] - {other for other, _ in used} == set(), "an arrow that nothing needs"


def test_every_room_has_its_arrows():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders - {"cli"} == set(ARROWS)  # which imports what it likes


def test_what_every_room_may_use_uses_no_room():
    used = set().union(*(rooms_of(PACKAGE / f"{name}.py") for name in SHARED))
    assert {other for other, _ in used} <= SHARED
