"""docs/architecture.md names every room of the package, and all that it names exists."""

import ast
import re
from pathlib import Path

import pytest

from tools.draw_architecture import INNER, PICTURE, ROOMS, arrows, imports

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "gradvac"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w./]+(?:/|\.py|\.yaml))`", TEXT)))
DEFINED = sorted(set(re.findall(r"`(\w+)(?:\.\w+)?`\s+\(`([\w/]+\.py)`\)", TEXT)))


def rooms() -> list[str]:
    """Every folder of the package with code, as the page writes it."""
    folders = {file.parent.relative_to(SOURCE) for file in SOURCE.rglob("*.py")}
    return sorted(f"{folder}/" for folder in folders if folder.parts)


@pytest.mark.parametrize("room", rooms())
def test_every_room_is_on_the_page(room: str) -> None:
    assert f"`{room}`" in TEXT


@pytest.mark.parametrize("name", [name for name in NAMED if name != "recipe.yaml"])
def test_what_is_named_exists(name: str) -> None:
    assert (SOURCE / name).exists() or (ROOT / name).exists()


@pytest.mark.parametrize(("name", "file"), DEFINED)
def test_what_is_said_to_be_in_a_file_is_there(name: str, file: str) -> None:
    tree = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
    assert name in {getattr(node, "name", "") for node in tree.body}


def test_the_picture_has_all_rooms_and_imports_go_down() -> None:
    drawn = PICTURE.read_text(encoding="utf-8")
    inner = {f"{a}/{b}/" for a, rows in INNER.items() for row in rows for b in row}
    outer = {f"{name}/" for name in ROOMS}
    assert {*outer, *inner, "corpus/importing/"} == set(rooms())
    assert all(f">{room.split('/')[-2]}/<" in drawn for room in outer | inner)
    found = set(re.findall(r'<g id="(\w+)-(\w+)">', drawn))
    assert found == arrows(imports()), "draw it again: python -m tools.draw_architecture"
    for a, b in imports():
        assert ROOMS[a][1] > ROOMS[b][1], f"{a} lies below {b}, which it imports"
