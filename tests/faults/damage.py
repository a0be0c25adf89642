"""Every kind of file that a folder of gradvac has, every fault, every verb that reads it.

    python -m tests.faults.damage [PATTERN]   # all of it; a pattern chooses among the names

A case fails if the verb ends in a traceback, does not end, or refuses without naming the file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Fault = Callable[[Path], None]
SECONDS = 20  # of the slowest verb here: 3
DEEP = 100_000  # brackets: more than the parser of JSON follows


@dataclass(frozen=True)
class Case:
    """A fault of one file, and the command line that meets it."""

    file: str
    fault: str
    verb: str

    def __str__(self) -> str:
        return f"{self.file}:{self.fault}:{self.verb}"


def _rewritten(change: Callable[[bytes], bytes]) -> Fault:
    def damage(file: Path) -> None:
        data = file.read_bytes()
        file.unlink()  # never through a link to another folder's file
        file.write_bytes(change(data))

    return damage


def _flipped(at: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        place = min(int(len(data) * at), len(data) - 1)
        return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] if data else data

    return flip


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _huge(file: Path) -> None:
    """Three gigabytes that take no room: a hole at the end of what was there."""
    _rewritten(lambda data: data)(file)
    os.truncate(file, 3 << 30)


FAULTS: dict[str, Fault] = {
    "truncated": _rewritten(lambda data: data[: len(data) // 2]),
    "flipped at the start": _rewritten(_flipped(0)),
    "flipped in the middle": _rewritten(_flipped(0.5)),
    "flipped at the end": _rewritten(_flipped(0.97)),
    "emptied": _rewritten(lambda data: b""),
    "not UTF-8": _rewritten(lambda data: b"\xff\xfe\x80" + data),
    "gone": Path.unlink,
    "a FIFO": _fifo,
    "a device": _device,
    "a folder": _folder,
    "3 GB": _huge,
}
OTHER_JSON = ("{}", "[]", "null", "7", '"a"', "[[1]]", '{"a": 1}', "NaN", "1e999", "[" * DEEP,
              '{"a":' * DEEP)  # fmt: skip
JSON_FAULTS: dict[str, Fault] = {
    f"holds {text[:12]}": _rewritten(lambda data, text=text: text.encode() + b"\n")
    for text in OTHER_JSON
}


def _deeper(data: bytes) -> list[bytes]:
    """One file for each value of a JSON text, or of the first line of several: another type."""
    lines = data.splitlines(keepends=True)
    try:
        tree, rest = json.loads(data), b""
    except ValueError:
        tree, rest = json.loads(lines[0]), b"".join(lines[1:])
    made = []

    def visit(node: object, put: Callable[[object], None], depth: int) -> None:
        if depth:
            for other in (None, [], {}, "a", -1, True):
                if type(other) is not type(node):
                    put(other)
                    made.append(json.dumps(tree).encode() + b"\n" + rest)
            put(node)
        if isinstance(node, dict):
            for key in list(node)[:40]:
                visit(node[key], lambda v, key=key, node=node: node.__setitem__(key, v), depth + 1)
                kept = node.pop(key)
                made.append(json.dumps(tree).encode() + b"\n" + rest)
                node[key] = kept
        elif isinstance(node, list) and node:
            visit(node[0], lambda v, node=node: node.__setitem__(0, v), depth + 1)

    visit(tree, lambda value: None, 0)
    return made


def faults_of(file: Path) -> dict[str, Fault]:
    """All that can happen to a file of this kind."""
    found = dict(FAULTS)
    if file.suffix in (".json", ".jsonl"):
        found |= JSON_FAULTS
        for n, data in enumerate(_deeper(file.read_bytes())):
            found[f"other value {n}"] = _rewritten(lambda _, data=data: data)
    return found


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
        from gradvac import cli, cli_options

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


def tried(whole: Path, case: Case, argv: Sequence[str], fault: Fault, room: Path) -> Outcome:
    """The outcome of one case, in a copy of ``whole`` that is gone afterwards."""
    folder = room / "case"
    shutil.copytree(whole, folder, symlinks=True)
    try:
        fault(folder / case.file)
        return outcome(argv, folder)
    finally:
        shutil.rmtree(folder)


def cases(
    whole: Path, files: Sequence[str], verbs: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Case, Sequence[str], Fault]]:
    for name in files:
        for fault, damage in faults_of(whole / name).items():
            for verb, argv in verbs.items():
                yield Case(name, fault, verb), argv, damage
