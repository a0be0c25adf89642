"""Files that may be damaged are read by shape; what cannot be read is named."""

import os
from dataclasses import dataclass

import pytest

from gradvac import reading
from gradvac.errors import RunError
from gradvac.reading import read_json, read_text


@dataclass
class Info:
    pairs: int
    share: float


def test_json_is_of_the_shape_that_is_declared(tmp_path):
    file = tmp_path / "tasks.json"
    file.write_text('{"fr-en": {"pairs": 3, "share": 1}, "inf": {"pairs": 1, "share": Infinity}}')
    found = read_json(file, dict[str, Info])
    assert found == {"fr-en": Info(3, 1.0), "inf": Info(1, float("inf"))}
    file.write_text('{"a": [1, 2.5]}')
    assert read_json(file, dict[str, tuple[int, float]]) == {"a": (1, 2.5)}


BAD = {
    "empty": (b"", "EOF"),
    "cut": (b'{"a": 1', "EOF"),
    "a list": (b"[1]", "object"),
    "null": (b"null", "object"),
    "not UTF-8": (b'{"a": "\xff"}', "unicode|UTF-8"),
    "deep": (b'{"a":' + b"[" * 100_000, "recursion"),
    "another type": (b'{"a": {"pairs": "3", "share": 0}}', r"a\.pairs: .*integer"),
    "a key too little": (b'{"a": {"pairs": 3}}', r"a\.share: .*required"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_json_is_an_error_that_names_file_and_place(tmp_path, name):
    data, words = BAD[name]
    file = tmp_path / "tasks.json"
    file.write_bytes(data)
    with pytest.raises(RunError, match=f"tasks.json: .*({words})"):
        read_json(file, dict[str, Info])


def test_what_is_no_file_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    for name, words in (("fifo", "is a FIFO"), ("none", "No such file"), ("..", "is a folder")):
        with pytest.raises(RunError, match=f"{name}: .*{words}"):
            read_text(tmp_path / name)
    monkeypatch.setattr(reading, "LONGEST", 3)
    (tmp_path / "long").write_text("four")
    with pytest.raises(RunError, match="long: has 4 bytes; at most 3"):
        read_text(tmp_path / "long")
