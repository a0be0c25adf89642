"""A run on several ranks: ``torchrun --nproc-per-node 2 -m gradvac train recipe.yaml``.

Every rank trains on its part of the same batches, validates on its part of the text and takes the
same steps. Rank 0 writes the run's folder; the others keep theirs in a temporary one that is thrown
away. With ``training.shard`` each holds its rows of all parameters, and writes them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gradvac.engine import Engine, StepReport
from gradvac.engine.distributed import Reduction, cost
from gradvac.engine.ranks import Ranks
from gradvac.errors import NotFiniteError, RankError, RecipeError
from gradvac.experiment import replay
from gradvac.experiment.checkpoint import Checkpoint, newest_complete, save_checkpoint
from gradvac.experiment.disk import Outbox
from gradvac.experiment.display import Display
from gradvac.experiment.job import TaskBatch
from gradvac.experiment.lookout import lookout
from gradvac.experiment.prepare import Prepared, open_prepared
from gradvac.experiment.process import StopSignal
from gradvac.experiment.recipe import Recipe, dump_recipe
from gradvac.experiment.shards import shard_model, whole, write_shards
from gradvac.experiment.together import joined
from gradvac.experiment.train import Trainer
from gradvac.experiment.translation_job import TranslationJob
from gradvac.experiment.updates import Updates
from gradvac.translation.batches import Batch

SHARDS_FROM = (2, 9)
"""The first torch whose HuggingFaceStorageWriter has ``save_distributed``; 2.8 has the rest."""


def train_on_ranks(
    recipe: Recipe,
    prepare: Callable[[], Prepared],
    console: Console,
) -> int:
    """Train as one of the ranks that torchrun started; returns the exit code.

    ``prepare`` makes the run's folder; rank 0 calls it, the others open what it left.

    Raises:
        RankError: if another rank failed or is gone; it names the rank and its reason.
    """
    with joined(recipe.device) as ranks, ExitStack() as stack:
        prepared = _prepared(ranks, recipe, prepare)
        job = SharedJob(prepared, ranks)
        quiet = Console(quiet=True)
        if ranks.rank:
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            job.folder = Path(scratch)
        tensorboard = job.folder / "tensorboard" if recipe.training.tensorboard else None
        display = Display(quiet if ranks.rank else console, tensorboard)
        with lookout(ranks):
            return RankTrainer(job, display, ranks, prepared.folder).train()


def _prepared(ranks: Ranks, recipe: Recipe, prepare: Callable[[], Prepared]) -> Prepared:
    """Let rank 0 prepare the folder; refuse ranks with different recipes."""
    own = dump_recipe(recipe)
    texts = [message["recipe"] for message in ranks.messages({"recipe": own})]
    for r, text in enumerate(texts):
        if text != texts[0]:
            pairs = zip(text.splitlines(), texts[0].splitlines(), strict=False)
            line = next((f"{a!r} and {b!r}" for a, b in pairs if a != b), "their lengths")
            raise RankError(
                f"the recipes of rank {r} and rank 0 differ: {line}; give them the same"
            )
    prepared = ranks.first(prepare)  # which may take longer than any collective waits
    folder = str(prepared.folder.resolve()) if prepared else ""
    folder = ranks.messages({"folder": folder})[0]["folder"]
    if prepared is None and not Path(folder).exists():
        raise RankError(
            f"rank {ranks.rank} does not see {folder}, which rank 0 prepared; a run must "
            "be on a file system that all ranks share"
        )
    return prepared or open_prepared(Path(folder))


class SharedJob(TranslationJob):
    """Translation on this rank's part of each batch: a stretch of it, so that it has few tasks."""

    def __init__(self, prepared: Prepared, ranks: Ranks) -> None:
        super().__init__(prepared)
        self.ranks, self.sharded = ranks, self.recipe.training.shard
        if self.sharded:
            check_shard(prepared.recipe)
            layers = [*self.model.encoder.layers, *self.model.decoder.layers]
            shard_model(self.model, layers, self.device)

    def batch(self, number: int) -> Batch:
        """Return this rank's sentence pairs, perhaps none."""
        return self.balance.plan(number, self.ranks.rank, self.ranks.size, together=True)

    def tokens(self, number: int) -> int:
        """Return the target tokens of a batch on all ranks together."""
        return self.balance.plan.target_tokens(number)

    def stand_in(self, number: int) -> Batch:
        """Return a sentence pair of a batch, for a rank that has none and gathers with the rest."""
        return self.balance.plan(number).first(1)

    def validation_batches(self, tasks: tuple[str, ...]) -> Iterator[tuple[int, Batch, bool]]:
        """Every R-th batch; ranks that gather parameters together make equally many passes."""
        batches = list(super().validation_batches(tasks))
        for start in range(0, len(batches), self.ranks.size):
            n = start + self.ranks.rank
            if n < len(batches):
                yield batches[n]
            elif self.sharded:
                index, batch, _ = batches[start]
                yield index, batch, False

    def added_up(self, sums: Tensor) -> Tensor:
        """Sums over the ranks."""
        total = sums.to(self.ranks.device or sums.device)
        self.ranks.sum(total)()
        return total.to(sums.device)

    def describe(self) -> list[str]:
        """Add what the ranks send each other in a step."""
        first = [
            len(self.balance.plan(0, r, self.ranks.size, together=True).present)
            for r in range(self.ranks.size)
        ]
        all_tasks = len(self.balance.plan(0).present)
        count = sum(p.numel() for p in self.model.parameters())
        per_rank = sum(first) / len(first)
        model = cost(count, self.ranks.size, all_tasks, per_rank, 1, sharded=self.sharded)
        sent = model.sent if self.recipe.method.name != "joint" else model.plain
        line = (
            f"{self.ranks.size} ranks, {per_rank:.1f} of {all_tasks} directions on each in the "
            f"first batch: a rank sends {sent / 1e6:,.1f} MB in a step, plain training "
            f"{model.plain / 1e6:,.1f} MB"
            + (f"; parameters in {self.ranks.size} shards" if self.sharded else "")
        )
        return [*super().describe(), line]


