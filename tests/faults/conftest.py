"""The uninterrupted run that every other is compared with."""

from pathlib import Path

import pytest

from tests.faults.bench import RUN, copy, in_child, make_toy, train


@pytest.fixture(scope="session")
def fresh(tmp_path_factory) -> Path:
    """A run that is prepared and not begun."""
    folder = tmp_path_factory.mktemp("faults") / "fresh"
    folder.mkdir()
    make_toy(folder)
    return folder


@pytest.fixture(scope="session")
def whole(fresh, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = copy(fresh, tmp_path_factory.mktemp("faults") / "whole")
    assert in_child(folder, train) == 0
    return folder


@pytest.fixture
def case(fresh, tmp_path) -> Path:
    """A run of its own for a test, not begun."""
    return copy(fresh, tmp_path / "case")


@pytest.fixture
def stopped(whole, tmp_path) -> Path:
    """A run that was killed after its last checkpoint, before the end."""
    folder = copy(whole, tmp_path / "stopped")
    (folder / RUN / "done.json").unlink()
    return folder
