"""Methods of installed packages: found by name, loaded only when asked for, named when broken."""

import sys
from pathlib import Path

import pytest

from gradvac.errors import GradientError
from gradvac.methods import METHODS, GradVac, find_method

SOURCE = """
from gradvac import Method

class Halves(Method):
    def __init__(self, factor: float = 0.5) -> None:
        self.factor = factor

    def _weights(self, geometry):
        return geometry.gram.diagonal(dim1=1, dim2=2) * 0 + self.factor

nothing = 3
"""


def install(folder: Path, package: str, **points: str) -> None:
    """An installed package as importlib.metadata sees it: a module and its dist-info."""
    (folder / f"{package}.py").write_text(SOURCE)
    info = folder / f"{package}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[gradvac.methods]", *lines, ""]))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path; what tests register from it is forgotten."""
    known = dict(METHODS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    METHODS.clear()
    METHODS.update(known)
    for name in ("one_package", "other_package"):
        sys.modules.pop(name, None)


def test_a_method_of_a_package_is_found_and_only_then_loaded(site):
    install(site, "one_package", halves="one_package:Halves", broken="nowhere:Thing")
    with pytest.raises(
        GradientError, match=r"'torchjd', 'broken', 'halves'; did you mean 'halves'"
    ):
        find_method("halvs")
    assert "one_package" not in sys.modules
    kind = find_method("halves")
    assert kind.__name__ == "Halves" and kind().factor == 0.5
    assert METHODS["halves"] is kind is find_method("halves")


def test_our_own_names_cannot_be_taken(site):
    install(site, "one_package", gradvac="one_package:Halves")
    assert find_method("gradvac") is GradVac
    assert "one_package" not in sys.modules


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("nowhere.at_all:Thing", r"cannot be loaded: ModuleNotFoundError: No module named 'nowhe"),
        ("one_package:Thing", r"cannot be loaded: AttributeError: .*no attribute 'Thing'"),
        ("one_package:nothing", r"is 3, no subclass of gradvac\.Method"),
    ],
)
def test_a_broken_entry_point_is_named_with_its_package(site, value, says):
    install(site, "one_package", halves=value)
    where = rf"entry point 'halves = {value}' of one_package 1\.5 {says}"
    with pytest.raises(GradientError, match=where):
        find_method("halves")
    assert "halves" not in METHODS


def test_two_packages_with_one_name_are_both_named(site):
    install(site, "one_package", halves="one_package:Halves")
    install(site, "other_package", halves="other_package:Halves")
    with pytest.raises(GradientError, match=r"'halves' is an entry point of several.*one.*other"):
        find_method("halves")
