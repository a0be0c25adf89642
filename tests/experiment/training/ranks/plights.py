"""One of two ranks that nobody looks after: rank 0 prepares for long, then rank 1 is lost.

python -m tests.experiment.training.ranks.plights FOLDER killed|stopped, with a toy recipe in FOLDER
and the variables that torchrun sets; leaves what the rank ended with in FOLDER. Rank 1 is killed
while shards are written, or stopped in a step, so that its connections stay.
"""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from gradvac.engine.ranks import heartbeats as signs
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.training import ranks, together
from gradvac.experiment.training import watchdog as lookout
from gradvac.experiment.training.prepare import prepare
from tests.experiment.training.ranks.verbs import COMMON, QUIET, SHARD

WAITS = 8  # seconds of a collective here
SETTINGS = [*COMMON, "training.steps=4", "training.checkpoint_every=2", SHARD]


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    os.chdir(folder)
    if sys.argv[2] == "killed":
        together.TIMEOUT, signs.ROLL_CALL = timedelta(seconds=WAITS), 2.0
    else:
        lookout.EVERY, lookout.LOOKS, lookout.GRACE = 0.2, 10, 0.2
    recipe = load_recipe(folder / "recipe.yaml", SETTINGS)

    def slowly() -> Path:
        time.sleep(WAITS * 1.5 if sys.argv[2] == "killed" else 0)
        return prepare(recipe, folder / "run", lambda line: None).folder

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stopped(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    if rank == "1" and sys.argv[2] == "killed":
        ranks.write_shards = killed
    elif rank == "1":
        ranks.RankUpdates.make = stopped
    try:
        ranks.train_on_ranks(recipe, slowly, QUIET)
    except BaseException as e:
        (folder / f"said-{rank}").write_text(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
    main()
