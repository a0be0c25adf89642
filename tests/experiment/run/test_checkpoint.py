"""Checkpoints: complete or absent, readable without running code, damage named."""

import dataclasses
import errno
import pickle
import subprocess
from pathlib import Path

import pytest
import torch

from gradvac.errors import RunError
from gradvac.experiment.run import checkpoint as module
from gradvac.experiment.run import tensor_file
from gradvac.experiment.run.checkpoint import (
    Checkpoint,
    average,
    join_state,
    keep_newest,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    newest_complete,
    optimizer_tensors,
    recover,
    save_checkpoint,
    save_tensors,
    saved_models,
    set_aside,
    split_state,
)


def make(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        model={"w": torch.full((2, 3), float(step))},
        optimizer={"exp_avg/w": torch.randn(2, 3), "step/w": torch.tensor(float(step))},
        method={"method.targets": torch.rand(1, 2, 2, dtype=torch.float64)},
        state={"best": {"value": 0.1 + 0.2}, "method": {"step": step}},
    )


def test_round_trip_is_exact(tmp_path):
    saved = make(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))
    assert loaded.step == 7 and loaded.state == saved.state
    for part in ("model", "optimizer", "method"):
        for name, tensor in getattr(saved, part).items():
            assert torch.equal(getattr(loaded, part)[name], tensor)


def test_a_half_written_checkpoint_does_not_exist(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make(1))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, make(2))
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]
    monkeypatch.undo()
    save_checkpoint(tmp_path, make(2))
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "pickle", "absent"])
def test_a_damaged_file_is_named(tmp_path, damage):
    folder = save_checkpoint(tmp_path, make(1))
    file = folder / "model.safetensors"
    data = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        file.write_bytes(b"\xff" * 8 + data[8:])
    elif damage == "pickle":
        file.write_bytes(pickle.dumps({"w": 1}))
    else:
        file.unlink()
    message = (
        "cannot be read: No such file" if damage == "absent" else "damaged: its SHA-256 begins"
    )
    with pytest.raises(RunError, match=rf"model\.safetensors: {message}"):
        load_checkpoint(folder)
    (folder / "SHA256SUMS").unlink()  # as of runs made before there were sums
    with pytest.raises(RunError, match=r"model\.safetensors: (cannot be read|not a readable)"):
        load_checkpoint(folder)


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_every_flipped_bit_is_seen(tmp_path, part):
    folder = save_checkpoint(tmp_path, make(1))
    data = (folder / part).read_bytes()
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        (folder / part).write_bytes(flipped)
        with pytest.raises(RunError, match=rf"{part}: damaged"):
            load_checkpoint(folder)


def test_the_sums_are_those_of_sha256sum(tmp_path):
    folder = save_checkpoint(tmp_path, make(1))
    names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "SHA256SUMS"])
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_a_checkpoint_without_its_sums_is_not_complete(tmp_path):
    saved = dataclasses.replace(make(1), state={"made_with": {"torch": "2"}})
    folder = save_checkpoint(tmp_path, saved)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(RunError, match="SHA256SUMS: missing; the checkpoint is not complete"):
        load_checkpoint(folder)


def test_the_newest_complete_one_counts_and_the_others_are_named(tmp_path):
    assert newest_complete(tmp_path) is None
    for step in (1, 2, 3):
        folder = save_checkpoint(tmp_path, make(step))
    (folder / "model.safetensors").write_bytes(b"")
    found, checkpoint, problems = newest_complete(tmp_path)
    assert (found.name, checkpoint.step) == ("step-00000002", 2)
    assert [p.name for p in problems] == ["step-00000003"]
    assert set_aside(folder).name == "step-00000003.damaged"
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}" / "optimizer.safetensors").unlink()
    with pytest.raises(RunError, match=r"step-00000002/opt.*\n.*step-00000001/opt.*\n.*no compl"):
        newest_complete(tmp_path)


