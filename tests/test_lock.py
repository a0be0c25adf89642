"""`make` installs what is locked and nothing else, each file by its SHA-256."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def pins(name: str) -> dict[str, tuple[str, int]]:
    """Name -> version, of several that for the Python here, and how many hashes it has."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, tuple[str, int]] = {}
    for line in text.splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r "))
            continue
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line.split(" --hash")[0])
        key, (version,) = canonicalize_name(pin.name), pin.specifier
        if key not in found or pin.marker is None or pin.marker.evaluate():
            hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line)
            found[key] = version.version, len(hashes)
    return found


def needed(extra: str, locked: dict[str, tuple[str, int]]) -> set[str]:
    """Names from pyproject.toml through what the packages installed here need; all are locked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    left = [Requirement(text) for text in [*project["dependencies"], *extras[extra]]]
    left += [Requirement(text) for text in extras["build"]]
    seen: set[tuple[str, str]] = set()
    while left:
        one = left.pop()
        name = canonicalize_name(one.name)
        for extra in ("", *one.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name == "gradvac":
                below = extras.get(extra, [])
            else:
                assert name in locked, f"{name} is not locked; run tools/lock.py"
                assert one.specifier.contains(locked[name][0], prereleases=True), one
                try:
                    below = requires(name) or []
                except PackageNotFoundError:  # setuptools, in an environment made otherwise
                    below = []
            told = [Requirement(text) for text in below]
            left += [r for r in told if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen} - {"gradvac"}


@pytest.mark.parametrize("torch", ["requirements-cpu.txt", "requirements-cuda.txt"])
@pytest.mark.parametrize(
    ("extra", "file", "least"),
    [("toolkit", "requirements-toolkit.txt", 35), ("dev", "requirements.txt", 100)],
)
def test_all_that_is_needed_is_locked(extra: str, file: str, least: int, torch: str) -> None:
    locked = pins(file) | pins(torch)
    assert all(count for _, count in locked.values())
    assert len(needed(extra, locked)) > least


def test_the_demo_installs_nothing_that_it_does_not_need() -> None:
    locked = pins("requirements-toolkit.txt") | pins("requirements-cpu.txt")
    only_elsewhere = {"colorama", "tzdata"}  # on Windows
    assert set(locked) - needed("toolkit", locked) <= only_elsewhere
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: \$\(VENV\)/toolkit$", text, re.MULTILINE)


def test_the_commands_take_nothing_else() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = text.replace("$(OPTIONS)", re.findall(r"^OPTIONS := (.*)", text, re.MULTILINE)[0])
    installs = re.findall(r"pip install[^|\n]*", text)
    assert len(installs) == 3 and all("--no-deps" in one for one in installs)
    assert sum("--require-hashes" in one for one in installs) == len(installs) - 1
    files = re.findall(r"\$\(call install,([^)]*)\)", text)
    assert sorted(files) == sorted(path.name for path in ROOT.glob("requirements*.txt"))


def test_the_versions_alone_are_those_that_are_locked() -> None:
    locked = pins("requirements.txt") | pins("requirements-cuda.txt")
    alone = pins("constraints.txt")
    assert alone["torch"][0] == locked["torch"][0]
    only_for_cuda = re.compile(r"cuda-|nvidia-|triton$")
    wanted = {
        name: version for name, (version, _) in locked.items() if not only_for_cuda.match(name)
    }
    assert {name: version for name, (version, _) in alone.items()} == wanted
