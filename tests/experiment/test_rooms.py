"""Rooms of `gradvac.experiment`: which may import which, and where kinds of jobs are told apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import gradvac

EXPERIMENT = Path(gradvac.__file__).parent / "experiment"
BELOW = ["recipe", "run", "training"]
# From the lowest to the highest: no room imports one that stands below it in this list.
MAY_IMPORT = {
    "recipe": [],
    "run": ["recipe"],
    "training": ["recipe", "run"],
    "translation": BELOW,
    "tagging": BELOW,
    "encoder": [*BELOW, "tagging"],  # text with tags is read, and a model kept, as there
    "view": [*BELOW, "translation"],  # which measures models of Hugging Face
    "figures": [*BELOW, "view"],
    "report": [*BELOW, "view"],
    "sweep": [*BELOW, "translation", "report"],  # for the demo, which is of translation
    "compare": [*BELOW, "sweep", "figures"],
}


def imports(file: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_arrows_between_rooms_run_one_way():
    rooms = {folder.name for folder in EXPERIMENT.iterdir() if (folder / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT) and len(list(EXPERIMENT.glob("*.py"))) == 1
    order = list(MAY_IMPORT)
    for room, allowed in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(room) for other in allowed)
        for file in (EXPERIMENT / room).rglob("*.py"):
            for name in imports(file):
                parts = name.split(".")
                if parts[:2] == ["gradvac", "experiment"]:
                    assert parts[2] in [room, *allowed], f"{file} imports {name}"


def test_training_knows_no_kind_of_job():
    for file in (EXPERIMENT / "training").rglob("*.py"):
        for name in imports(file):
            assert not name.startswith(("gradvac.translation", "gradvac.tagging")), (file, name)


def test_kinds_are_told_apart_by_their_objects_alone():
    """No verb asks of which class a recipe is."""
    for file in EXPERIMENT.parent.rglob("*.py"):
        if file.name == "kind.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "isinstance",
                "cast",
            ):
                named = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
                found = [name for name in named if name.endswith("Recipe")]
                assert not found, f"{file}:{node.lineno}: {found}"
