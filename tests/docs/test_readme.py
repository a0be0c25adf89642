"""What the front page and the docs show is run: Python blocks, commands, links."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gradvac.cli.main import app
from gradvac.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of one kind."""
    return [
        (page.name, match[2])
        for page in PAGES
        for match in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if match[1] == kind
    ]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of Lightning 2.6, PyTorch 2.13
@pytest.mark.filterwarnings("ignore:Recommended.*sacremoses:UserWarning")  # of MarianTokenizer
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # of PEFT 0.21
@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_blocks_run(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = dict(METHODS)
    try:
        exec(compile(code, page, "exec"), {"__name__": "__main__"})
    finally:  # what a page registers is not there for other tests
        METHODS.clear()
        METHODS.update(known)


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every gradvac command on a page."""
    found = []
    for page, text in blocks("console"):
        for line in text.splitlines():
            if line.startswith("$ ") and " gradvac " in line.replace("$ gradvac", "$  gradvac"):
                found.append((page, line[2:]))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_have_the_verbs_and_flags_shown(page, line):
    words = shlex.split(line.split("| ")[-1].split("# ")[0])
    verb, arguments = words[1], words[2:]
    group = typer.main.get_command(app)
    command = group.commands[verb]
    command.make_context(verb, arguments)  # raises on a flag or value that does not exist


TRANSLATIONS = [
    text for page, text in blocks("console") if page == "README.md" and "gradvac translate" in text
]


def test_the_readme_translates_into_and_out_of_english():
    assert [("--to en" in shown, "--to fr" in shown) for shown in TRANSLATIONS] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize("shown", TRANSLATIONS)
def test_the_translations_shown_are_what_the_shipped_models_say(shown):
    command, *expected = shown.strip().splitlines()
    echo, filtered = command.removeprefix("$ ").split(" | ")
    text = "\n".join(shlex.split(echo)[2:]) + "\n"  # printf '%s\n' A B C
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(filtered)],
        input=text.encode(),
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert done.stdout.decode().splitlines() == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)|src=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_throughput_benchmark_runs_and_writes_its_rows(tmp_path):
    out = tmp_path / "rows.json"
    script = ROOT / "benchmarks" / "train_throughput.py"
    flags = ["--quick", "--tokens", "64", "--vocabulary", "300", "--json", str(out)]
    subprocess.run(
        [sys.executable, str(script), *flags],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    rows = json.loads(out.read_text())
    assert {"path", "tokens_per_s", "ratio"} <= set(rows[0])
    assert all(row["tokens_per_s"] > 0 for row in rows)
