"""Training on several ranks: ``torchrun --nproc-per-node 2 -m gradvac train recipe.yaml``.

Every rank trains on its part of the same batches, validates on its part of the text and makes the
same updates. Rank 0 writes the run's folder; the others write to a temporary folder that is
deleted. With ``training.shard`` each rank holds and writes its rows of all parameters.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from gradvac.engine.ranks.group import Ranks
from gradvac.errors import RankError
from gradvac.experiment.recipe.load import dump_recipe
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.run.checkpoint import Checkpoint, newest_complete, save_checkpoint
from gradvac.experiment.run.disk import Outbox
from gradvac.experiment.run.shards import whole, write_shards
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.job import RankJob
from gradvac.experiment.training.kind import kind_of
from gradvac.experiment.training.process import StopSignal
from gradvac.experiment.training.rank_updates import RankUpdates
from gradvac.experiment.training.together import joined
from gradvac.experiment.training.train import Trainer
from gradvac.experiment.training.watchdog import lookout


def train_on_ranks(
    recipe: BaseRecipe, prepare: Callable[[], Path], console: Console
) -> tuple[Path, int]:
    """Train as one of the ranks of torchrun; returns the run's folder and the exit code.

    ``prepare`` makes the run's folder; only rank 0 calls it, the others open the folder.

    Raises:
        RankError: if another rank failed or is lost; names the rank and the reason.
    """
    with joined(recipe.device) as ranks, ExitStack() as stack:
        folder, kind = _prepared(ranks, recipe, prepare), kind_of(recipe)
        job = kind.rank_job(kind.open(folder), ranks)
        quiet = Console(quiet=True)
        if ranks.rank:
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            job.folder = Path(scratch)
        display = Display(quiet if ranks.rank else console)
        with lookout(ranks):
            return folder, RankTrainer(job, display, ranks, folder).train()


def _prepared(ranks: Ranks, recipe: BaseRecipe, prepare: Callable[[], Path]) -> Path:
    """Rank 0 prepares the folder; RankError if recipes differ or a rank cannot see it."""
    own = dump_recipe(recipe)
    texts = [message["recipe"] for message in ranks.messages({"recipe": own})]
    for r, text in enumerate(texts):
        if text != texts[0]:
            pairs = zip(text.splitlines(), texts[0].splitlines(), strict=False)
            line = next((f"{a!r} and {b!r}" for a, b in pairs if a != b), "their lengths")
            raise RankError(
                f"the recipes of rank {r} and rank 0 differ: {line}; give them the same"
            )
    made = ranks.first(prepare)  # may take longer than the timeout of collectives
    folder = ranks.messages({"folder": str(made.resolve()) if made else ""})[0]["folder"]
    if made is None and not Path(folder).exists():
        raise RankError(
            f"rank {ranks.rank} does not see {folder}, which rank 0 prepared; a run must "
            "be on a file system that all ranks share"
        )
    return made or Path(folder)


class _Nowhere(Outbox):
    """Discards writes, for ranks other than 0."""

    def put(self, write: Callable[[], None]) -> None:
        """Discard a write."""


class RankTrainer(Trainer):
    """A trainer on one of several ranks; all stop when one of them gets a signal.

    ``folder`` is that of the run: rank 0 writes there, all resume from it.
    """

    def __init__(self, job: RankJob[Any], display: Display, ranks: Ranks, folder: Path) -> None:
        super().__init__(job, display)
        self.shared, self.ranks, self.run, self.processes = job, ranks, folder, ranks.size
        if ranks.rank:
            self.outbox = _Nowhere()
        self.updates: RankUpdates = RankUpdates(job, self.outbox, ranks)
        self.stop = StopSignal(shared=True)

    def train_step(self) -> int:
        """One update; afterwards all ranks know whether one of them got a signal."""
        self.updates.say(stop=self.stop.heard)
        tokens = super().train_step()
        stops = [message["stop"] for message in self.updates.hear()]
        self.stop.number = next((stop for stop in stops if stop), None)
        return tokens

    def _open_loggers(self) -> None:
        if not self.ranks.rank:
            super()._open_loggers()

    def _log(self) -> None:
        self.updates.tell()
        super()._log()

    def _save(self) -> None:
        """Save on rank 0, or shards on all; afterwards all know whether saving succeeded."""
        self._told = False
        self.updates.tell()
        if not self.ranks.rank:
            super()._save()
            if not self._told:
                self._write_shards("")  # saving failed, and the others wait
        else:
            with suppress(OSError):  # on any rank; rank 0 reports it
                self._write_shards("")
        unsaved = self.ranks.messages({"unsaved": self.unsaved})
        self.unsaved = unsaved[0]["unsaved"]

    def _write_checkpoint(self, folder: Path, checkpoint: Checkpoint) -> None:
        together = lambda new: self._write_shards(str(new.resolve()))
        save_checkpoint(folder, checkpoint, together if self.shared.sharded else None)

    def _write_shards(self, folder: str) -> None:
        """Write this rank's rows to the folder of rank 0, unless that is empty."""
        self._told = True
        if not self.shared.sharded:
            return
        where = self.ranks.messages({"shards": folder})[0]["shards"]
        if where:
            own = self.updates.checkpoint({})
            tensors = {f"model/{name}": value for name, value in own.model.items()}
            tensors |= {f"optimizer/{name}": value for name, value in own.optimizer.items()}
            write_shards(Path(where), tensors)

    def _parameters(self) -> dict[str, Tensor]:
        found = {}
        for name, value in self.job.model.state_dict().items():
            gathered = whole(value)
            if not self.ranks.rank:  # one parameter at a time, to save memory
                found[name] = gathered.cpu().clone()
        return found

    def _finish(self) -> int:
        """End on all ranks, unless rank 0 finds that the run had finished before."""
        done = self.ranks.messages({"done": self.finished})[0]["done"]
        return 0 if self.ranks.rank and done else super()._finish()

    def _resume(self) -> None:
        """Resume on rank 0 first, which may repair the folder, then on the others."""
        self.ranks.first(super()._resume)
        first = self.ranks.messages({"step": self.step, "best": self.best})[0]
        if self.ranks.rank and first["step"]:
            found = newest_complete(self.run / "checkpoints")
            if found is None or found[1].step != first["step"]:
                raise RankError(
                    f"rank {self.ranks.rank} does not find the checkpoint of step "
                    f"{first['step']} that rank 0 resumes from in {self.run}"
                )
            saved, checkpoint, _ = found
            self._check_fits(checkpoint, saved)
            self.updates.restore(checkpoint, saved)
            self.job.load_state_dict(checkpoint.state.get("balance", {}))
            self.best = first["best"]
