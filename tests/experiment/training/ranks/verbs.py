"""What torchrun starts in tests: trains in shards, scores and measures, one after the other.

torchrun ... -m tests.experiment.training.ranks.verbs FOLDER, with a toy recipe in FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gradvac.engine.ranks.group import Ranks
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.ranks import RankTrainer, train_on_ranks
from gradvac.experiment.training.together import joined
from gradvac.experiment.translation.evaluate import evaluate_run
from gradvac.experiment.translation.geometry import measure_run

QUIET = Console(quiet=True)
COMMON = ["model.dropout=0", "batches.tokens=120", "training.log_every=2"]
JOINT = [*COMMON, "training.steps=4", "training.average=2", "training.checkpoint_every=2"]
# So few tokens that a rank is without a sentence now and then.
METHOD = [*COMMON, "training.steps=12", "batches.tokens=14", "method.name=gradvac"]
SHARD = "training.shard=true"
STOP = 6


def train(folder: Path, name: str, settings: list[str]) -> int:
    """Train; leaves how many messages hosts exchanged within each step."""
    recipe = load_recipe(folder / "recipe.yaml", [*settings, SHARD])
    counts: list[int] = []
    step, say, said = RankTrainer.train_step, Ranks.messages, [0]

    def counted(self: RankTrainer) -> int:
        before = said[0]
        tokens = step(self)
        counts.append(said[0] - before)
        return tokens

    def saying(self: Ranks, message: dict[str, Any]) -> list[dict[str, Any]]:
        said[0] += 1
        return say(self, message)

    RankTrainer.train_step, Ranks.messages = counted, saying
    try:
        return train_on_ranks(
            recipe, lambda: prepare(recipe, folder / name, lambda line: None).folder, QUIET
        )[1]
    finally:
        RankTrainer.train_step, Ranks.messages = step, say
        (folder / f"{name}-messages-{os.environ['RANK']}").write_text(json.dumps(counts))


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    os.chdir(folder)
    attempt = lambda n: os.environ.__setitem__("TORCHELASTIC_RESTART_COUNT", str(n))
    attempt(0)
    assert train(folder, "joint", JOINT) == 0
    attempt(1)
    step = RankTrainer.train_step

    def stopping(self: RankTrainer) -> int:
        if self.step == STOP - 1 and self.ranks.rank == 1:
            self.stop.heard = signal.SIGTERM  # one rank is told, and all stop
        return step(self)

    RankTrainer.train_step = stopping
    assert train(folder, "method", METHOD) == 128 + signal.SIGTERM
    attempt(2)
    with joined("cpu") as ranks:
        run = folder / "method"
        evaluate_run(run, checkpoint="last", say=lambda line: None, ranks=ranks)
        out = folder / "measured"
        measure_run(run, out, curvature_strings=2, console=QUIET, ranks=ranks)


if __name__ == "__main__":
    main()
