"""One of two ranks that nobody looks after: it waits long for rank 0, then rank 1 is killed.

python -m tests.distributed.plights FOLDER, with a toy recipe in FOLDER and the variables that
torchrun sets; leaves what the rank ended with in FOLDER.
"""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from gradvac.engine import signs
from gradvac.experiment import ranks, together
from gradvac.experiment.prepare import Prepared, prepare
from gradvac.experiment.recipe import load_recipe
from tests.distributed.verbs import COMMON, QUIET, SHARD

WAITS = 8  # seconds of a collective here
SETTINGS = [*COMMON, "training.steps=4", "training.checkpoint_every=2", SHARD]


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    os.chdir(folder)
    together.TIMEOUT, signs.ROLL_CALL = timedelta(seconds=WAITS), 2.0
    recipe = load_recipe(folder / "recipe.yaml", SETTINGS)

    def slowly() -> Prepared:
        time.sleep(WAITS * 1.5)
        return prepare(recipe, folder / "run", lambda line: None)

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == "1":
        ranks.write_shards = killed
    try:
        ranks.train_on_ranks(recipe, slowly, QUIET)
    except BaseException as e:
        (folder / f"said-{rank}").write_text(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
    main()
