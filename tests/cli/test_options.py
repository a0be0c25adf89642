"""What all verbs share: Ctrl-C, and help without PyTorch."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.cli.options import Verbs

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
from gradvac.cli.main import main
sys.argv = ["gradvac", *{words}]
main()
"""


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["corpus", "import", "--help"]])
def test_help_needs_no_torch(words):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(words=words)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "Usage: " in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("train", "what is written is kept, and the same command goes on"),
        ("evaluate", "the same command starts again"),
    ],
)
def test_ctrl_c_is_answered_with_how_to_go_on(verb, said):
    verbs = typer.Typer(cls=Verbs)

    def interrupted() -> None:
        raise KeyboardInterrupt

    for name in ("train", "evaluate"):
        verbs.command(name)(interrupted)
    found = CliRunner().invoke(verbs, [verb])
    assert found.exit_code == 130 and found.stderr == f"\nstopped; {said}\n"


def test_verbs_that_resume_exist():
    names = typer.main.get_command(app).commands
    assert Verbs.resumed <= set(names)
