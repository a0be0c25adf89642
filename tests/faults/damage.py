"""What can happen to a file: cut, changed, emptied, exchanged for something else or endless."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from gradvac.reading import LONGEST

Fault = Callable[[Path], None]
DEEP = 100_000  # brackets: more than the parser of JSON follows


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
    """Half a gigabyte that takes no room: a hole at the end of what was there."""
    _rewritten(lambda data: data)(file)
    os.truncate(file, 2 * LONGEST)


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
    "half a gigabyte": _huge,
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