def check_shard(recipe: Recipe) -> None:
    """Refuse an old torch, and what has a rank make passes of its own: all gather together."""
    if not _is_recent(torch.__version__):
        raise RecipeError(
            f"training.shard: true needs torch {'.'.join(map(str, SHARDS_FROM))} or newer, which "
            f"writes checkpoints in shards; found {torch.__version__}"
        )
    if recipe.method.engine == "per_task" and recipe.method.name != "joint":
        raise RecipeError(
            "training.shard: true with method.engine: per_task, where a rank makes a forward pass "
            "for each of its directions and another rank has others; use method.engine: single_pass"
        )
    if recipe.batches.sampling == "multidds_s":
        raise RecipeError(
            "training.shard: true with batches.sampling: multidds_s, which takes gradients of the "
            "whole model on every rank; use temperature or unimax, or training.shard: false"
        )


def _is_recent(version: str) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) >= SHARDS_FROM


class RankUpdates(Updates):
    """Updates that every rank makes alike, each from its part of the batch."""

    def __init__(self, job: SharedJob, outbox: Outbox, ranks: Ranks) -> None:
        super().__init__(job, outbox)
        self.shared, self.ranks = job, ranks
        self._tokens, self._loss = 0, 0.0
        self._untold: dict[str, Any] = {}  # what this rank counted in the last step
        self._last: TaskBatch | None = None  # of the step, with samples
        plain = self.engine is None and not job.sharded
        self._reduction = Reduction(ranks, list(self.model.parameters())) if plain else None

    def make(self, learned: Any) -> tuple[int, str]:
        """One update; the tokens all ranks saw, and what there is to tell.

        What this rank counted goes to the others with a message of the next step.
        """
        window = self.window
        nll, tokens, padding = dict(window.nll), dict(window.tokens), window.padding
        _, note = super().make(learned)
        window = self.window  # a skipped step brings the one before back
        own = {
            task: [window.nll[task] - nll.get(task, 0.0), window.tokens[task] - tokens.get(task, 0)]
            for task in window.nll
        }
        self._untold = {"counted": own, "padding": window.padding - padding}
        window.nll, window.tokens, window.padding = nll, tokens, padding
        return self._tokens, note

    def say(self, **also: Any) -> None:
        """Send what is untold, and more, along with the next message."""
        self.ranks.beside = self._untold | also

    def hear(self) -> list[dict[str, Any]]:
        """Count what the ranks said, in a message of its own if there has been none since."""
        if self.ranks.beside is not None:
            self.ranks.messages({})
        heard, self.ranks.heard, window = self.ranks.heard, [], self.window
        for said in heard:
            for message in said:
                for task, (sum_, count) in message.get("counted", {}).items():
                    window.nll[task] = window.nll.get(task, 0.0) + sum_
                    window.tokens[task] = window.tokens.get(task, 0) + count
            window.padding += sum(m.get("padding", 0.0) for m in said) / self.ranks.size
        return [message for said in heard for message in said]

    def tell(self) -> None:
        """Let the window be that of all ranks, before it is read."""
        self.say()
        self.hear()
        self._untold = {}

    def _gradient(self, batches: list[TaskBatch], tokens: int) -> tuple[float, float]:
        """Set ``p.grad`` from the parts of all ranks; memory that runs out is not made up for."""
        micro = self.recipe.batches.accumulate
        first = self.step * micro
        self._tokens = sum(self.shared.tokens(n) for n in range(first, first + micro))
        self._last = next((batch for batch in reversed(batches) if len(batch.task)), None)
        loss, norm = self._try(batches, self._tokens)
        return (loss if self.engine else self._loss), norm

    def _seed(self) -> None:
        """Other dropout masks on each rank: its samples are others."""
        seed = replay.step_seed(self.recipe.seed, self.step)
        torch.manual_seed((seed + self.ranks.rank * 0x632BE59BD9B4E019) % 2**63)

    def _backward_jointly(self, batch: TaskBatch, tokens: int) -> float:
        self._seed()
        if len(batch.task):
            during = (
                self._reduction.during if self._reduction and batch is self._last else nullcontext
            )
            with during():
                return super()._backward_jointly(batch, tokens)
        if self.shared.sharded:
            (self.job.losses(self._stand_in(0))[0].sum() * 0).backward()
        return 0.0

    def _stand_in(self, micro: int) -> Batch:
        number = self.step * self.recipe.batches.accumulate + micro
        return self.shared.stand_in(number).to(self.job.device)

    def _combine_tasks(self, engine: Engine, batches: list[TaskBatch], tokens: int) -> float:
        self._seed()
        report = None
        present = [batch for batch in batches if len(batch.task)]
        counts: dict[str, int] = {}
        for batch in present:
            for task, own in batch.counts.items():
                counts[task] = counts.get(task, 0) + own
        shares = {task: count / tokens for task, count in counts.items()}
        if self.shared.sharded:
            report = self._combine_shards(engine, batches, tokens, shares)
        for batch in present if not self.shared.sharded else ():
            if self.recipe.method.engine == "per_task":
                for index in batch.present:
                    loss, nll, _ = self.job.losses(batch.of_task(index))
                    engine.accumulate({batch.tasks[index]: loss.sum() / tokens})
                    self.window.add(batch.tasks[index], nll)
                continue
            with engine.tasks((batch.task, batch.tasks)):
                loss, nll, rows = self.job.losses(batch)
                if len(batches) == 1:
                    report = engine.backward(loss / tokens, rows, step=self.step, shares=shares)
                else:
                    engine.accumulate(loss / tokens, rows)
            self._count(batch, nll, rows)
        report = report or engine.combine(step=self.step, shares=shares)
        self.window.observe(report)
        self._report = report
        return float(report.losses.sum())

    def _combine_shards(
        self, engine: Engine, batches: list[TaskBatch], tokens: int, shares: dict[str, float]
    ) -> StepReport:
        """Make a pass for every batch, on a sentence that does not count where there is none."""
        report: StepReport | None = None
        for n, batch in enumerate(batches):
            counts = bool(len(batch.task))
            own: TaskBatch = batch if counts else self._stand_in(n)
            for index in own.present:
                shares.setdefault(own.tasks[index], 0.0)
            with engine.tasks((own.task, own.tasks)):
                loss, nll, rows = self.job.losses(own)
                loss = loss / tokens
                mask = torch.full_like(loss, float(counts))
                if len(batches) > 1:
                    engine.accumulate(loss, rows, mask)
                else:
                    report = engine.backward(loss, rows, mask, step=self.step, shares=shares)
            if counts:
                self._count(batch, nll, rows)
        return report or engine.combine(step=self.step, shares=shares)

    def _clip(self) -> float:
        if self._reduction:
            self._reduction.finish()
        limit = self.recipe.training.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        return float(whole(norm))

    def _check_finite(self, loss: float, norm: float) -> None:
        """Check the losses of all ranks, so that all of them skip a step or none."""
        if self.engine:
            return super()._check_finite(loss, norm)
        losses = [message["loss"] for message in self.ranks.messages({"loss": loss})]
        self._loss = sum(losses)
        bad = [r for r, each in enumerate(losses) if not math.isfinite(each)]
        if bad:
            raise NotFiniteError(
                f"the loss on rank {bad[0]} is not finite at step {self.step}; nothing was updated"
            )
        super()._check_finite(self._loss, norm)


