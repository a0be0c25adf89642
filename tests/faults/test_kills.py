"""Processes that die: at every stage of a save, at any moment, by signals, and beside others."""

import errno
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from gradvac.errors import RunError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.run.checkpoint import list_checkpoints, load_checkpoint
from gradvac.experiment.run.files import SCORES, TRANSLATIONS, write_scored
from gradvac.experiment.run.lock import alone
from gradvac.experiment.training import process
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.process import StopSignal
from gradvac.reading import read_json
from tests.faults.bench import RUN, SETS, copy, everything, in_child, said, start, train, trainer
from tests.turns import by_turns

# 6 moments on every change; all 50: FAULT_MOMENTS=50 python -m pytest tests/faults
MOMENTS = int(os.environ.get("FAULT_MOMENTS", "6"))
KILLS_OF_A_RUN = 3


def die_in_call(number: int) -> None:
    """Let this process die in its ``number``-th call of the file system from now."""
    count = 0

    def die(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open" or event.startswith(("os.", "shutil.")):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)


def die_in_every_call(again: bool) -> int:
    """Train to step 8; there, processes die one in each call of the file system of a save.

    ``again``: the step was saved before. Each leaves a folder named by the call it died in.
    """
    t = trainer()
    save = t._save

    def die_at(call: int) -> int:
        die_in_call(call)
        save()
        return 0

    def saving() -> None:
        if t.step < 8:
            return save()
        if again:
            save()
        for call in range(1, 200):
            folder = copy(Path(), Path("..") / f"call-{call}")
            ended = in_child(folder, lambda call=call: die_at(call))
            if ended == 0:  # it had no call of that number
                shutil.rmtree(folder)
                os._exit(0)
            assert ended == -signal.SIGKILL
        return None

    t._save = saving
    return t.train()


@pytest.mark.parametrize("again", by_turns([False, True]))
def test_sigkill_at_every_stage_of_a_save(case, whole, again):
    assert in_child(case, lambda: die_in_every_call(again)) == 0
    kept = {f"step-0000000{n}" for n in ((8,) if again else (4, 8))}
    folders = sorted(case.parent.glob("call-*"))
    assert len(folders) > 20
    seen = set()
    for folder in folders:
        checkpoints = folder / RUN / "checkpoints"
        names = frozenset(str(p.relative_to(checkpoints)) for p in checkpoints.rglob("*"))
        for saved in list_checkpoints(checkpoints):
            assert load_checkpoint(saved).step in (4, 8)
        assert kept & {name.strip(".").removesuffix(".old") for name in names}, names
        if names in seen:  # as when it died a call before
            continue
        seen.add(names)
        assert in_child(folder, train) == 0
        assert everything(folder) == everything(whole), names
        assert not list(checkpoints.glob(".*"))
    assert len(seen) >= 5


@pytest.mark.parametrize("run", range(-(-MOMENTS // KILLS_OF_A_RUN)))
def test_sigkill_at_random_moments(case, whole, run):
    """Killed again and again, it goes on from where it was."""
    rng = random.Random(run)
    began = time.monotonic()
    assert in_child(copy(case, case.with_name("timed")), train) == 0
    lasts = time.monotonic() - began
    for _ in range(KILLS_OF_A_RUN):
        child = start(case, train)
        time.sleep(rng.random() * lasts)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, -signal.SIGKILL)
    assert in_child(case, train) == 0
    assert everything(case) == everything(whole)


def test_sigkill_at_every_stage_of_scoring(tmp_path):
    """Scores are of the translations beside them, or there are none."""
    score = lambda folder, n: write_scored(folder, TRANSLATIONS, [{"n": n}] * n, {"n": n})

    def again(call: int) -> int:
        die_in_call(call)
        score(Path(), 2)
        return 0

    for call in range(1, 100):
        folder = tmp_path / f"{call}"
        folder.mkdir()
        score(folder, 1)
        ended = in_child(folder, lambda call=call: again(call))
        lines = (folder / TRANSLATIONS).read_text().splitlines()
        assert len(lines) in (1, 2)
        if (folder / SCORES).exists():
            assert read_json(folder / SCORES)["n"] == len(lines)
        score(folder, 3)
        assert sorted(os.listdir(folder)) == [SCORES, TRANSLATIONS]  # what was left is gone
        if ended == 0:
            break
    assert 20 < call < 99


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.9, 0.97, 0.995])
def test_sigkill_while_a_run_is_prepared(fresh, tmp_path, share):
    """What is left is no run; prepared again it is the one that nothing happened to."""
    calls = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal calls
        calls += event == "open" or event.startswith(("os.", "shutil."))

    def counted() -> int:
        sys.addaudithook(count)
        prepared()
        Path("calls").write_text(str(calls))
        return 0

    def prepared() -> int:
        prepare(load_recipe(Path("recipe.yaml"), SETS), RUN, lambda text: None)
        return 0

    def killed(call: int) -> int:
        die_in_call(call)
        return prepared()

    case = tmp_path / "case"
    shutil.copytree(fresh, case, ignore=shutil.ignore_patterns(RUN.name))
    whole = copy(case, tmp_path / "whole")
    assert in_child(whole, counted) == 0
    call = int(share * int((whole / "calls").read_text()))
    assert in_child(case, lambda: killed(call)) == -signal.SIGKILL
    assert in_child(case, prepared) == 0
    # A write that was killed at its very end leaves its folder to the next write beside it.
    left = lambda f: any(part.startswith(".gradvac-") for part in f.parts)
    files = lambda run: {
        f.relative_to(run): f for f in run.rglob("*") if f.is_file() and not left(f)
    }
    own, other = files(case / RUN), files(whole / RUN)
    assert own.keys() == other.keys()
    differ = [f for f in own if own[f].read_bytes() != other[f].read_bytes()]
    assert {f.name for f in differ} == {"recipe.yaml", "account.json"}  # which name the corpora


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_at_the_next_step_with_a_checkpoint(case, whole, number):
    def stopped() -> int:
        t = trainer()
        step = t.train_step

        def signalled() -> int:
            if t.step == 6:
                os.kill(os.getpid(), number)
            return step()

        t.train_step = signalled
        return t.train()

    assert in_child(case, stopped) == 128 + number
    assert list_checkpoints(case / RUN / "checkpoints")[-1].name == "step-00000007"
    assert in_child(case, train) == 0
    assert everything(case) == everything(whole)


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    def twice() -> int:
        stop = StopSignal()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGINT)
            return 0

    assert in_child(tmp_path, twice) == -signal.SIGINT