def test_saving_the_same_step_again_never_leaves_a_moment_without(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make(1))
    seen = []
    rename = Path.rename

    def watched(self, target):
        seen.append(sorted(p.name for p in tmp_path.iterdir()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    save_checkpoint(tmp_path, make(1))
    assert seen == [
        [".step-00000001.new", "step-00000001"],
        [".step-00000001.new", ".step-00000001.old"],
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.old")  # killed between the two
    recover(tmp_path)
    assert load_checkpoint(tmp_path / "step-00000001").step == 1


def test_the_error_of_the_system_is_told_from_that_of_the_format(tmp_path):
    with pytest.raises(OSError) as caught:
        save_tensors({"w": torch.ones(1)}, tmp_path / "none" / "x.safetensors")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "none" / "x.safetensors")


def test_a_damaged_state_is_named(tmp_path):
    folder = save_checkpoint(tmp_path, make(1))
    (folder / "SHA256SUMS").unlink()
    (folder / "state.json").write_text('{"best": 1}')
    with pytest.raises(RunError, match=r"state\.json"):
        load_checkpoint(folder)


def test_average_is_the_mean(tmp_path):
    folders = [save_checkpoint(tmp_path, make(s)) for s in (1, 2, 6)]
    assert torch.equal(average(folders)["w"], torch.full((2, 3), 3.0))


def test_keep_newest(tmp_path):
    for s in (1, 2, 3, 4):
        save_checkpoint(tmp_path, make(s))
    keep_newest(tmp_path, 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]


def test_one_that_a_signal_left_goes_with_the_next(tmp_path):
    for s in (4, 8, 10):
        save_checkpoint(tmp_path, make(s))
        keep_newest(tmp_path, 2, regular=4)
    assert [p.name[-2:] for p in list_checkpoints(tmp_path)] == ["08", "10"]
    save_checkpoint(tmp_path, make(12))
    keep_newest(tmp_path, 2, regular=4)
    assert [p.name[-2:] for p in list_checkpoints(tmp_path)] == ["08", "12"]


@pytest.mark.parametrize("killed", [False, True])
def test_of_every_nth_the_parameters_stay_when_its_checkpoint_goes(tmp_path, monkeypatch, killed):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for s in range(1, 8):
        save_checkpoint(folder, make(s))
    if killed:  # between keeping the parameters and deleting the rest
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(module.shutil, "rmtree", _interrupted)
            keep_newest(folder, 2, every=1)
    keep_newest(folder, 2, every=3)
    assert [p.name for p in list_checkpoints(folder)] == ["step-00000006", "step-00000007"]
    models = saved_models(tmp_path)
    assert list(models) == ([1] if killed else []) + [3, 6, 7]
    for step, file in models.items():
        assert torch.equal(module.load_tensors(file)["w"], torch.full((2, 3), float(step)))


def _interrupted(*args: object) -> None:
    raise KeyboardInterrupt


def test_split_and_join_state():
    tree = {"step": 3, "method": {"targets": torch.ones(2), "groups": ["a.b"], "deep": {"x": 1}}}
    tensors, plain = split_state(tree)
    assert list(tensors) == ["method.targets"]
    assert plain == {"step": 3, "method": {"groups": ["a.b"], "deep": {"x": 1}}}
    joined = join_state(tensors, plain)
    assert torch.equal(joined["method"].pop("targets"), torch.ones(2))
    tree["method"].pop("targets")
    assert joined == tree


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_state_round_trip(fused, tmp_path: Path):
    def build() -> tuple[torch.nn.Linear, torch.optim.Adam, dict]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters(), fused=fused)
        return model, optimizer, dict(model.named_parameters())

    def step(model: torch.nn.Linear, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        model(torch.arange(3.0)).square().sum().backward()
        optimizer.step()

    model, optimizer, names = build()
    step(model, optimizer)
    tensors = optimizer_tensors(optimizer, {p: n for n, p in names.items()})
    other, fresh, own = build()
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(fresh, {k: v.clone() for k, v in tensors.items()}, own)
    step(model, optimizer)
    step(other, fresh)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(RunError, match="'foreign'"):
        load_optimizer_tensors(fresh, {"exp_avg/foreign": torch.ones(1)}, own)