class _Nowhere(Outbox):
    """Where what only rank 0 writes goes on the others."""

    def put(self, write: Callable[[], None]) -> None:
        """Write nothing."""


class RankTrainer(Trainer):
    """A trainer among others, that stops when one of them is told to.

    ``folder`` is the run's, where rank 0 writes and from which all of them resume.
    """

    def __init__(self, job: SharedJob, display: Display, ranks: Ranks, folder: Path) -> None:
        super().__init__(job, display)
        self.shared, self.ranks, self.run, self.processes = job, ranks, folder, ranks.size
        if ranks.rank:
            self.outbox = _Nowhere()
        self.updates: RankUpdates = RankUpdates(job, self.outbox, ranks)
        self.stop = StopSignal(shared=True)

    def train_step(self) -> int:
        """One update; afterwards all ranks know whether one of them was asked to stop."""
        self.updates.say(stop=self.stop.heard)
        tokens = super().train_step()
        stops = [message["stop"] for message in self.updates.hear()]
        self.stop.number = next((stop for stop in stops if stop), None)
        return tokens

    def _log(self) -> None:
        self.updates.tell()
        super()._log()

    def _save(self) -> None:
        """Save on rank 0, or the shards of all; afterwards all know whether the disk took it."""
        self._told = False
        self.updates.tell()
        if not self.ranks.rank:
            super()._save()
            if not self._told:
                self._write_shards("")  # it came to nothing, and the others wait
        else:
            with suppress(OSError):  # of whatever rank: rank 0 tells
                self._write_shards("")
        unsaved = self.ranks.messages({"unsaved": self.unsaved})
        self.unsaved = unsaved[0]["unsaved"]

    def _write_checkpoint(self, folder: Path, checkpoint: Checkpoint) -> None:
        together = lambda new: self._write_shards(str(new.resolve()))
        save_checkpoint(folder, checkpoint, together if self.shared.sharded else None)

    def _write_shards(self, folder: str) -> None:
        """Write this rank's rows where rank 0 says, if it says so."""
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
            if not self.ranks.rank:  # a parameter after the other: no rank holds all of them
                found[name] = gathered.cpu().clone()
        return found

    def _finish(self) -> int:
        """End on all ranks alike, if rank 0 finds that there is something to do."""
        done = self.ranks.messages({"done": (self.folder / "done.json").exists()})[0]["done"]
        return 0 if self.ranks.rank and done else super()._finish()

    def _resume(self) -> None:
        """Resume on rank 0, which may repair the folder, and then on the others."""
        self.ranks.first(super()._resume)
        steps = [message["step"] for message in self.ranks.messages({"step": self.step})]
        if self.ranks.rank and steps[0]:
            found = newest_complete(self.run / "checkpoints")
            if found is None or found[1].step != steps[0]:
                raise RankError(
                    f"rank {self.ranks.rank} does not find the checkpoint of step {steps[0]} that "
                    f"rank 0 resumes from in {self.run}"
                )
            saved, checkpoint, _ = found
            self._check_fits(checkpoint, saved)
            self.updates.restore(checkpoint, saved)
            self.job.load_state_dict(checkpoint.state.get("balance", {}))
            self.best = checkpoint.state["best"]
