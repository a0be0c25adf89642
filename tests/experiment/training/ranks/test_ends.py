"""Threads that would outlive the work of several ranks, and abort a process whose work is done."""

import os
import subprocess
import sys
import threading
import time

from gradvac.experiment.training import watchdog
from tests.experiment.training.ranks.test_run import ROOT


class SlowStore:
    """Signs of life over a store that takes its time."""

    members = (0, 1)

    def __init__(self):
        self.ended_in: list[str] = []
        self.asked = threading.Event()

    def pulse(self):
        self.asked.set()
        time.sleep(0.3)

    def pulse_of(self, other):
        return 1

    def ended(self, other):
        return False

    def failed(self):
        return ""

    def end(self):
        self.ended_in += [t.name for t in threading.enumerate() if t.name.endswith("(_look)")]


class TwoRanks:
    rank, size = 0, 2

    def __init__(self):
        self.signs = SlowStore()


def test_the_lookout_has_ended_when_the_work_ends(monkeypatch):
    monkeypatch.setattr(watchdog, "EVERY", 0.01)
    ranks = TwoRanks()
    with watchdog.lookout(ranks):
        assert ranks.signs.asked.wait(5)  # the thread is at the store
    assert ranks.signs.ended_in == []
    assert not [t for t in threading.enumerate() if t.name.endswith("(_look)")]


def test_no_thread_of_a_group_that_is_garbage_is_left_at_the_end():
    code = """
import atexit, os
def threads():
    at = "/proc/self/task"
    names = [open(f"{at}/{t}/comm").read().strip() for t in os.listdir(at)]
    os.write(1, f"left {[name for name in names if 'gloo' in name]}\\n".encode())
atexit.register(threads)  # after the handler of `joined`: the last registered runs first
from gradvac.experiment.training.together import joined
def work():
    with joined("cpu") as ranks:
        ranks.messages({"here": 1})
        ranks.myself = ranks  # a cycle
work()
"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("left []") == 2, run.stdout
