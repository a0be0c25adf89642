"""Disks that are full, slow to empty or read-only, and files that are not what was written."""

import errno
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradvac.errors import RunError
from gradvac.experiment.run.checkpoint import list_checkpoints
from gradvac.experiment.run.disk import DISK
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.prepare import test_rows as rows_of_the_test_set
from tests.faults.bench import RUN, SETS, copy, everything, in_child, said, start, train, trainer


def limit(size: int) -> None:
    """Refuse files over ``size`` bytes: to a program a full disk, where nobody may mount one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def on_small_disk(first: int, room: int, unsaved: int) -> int:
    """Train; from step ``first`` on the disk is full, until ``unsaved`` checkpoints are refused."""
    t = trainer()
    step, again = t.train_step, False

    def full() -> int:
        nonlocal again
        again = again or t.unsaved >= unsaved
        if t.step >= first:
            limit(resource.RLIM_INFINITY if again else room)
        return step()

    t.train_step = full
    return t.train()


@pytest.mark.parametrize("room", [1, 1000, 50_000])  # not even logs; no file of parameters; some
def test_a_full_disk_costs_nothing_once_there_is_room(case, whole, room):
    """The checkpoint of step 4 is refused; before that of step 8 there is room again."""
    assert in_child(case, lambda: on_small_disk(3, room, 1)) == 0
    assert "warning: no checkpoint of step 4: " in said(case)
    assert "File too large; the last one: none" in said(case)
    assert everything(case) == everything(whole)


def test_a_disk_that_stays_full_ends_the_run_and_the_last_good_checkpoint_stays(case, whole):
    more = copy(case, case.with_name("more"))

    def full_for_good() -> int:
        t = trainer()
        t.recipe = t.recipe.model_copy(
            update={"training": t.recipe.training.model_copy(update={"checkpoint_every": 2})}
        )
        step = t.train_step

        def full() -> int:
            if t.step == 4:
                limit(50_000)
            return step()

        t.train_step = full
        return t.train()

    assert in_child(more, full_for_good) == DISK == 74
    assert "stopped at step 10: the disk took none of the last 3 checkpoints" in said(more)
    saved = list_checkpoints(more / RUN / "checkpoints")
    assert saved[-1].name == "step-00000004"
    assert not list((more / RUN / "checkpoints").glob(".*"))
    assert in_child(more, train) == 0
    assert everything(more) == everything(whole)


ERRORS = ["ESTALE", "EBUSY", "EINVAL", "EXDEV", "ENOENT"]


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_a_file_system_at_every_stage_of_a_save(case, whole, name):
    """Whatever it is: a warning that names a file, and the checkpoint is saved later."""
    number = getattr(errno, name)
    left = 0

    def fail(event: str, arguments: tuple) -> None:
        nonlocal left
        if left and (event in ("open", "fsync") or event.startswith(("os.", "shutil."))):
            left -= 1
            if not left:
                raise OSError(number, os.strerror(number), "the file")

    def failing() -> int:
        nonlocal left
        t = trainer()
        save, fsync = t._save, os.fsync

        def saving() -> None:
            nonlocal left
            for call in range(1, 300 if t.step == 4 else 1):
                left = call
                save()
                if left:
                    break
            left = 0
            assert call > 30 if t.step == 4 else True
            save()

        def syncing(descriptor: int) -> None:
            fail("fsync", ())
            fsync(descriptor)

        sys.addaudithook(fail)
        t._save, os.fsync = saving, syncing
        return t.train()

    assert in_child(case, failing) == 0
    warnings = [line for line in said(case).splitlines() if line.startswith("warning: ")]
    assert len(warnings) > 10
    # The second where what could not be removed is in the way of the next save.
    words = [f": {os.strerror(n)}" for n in (number, errno.ENOTEMPTY)]
    assert [line for line in warnings if not any(w in line for w in words)] == []
    assert everything(case) == everything(whole)


def test_kept_parameters_may_lie_on_another_file_system(case, whole, tmp_path):
    """`history` is a link to it: they are copied where they cannot be renamed."""

    def elsewhere() -> int:
        recipe = (RUN / "recipe.yaml").read_text()
        kept = recipe.replace("keep_every: null", "keep_every: 4").replace("keep: 5", "keep: 1")
        (RUN / "recipe.yaml").write_text(kept)
        (RUN / "history").symlink_to(tmp_path)
        replace = os.replace

        def renaming(source, target) -> None:
            places = {Path(name).parent.resolve() for name in (source, target)}
            if tmp_path in places and len(places) > 1 and ".gradvac-" not in str(source):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
            replace(source, target)

        os.replace = renaming
        return trainer([*SETS, "training.keep=1", "training.keep_every=4"]).train()

    assert in_child(case, elsewhere) == 0
    assert "warning" not in said(case)
    names = sorted(file.name for file in tmp_path.glob("step-*"))
    assert names == ["step-00000004.safetensors", "step-00000008.safetensors"]
    own, other = (find_model(folder / RUN, "8").load() for folder in (case, whole))
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))


def mounted(folder: Path, *options: str) -> None:
    """Mount a file system of memory; skip the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")


