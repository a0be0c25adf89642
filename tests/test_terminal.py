"""What reaches a terminal is text as it is, in any encoding, whatever names it is made of."""

import io
import sys

import pytest
from rich.table import Table
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import CorpusError
from gradvac.terminal import Terminal, any_encoding, complain, printable

HOSTILE = "a[/b] [red]x[/] :smile: \x1b]0;title\x07\x1b[2J\x9b1m\u202eexe.txt"
SHOWN = r"a[/b] [red]x[/] :smile: \x1b]0;title\x07\x1b[2J\x9b1m\u202eexe.txt"


def test_names_are_shown_as_they_are():
    out = io.StringIO()
    terminal = Terminal(file=out, width=200, force_terminal=True, color_system=None)
    terminal.print(HOSTILE, soft_wrap=True)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    terminal.print(table)
    terminal.rule(HOSTILE)
    said = out.getvalue()
    assert said.count(SHOWN) == 5
    assert not any(c in said for c in "\x1b\x07\x9b\u202e")


def test_text_keeps_its_lines_and_letters():
    assert printable("a\tb\nनमस्ते \u200d é") == "a\tb\nनमस्ते \u200d é"


def test_an_error_is_shown_as_it_is(capsys):
    complain(CorpusError(f"x.zip: member {HOSTILE!s}"))
    assert capsys.readouterr().err == f"error: x.zip: member {SHOWN}\n"


def test_a_stream_of_ascii_takes_any_text(monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), "ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    any_encoding()
    terminal = Terminal(width=40)
    terminal.print("Any\u2192En")
    table = Table("\u00e9")
    table.add_row("\udcff")  # a file name that is not UTF-8
    terminal.print(table)
    complain("\u2192")
    said = [bytes(s.buffer.getvalue()) for s in streams.values() if not s.flush()]
    assert said[0].startswith(rb"Any\u2192En") and rb"\xe9" in said[0] and rb"\udcff" in said[0]
    assert said[1] == b"error: \\u2192\n"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("translate --beam 0", "--beam"),
        ("translate --length-penalty nan", "--length-penalty"),
        ("translate --length-penalty inf", "--length-penalty"),
        ("translate --length-penalty -1", "--length-penalty"),
        ("evaluate run --beam 0", "--beam"),
        ("evaluate run --sentences -3", "--sentences"),
        ("evaluate run --sentences 0", "--sentences"),
        ("geometry run --curvature -1", "--curvature"),
        ("geometry run --strings -3", "--strings"),
        ("geometry run --every 0", "--every"),
        ("geometry run --memory nan", "--memory"),
        ("report run --watch -1", "--watch"),
        ("compare run --samples -1", "--samples"),
        ("compare run --reference nan 1", "--reference"),
        ("demo --steps 0", "--steps"),
        ("demo --sentences -3", "--sentences"),
        ("corpus clean a --out b --max-words 0", "--max-words"),
        ("corpus debian a --share nan", "--share"),
        ("corpus debian a --share -1", "--share"),
        ("tune r.yaml --trials 0", "--trials"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_option(arguments, option):
    done = CliRunner().invoke(app, arguments.split(), env={"TERM": "dumb", "COLUMNS": "200"})
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output
