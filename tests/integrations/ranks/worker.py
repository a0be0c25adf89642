"""One rank of the tests: trains what it is told and leaves what it found in a file.

python -m tests.integrations.ranks.worker RANK SIZE FOLDER
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main() -> None:
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in local.items()})  # as torchrun sets them
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, timedelta(seconds=100), rank=rank, world_size=size)
    from tests.integrations.ranks.cases import on_ranks

    torch.save(on_ranks(folder, rank, size), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
