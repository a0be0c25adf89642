"""The children of a sweep: none is lost when the sweep is stopped, none stops the others."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from gradvac.experiment.recipe.load import parse_recipe
from gradvac.experiment.sweep import sweep
from gradvac.experiment.training.process import StopSignal

WORKER = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(number, frame):
    time.sleep(0.3)
    (folder / "saved").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
(folder / "begun").touch()
time.sleep(float(sys.argv[2]))
(folder / "ended").touch()
"""


def jobs_in(folder: Path) -> list[sweep.Job]:
    recipe = parse_recipe({"data": {"train": [{"path": "a.tsv"}]}}, "r")
    jobs = [sweep.Job(name, recipe, folder / name) for name in ("one", "two")]
    for job in jobs:
        job.folder.mkdir()
    return jobs


def run(jobs, monkeypatch, seconds, act) -> tuple[int, str]:
    """Run the jobs by stand-ins for trainers; ``act`` on their processes once all have begun."""
    processes = []

    def begin(folder: Path, gpu: str) -> subprocess.Popen:
        command = [sys.executable, "-c", WORKER, str(folder), str(seconds)]
        (folder / sweep.LOG).touch()
        processes.append(subprocess.Popen(command, start_new_session=True))
        return processes[-1]

    def wait_and_act() -> None:
        while not all((job.folder / "begun").exists() for job in jobs):
            time.sleep(0.01)
        act(processes)

    monkeypatch.setattr(sweep, "start", begin)
    text = io.StringIO()
    stop = StopSignal()
    actor = threading.Thread(target=wait_and_act)
    actor.start()
    with stop.listening():
        code = sweep._run_all(jobs, jobs, ["", ""], Console(file=text), stop)
    actor.join()
    assert all(p.poll() is not None for p in processes)
    return code, text.getvalue()


def test_sigterm_waits_for_every_worker_to_save(tmp_path, monkeypatch):
    jobs = jobs_in(tmp_path)
    code, text = run(jobs, monkeypatch, 60, lambda processes: os.kill(os.getpid(), signal.SIGTERM))
    assert code == 128 + signal.SIGTERM
    assert [(job.folder / "saved").exists() for job in jobs] == [True, True]
    assert [job.error for job in jobs] == ["", ""]
    assert "the same command goes on" in text


def test_a_killed_worker_is_named_and_stops_no_other(tmp_path, monkeypatch):
    jobs = jobs_in(tmp_path)
    code, _ = run(jobs, monkeypatch, 1.0, lambda processes: processes[0].kill())
    assert code == 1
    assert [job.error for job in jobs] == ["killed by signal 9", ""]
    assert not (jobs[0].folder / "ended").exists() and (jobs[1].folder / "ended").exists()