def test_a_signal_handed_on_by_a_launcher_is_no_second_one(tmp_path):
    """To a rank the same signal is the first one for a while; another, or a later one, ends it."""

    def thrice(last: int, wait: float) -> int:
        process.GRACE = 0.2
        stop = StopSignal(shared=True)
        with stop.listening():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.heard == signal.SIGTERM and stop.number is None
            time.sleep(wait)
            os.kill(os.getpid(), last)
            return 0

    assert in_child(tmp_path, lambda: thrice(signal.SIGINT, 0)) == -signal.SIGINT
    assert in_child(tmp_path, lambda: thrice(signal.SIGTERM, 0.3)) == -signal.SIGTERM


def test_a_second_process_on_the_folder_is_refused(case, whole):
    with alone(case / RUN):
        assert in_child(case, train) == 2
    assert "another process is training this run" in said(case)
    assert in_child(case, train) == 0
    assert everything(case) == everything(whole)


def test_a_clock_that_goes_back_changes_nothing(case, whole):
    def backwards() -> int:
        now = iter(range(10**9, 0, -3600))
        time.time = lambda: float(next(now))
        t = trainer()
        t.stop.number = signal.SIGTERM  # after one step
        assert t.train() == 128 + signal.SIGTERM
        for n, file in enumerate(sorted(Path(RUN).rglob("*"))):
            os.utime(file, (2e9 - n * 1e6,) * 2)
        return train()

    assert in_child(case, backwards) == 0
    assert everything(case) == everything(whole)


def test_a_folder_that_is_being_prepared_is_refused(fresh, tmp_path):
    case = tmp_path / "case"
    shutil.copytree(fresh, case, ignore=shutil.ignore_patterns("tasks.json"))
    with alone(case / RUN):
        assert in_child(case, train) == 2
    assert f"error: {RUN}: another process is preparing this folder" in said(case)


def test_a_file_system_without_locks_is_named(case, monkeypatch):
    def none(*args) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    assert in_child(case, train) == 2
    assert f"error: {RUN}: cannot be locked against other processes: No locks" in said(case)


def test_a_damaged_lock_is_no_lock(case):
    """The kernel's lock goes with its process: what is left of the file locks nobody out."""
    (case / RUN / ".lock").write_text("12345")
    with alone(case / RUN), pytest.raises(RunError, match="another process"), alone(case / RUN):
        pass
