"""Files are old or new, never a part."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradvac.reading import read_json
from gradvac.writing import replacing, write_json, write_text


def test_a_file_is_old_or_new_whatever_happens_between(tmp_path):
    file = tmp_path / "scores.json"
    write_json(file, {"bleu": 1})
    with pytest.raises(KeyboardInterrupt), replacing(file) as new:
        new.write_text("{")
        assert read_json(file) == {"bleu": 1}
        raise KeyboardInterrupt
    assert read_json(file) == {"bleu": 1}
    write_json(file, {"bleu": 2})
    assert json.loads(file.read_text()) == {"bleu": 2}
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "model"
    with replacing(out) as new:
        new.mkdir()
        (new / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["model"]


def test_hard_links_keep_what_they_had_and_symbolic_links_stay_links(tmp_path):
    own, other, pointer = (tmp_path / name for name in ("own", "other", "pointer"))
    own.write_text("old")
    os.link(own, other)
    pointer.symlink_to(own)
    write_text(pointer, "new")
    assert (own.read_text(), other.read_text()) == ("new", "old")
    assert pointer.is_symlink()


@pytest.mark.parametrize("call", ["mkdir", "write", "fsync", "replace"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch, call):
    file = tmp_path / "scores.json"
    write_text(file, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {"write": "pathlib.Path.write_bytes", "replace": "pathlib.Path.replace"}
    monkeypatch.setattr(where.get(call, f"os.{call}"), full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(file, "new")
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_pipe_is_written_to_as_it_is():
    reading, writing = os.pipe()
    try:
        write_text(Path(f"/dev/fd/{writing}"), "text")
        assert os.read(reading, 10) == b"text"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_missing_folder_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "none" / "a.json", "")
    assert caught.value.filename == str(tmp_path / "none" / "a.json")


def test_errors_about_other_files_stay_theirs(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "out"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")


KILLED = """
import sys, time
from pathlib import Path
from gradvac.writing import replacing
with replacing(Path(sys.argv[1])) as new:
    new.write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    begin = lambda name: subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / name], stdout=subprocess.PIPE
    )
    processes = [begin("killed"), begin("living")]
    try:
        assert [p.stdout.readline() for p in processes] == [b"written\n"] * 2
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        assert len(os.listdir(tmp_path)) == 2
        write_text(tmp_path / "mine", "")
        (left,) = (f for f in os.listdir(tmp_path) if f != "mine")
        assert (tmp_path / left / "living").read_text() == "half"
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


def test_a_strangers_links_beside_a_file_are_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    shared = tmp_path / "shared"
    (shared / ".gradvac-theirs").mkdir(parents=True)
    (shared / ".gradvac-theirs" / ".lock").symlink_to(precious / "file")
    (shared / ".gradvac-link").symlink_to(precious)
    write_text(shared / "mine", "")
    assert (precious / "file").read_text() == "kept"


def test_without_locks_files_are_written_and_nothing_of_others_is_removed(tmp_path, monkeypatch):
    def none(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    with replacing(tmp_path / "a") as a:
        a.write_text("a")
        write_text(tmp_path / "b", "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
