"""Fixtures of runs on toy languages."""

from pathlib import Path

import pytest
import yaml
from toy import toy_recipe, toy_rows, write_tsv


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A folder with train.tsv, valid.tsv, test.tsv and recipe.yaml."""
    rows = toy_rows()
    complete = [r for r in rows if "ne" in r]
    held = complete[::3]
    write_tsv(tmp_path / "train.tsv", [r for r in rows if r not in held])
    write_tsv(tmp_path / "valid.tsv", held[::2])
    write_tsv(tmp_path / "test.tsv", held[1::2])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(toy_recipe()), encoding="utf-8")
    return tmp_path
