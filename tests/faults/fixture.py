"""Write tests/fixtures anew: a run of this version, stopped at step 8, and what it logs to the end.

    python -m tests.faults.fixture

Only when the numbers of training are meant to change, which the commit then says. The run that is
there stays: it is what users of that version have.
"""

from __future__ import annotations

import shutil
import signal
import tarfile
import tempfile
from pathlib import Path

from tests.faults.bench import RUN, copy, in_child, make_toy, train, trainer

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD_RUN = FIXTURES / "run-0.1.tar.xz"
GOLDEN = FIXTURES / "golden.jsonl"


def stop_at_8() -> int:
    """Train to step 8 and stop, as by SIGTERM."""
    t = trainer()
    step = t.train_step

    def stopping() -> int:
        if t.step == 7:
            t.stop.number = signal.SIGTERM
        return step()

    t.train_step = stopping
    return t.train()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run-0.1"
        folder.mkdir()
        make_toy(folder)
        recipe = folder / RUN / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace(str(folder), "/corpora"))
        whole = copy(folder, Path(name) / "whole")
        assert in_child(whole, train) == 0
        shutil.copy(whole / RUN / "metrics.jsonl", GOLDEN)
        if not OLD_RUN.exists():
            assert in_child(folder, stop_at_8) == 128 + signal.SIGTERM
            shutil.rmtree(folder / RUN / "checkpoints" / "step-00000004")
            with tarfile.open(OLD_RUN, "w:xz", preset=9) as archive:
                archive.add(folder, "run-0.1", filter=_nobody)
        print(f"{OLD_RUN.stat().st_size:,} bytes, {GOLDEN.stat().st_size:,} bytes")


def _nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