def test_a_full_file_system(case, whole, tmp_path):
    disk = tmp_path / "disk"
    mounted(disk, "-o", "size=1500k")
    try:
        folder = copy(case, disk / "case")
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(free - 100_000))  # room for logs, not for a checkpoint

        def until_refused() -> int:
            t = trainer()
            save = t._save

            def saving() -> None:
                if t.unsaved:
                    ballast.unlink(missing_ok=True)
                save()

            t._save = saving
            return t.train()

        assert in_child(folder, until_refused) == 0
        assert "checkpoint of step 4: " in said(folder)
        assert "No space left on device" in said(folder)
        assert everything(folder) == everything(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_folder_is_named(stopped, tmp_path):
    if os.geteuid():
        (stopped / RUN).chmod(0o500)
        assert in_child(stopped, train) == 2
        assert f"error: {RUN}: cannot be written: Permission denied" in said(stopped)
        (stopped / RUN).chmod(0o700)
        return
    disk = tmp_path / "disk"
    mounted(disk)
    try:
        copy(stopped / RUN, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        (stopped / RUN).rename(stopped / "elsewhere")
        (stopped / RUN).symlink_to(disk / "run")
        assert in_child(stopped, train) == 2
        assert f"error: {RUN}: cannot be written: Read-only file system" in said(stopped)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


def pickled(data: bytes) -> bytes:
    return pickle.dumps({"w": 1})


DAMAGES = [
    ("model.safetensors", flipped),
    ("model.safetensors", pickled),
    ("optimizer.safetensors", truncated),
    ("method.safetensors", flipped),
    ("state.json", truncated),
    ("state.json", flipped),
    ("SHA256SUMS", truncated),
    ("optimizer.safetensors", None),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(stopped, whole, name, damage):
    newest = list_checkpoints(stopped / RUN / "checkpoints")[-1]
    if damage:
        (newest / name).write_bytes(damage((newest / name).read_bytes()))
    else:
        (newest / name).unlink()
    assert in_child(stopped, train) == 0
    assert f"warning: {RUN / 'checkpoints' / newest.name}" in said(stopped)
    assert "going on from step-00000008" in said(stopped)
    assert everything(stopped) == everything(whole)
    assert newest.with_name(f"{newest.name}.damaged").is_dir()


def one_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["best/model.safetensors", "history/step-00000004.safetensors"])
def test_a_bit_that_flips_in_kept_parameters_is_named(case, name):
    def keeping_all() -> int:
        t = trainer()
        training = t.recipe.training.model_copy(update={"keep_every": 4, "keep": 1, "average": 1})
        t.recipe = t.recipe.model_copy(update={"training": training})
        return t.train()

    assert in_child(case, keeping_all) == 0
    file = case / RUN / name
    which = "best" if name.startswith("best") else "4"
    find_model(case / RUN, which).load()
    one_bit(file)
    with pytest.raises(RunError, match=rf"{name}: damaged: the SHA-256 of its tensors begins"):
        find_model(case / RUN, which).load()


TEXT = ["train/ne-en/00000000.ids", "train/ne-en/00000000.offsets", "train/index.json",
        "valid/fr-en/00000000.ids"]  # fmt: skip


@pytest.mark.parametrize("name", TEXT)
def test_a_bit_that_flips_in_the_encoded_text_is_named(case, name):
    one_bit(case / RUN / "data" / name)
    assert in_child(case, train) == 2
    assert f"error: {RUN / 'data' / name}: damaged: its SHA-256 begins" in said(case)


def test_a_bit_that_flips_in_the_test_set_is_named(case):
    assert len(rows_of_the_test_set(case / RUN)) > 3
    one_bit(case / RUN / "data" / "test.jsonl")
    with pytest.raises(RunError, match=r"data/test\.jsonl: damaged"):
        rows_of_the_test_set(case / RUN)


def test_without_a_complete_checkpoint_nothing_begins_anew(stopped):
    saved = list_checkpoints(stopped / RUN / "checkpoints")
    for folder in saved:
        (folder / "model.safetensors").write_bytes(b"")
    assert in_child(stopped, train) == 2
    assert "no complete checkpoint is left; move the folder away" in said(stopped)
    assert list_checkpoints(stopped / RUN / "checkpoints") == saved


@pytest.mark.parametrize("name", ["metrics.jsonl", "geometry/gram.bin", "geometry/frames.jsonl"])
def test_a_log_that_lost_its_end_is_named_and_training_goes_on(stopped, whole, name):
    file = stopped / RUN / name
    file.write_bytes(truncated(file.read_bytes()))
    assert in_child(stopped, train) == 0
    assert f"warning: {RUN / name} has lost its end" in said(stopped)
    ours, theirs = everything(stopped), everything(whole)
    for part in ("model.safetensors", "optimizer.safetensors", "method.safetensors"):
        assert ours[part] == theirs[part]


def test_a_killed_run_moved_elsewhere_goes_on(case, whole, tmp_path):
    child = start(case, lambda: on_small_disk(99, 1, 1))
    assert os.waitpid(child, 0)[1] == 0
    (case / RUN / "done.json").unlink()
    moved = tmp_path / "another" / "place"
    moved.parent.mkdir()
    case.rename(moved)
    assert in_child(moved, train) == 0
    assert everything(moved) == everything(whole)
