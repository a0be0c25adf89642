"""One rank of the tests: does what it is told and leaves what it found in a file.

python -m tests.engine.ranks.worker RANK SIZE FOLDER train|failures|gone
"""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.engine.ranks.cases import cases_of, train
from tests.engine.ranks.failures import FAILURES, until_failed, until_killed
from tests.engine.ranks.late import spoilt_pool


def main() -> None:
    rank, size, folder, what = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    timeout = timedelta(seconds=50)
    dist.init_process_group("gloo", meeting, timeout, rank=rank, world_size=size)
    if what == "train":
        with spoilt_pool():
            found = {case.name: train(case, rank, size) for case in cases_of(size)}
    elif what == "failures":
        found = {name: failure(rank) for name, failure in FAILURES.items()}
        found["amid"] = until_failed(rank)  # the last one: nothing works after it
    else:
        found = {"message": until_killed(rank, lambda: os.kill(os.getpid(), signal.SIGKILL))}
    torch.save(found, folder / f"{rank}.pt")
    if what == "train":
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
