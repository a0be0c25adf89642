"""The tutorial on one's own text is followed from top to bottom."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradvac.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "tutorial-own-text.md"


def test_the_tutorial_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)[0], {"__name__": "__main__"})
    recipe = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)[0]
    shorter = recipe.replace("seeds: [1, 2]", "seeds: [1]") + "search: {beam: 1}\ndevice: cpu\n"
    assert "seeds: [1]" in shorter
    Path("mine.yaml").write_text(shorter, encoding="utf-8")
    lines = re.findall(r"^\$ (.*gradvac .*)$", text, re.M)
    assert len(lines) == 6
    for line in lines:
        before, _, command = ("| " + line).rpartition("| gradvac ")
        typed = shlex.split(before)[2] + "\n" if before else None  # echo "..." |
        done = CliRunner().invoke(app, shlex.split(command), input=typed)
        assert done.exit_code == 0, f"{line}: {done.output}{done.exception!r}"
    assert Path("runs/first/scores.json").is_file()
    assert len(list(Path("runs/mine").glob("*/seed-1/scores.json"))) == 2
    assert Path("report.html").stat().st_size > 10_000
