"""What torchrun starts three of: runs in shards on 1 to 3 ranks, each gone on with by 1 to 3.

torchrun --nproc-per-node=3 -m tests.experiment.training.ranks.resumes FOLDER
with a toy recipe in FOLDER.
"""

import os
import shutil
import signal
import sys
from itertools import product
from pathlib import Path

import torch

from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.kind import job_of
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.ranks import RankTrainer, train_on_ranks
from gradvac.experiment.training.train import Trainer
from tests.experiment.training.ranks.verbs import METHOD, QUIET, SHARD

SIZES = (1, 2, 3)
HALF, END = 2, 4
SETTINGS = [*METHOD, f"training.steps={END}", "training.checkpoint_every=2", SHARD]


def train(folder: Path, name: str, size: int) -> int:
    """Train as one of the first ``size`` ranks; at once as any other."""
    rank = int(os.environ["RANK"])
    if rank >= size:
        return 0
    recipe = load_recipe(folder / "recipe.yaml", SETTINGS)
    begin = lambda: prepare(recipe, folder / name, lambda line: None).folder
    if size == 1:
        return Trainer(job_of(begin()), Display(QUIET)).train()
    os.environ["WORLD_SIZE"] = str(size)
    return train_on_ranks(recipe, begin, QUIET)[1]


def stopping(train_step):
    """A trainer's step after which it is asked to stop, half way."""

    def step(self: Trainer) -> int:
        tokens = train_step(self)
        if self.step == HALF:
            self.stop.number = signal.SIGTERM
        return tokens

    return step


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    os.chdir(folder)
    train(folder, "alone", 1)
    steps = {kind: kind.__dict__["train_step"] for kind in (Trainer, RankTrainer)}
    for attempt, (size, again) in enumerate(product(SIZES, (0, *SIZES))):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)  # a meeting of their own
        for kind, step in steps.items():
            kind.train_step = step if again else stopping(step)
        name = f"{size}-{again}" if again else f"{size}"
        if again and not int(os.environ["RANK"]):
            shutil.copytree(folder / f"{size}", folder / name)
        train(folder, name, again or size)


if __name__ == "__main__":
    main()
