"""Fixtures of runs on toy languages."""

from pathlib import Path

import pytest

from tests.build import make_toy


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A folder with train.tsv, valid.tsv, test.tsv and recipe.yaml."""
    return make_toy(tmp_path)
