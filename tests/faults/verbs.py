"""Every file that a verb reads, every fault, every verb: by hand, an hour on two cores.

    python -m tests.faults.verbs [PATTERN]    # of the names of files; all by default

A case fails if the verb ends in a traceback, does not end, or refuses without naming the file.
`tests/faults/test_files.py` has the same faults for what reads the files, without the verbs.
"""

from __future__ import annotations

import fnmatch
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.faults.bench import make_toy
from tests.faults.damage import FAULTS, Fault, faults_of

SECONDS = 60  # of the slowest verb here: 4
TRAIN = ["train", "recipe.yaml", "--run", "run", "--set", "method.name=gradvac"]
TRAIN += ["--set", "method.beta=0.2"]
ROWS = ["--rows", "test.tsv", "--directions", "fr-en", "--strings", "2"]
VERBS = {
    "train": TRAIN,
    "evaluate": ["evaluate", "run", "--sentences", "2", "--beam", "1"],
    "geometry": ["geometry", "run", "--strings", "3", "--curvature", "2"],
    "translate": ["translate", "run", "--beam", "1"],
    "ctranslate2": ["translate", "run", "--engine", "ctranslate2"],
    "export": ["export", "run", "out"],
    "huggingface": ["export", "run", "hf", "--to", "huggingface"],
    "foreign": ["geometry", "hf", *ROWS, "--out", "measured"],
    "report": ["report", "run", "--out", "r.html"],
    "figures": ["figures", "run", "--out", "pictures"],
    "compare": ["compare", "run", "--test", "none"],
    "comet": ["comet", "run", "--out", "scored"],
}


@dataclass(frozen=True)
class Outcome:
    """How a verb ended: exit code, or None if it did not; what it said."""

    code: int | None
    said: str

    def problem(self, file: str) -> str:
        """What is wrong with it, or nothing."""
        if self.code is None:
            return "does not end"
        if "Traceback" in self.said:
            return self.said.strip().splitlines()[-1]
        if self.code < 0:
            return f"killed by signal {-self.code}"
        if self.code and "error: " not in self.said and "Error" not in self.said:
            return f"exit code {self.code} without an error"
        # A file of a folder may be named by its folder: best/ by its name alone would not do.
        if self.code and Path(file).name not in self.said and Path(file).stem not in self.said:
            return f"does not name the file: {self.said.strip().splitlines()[-1]}"
        return ""


def outcome(argv: Sequence[str], folder: Path, seconds: float = SECONDS) -> Outcome:
    """Run ``gradvac ARGV`` in ``folder``, in a forked process: nothing is imported again."""
    with tempfile.TemporaryFile() as out:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _become(argv, folder, out.fileno())
        code = _wait(child, seconds)
        out.seek(0)
        return Outcome(code, out.read().decode("utf-8", "replace"))


def _become(argv: Sequence[str], folder: Path, out: int) -> None:
    code: object = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdin = io.TextIOWrapper(io.BytesIO(b"open the file\n"))
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115
        torch.set_num_threads(1)
        os.chdir(folder)
        sys.argv = ["gradvac", *argv]
        from gradvac.cli import main as cli
        from gradvac.cli import options as cli_options

        cli_options.console.file = sys.stdout
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _wait(child: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def read_by(whole: Path, argv: Sequence[str], room: Path) -> set[str]:
    """The files of ``whole`` that a verb reads, by their times of access."""
    folder = Path(shutil.copytree(whole, room / "case", symlinks=True))
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        os.utime(file, (1, file.stat().st_mtime))
    begun(argv, folder)
    outcome(argv, folder)
    found = {str(f.relative_to(folder)) for f in files if f.exists() and f.stat().st_atime != 1}
    shutil.rmtree(folder)
    return found


def begun(argv: Sequence[str], folder: Path) -> None:
    """Leave something to train."""
    if argv[0] == "train":
        (folder / "run" / "done.json").unlink(missing_ok=True)


def tried(whole: Path, name: str, argv: Sequence[str], fault: Fault, room: Path) -> Outcome:
    """How a verb ends in a copy of ``whole`` with one file damaged; the copy is gone afterwards."""
    folder = Path(shutil.copytree(whole, room / "case", symlinks=True))
    try:
        begun(argv, folder)
        fault(folder / name)
        return outcome(argv, folder)
    finally:
        shutil.rmtree(folder)


def main(pattern: str = "*") -> int:
    """Try all; returns how many cases failed."""
    count = failed = 0
    with tempfile.TemporaryDirectory() as name:
        room, whole = Path(name), Path(name) / "whole"
        whole.mkdir()
        make_toy(whole)
        for verb, argv in VERBS.items():
            assert outcome(argv, whole).code == 0, verb
        for verb, argv in VERBS.items():
            for file in sorted(fnmatch.filter(read_by(whole, argv, room), pattern)):
                for fault, damage in faults_of(whole / file).items():
                    if fault not in FAULTS and verb in ("figures", "geometry", "train"):
                        continue  # other values of JSON: by the quicker ones
                    if argv[0] == "train" and file.endswith("done.json"):
                        continue
                    count += 1
                    if problem := tried(whole, file, argv, damage, room).problem(file):
                        failed += 1
                        print(f"{file}, {fault}, {verb}: {problem}", flush=True)
    print(f"{count} cases, {failed} failed")
    return failed


if __name__ == "__main__":
    raise SystemExit(bool(main(*sys.argv[1:])))
