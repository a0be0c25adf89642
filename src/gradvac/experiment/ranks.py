"""A run on several ranks: ``torchrun --nproc-per-node 2 -m gradvac train recipe.yaml``.

Every rank trains on its part of the same batches and takes the same steps. Rank 0 writes the run's
folder; the others keep theirs in a temporary one that is thrown away. All of them validate all of
the text, alike.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch.distributed.rendezvous import rendezvous

from gradvac.engine import Engine
from gradvac.engine.distributed import add_gradients, cost
from gradvac.engine.ranks import Ranks
from gradvac.errors import NotFiniteError, RankError
from gradvac.experiment import replay
from gradvac.experiment.checkpoint import newest_complete
from gradvac.experiment.disk import Outbox
from gradvac.experiment.display import Display
from gradvac.experiment.job import Job, TaskBatch
from gradvac.experiment.prepare import Prepared, open_prepared
from gradvac.experiment.recipe import Recipe, dump_recipe
from gradvac.experiment.train import Trainer
from gradvac.experiment.translation_job import TranslationJob
from gradvac.experiment.updates import Updates
from gradvac.translation.batches import Batch

# Until a rank that says nothing is given up. Chosen here: longer than a validation or a checkpoint
# of the others takes.
TIMEOUT = timedelta(minutes=30)


def started_by_torchrun() -> bool:
    """Whether this process is one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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
    on_gpu = recipe.device.startswith("cuda") or (
        recipe.device == "auto" and torch.cuda.is_available()
    )
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    # torchrun keeps one store for all its restarts: without a prefix of their own, ranks find the
    # addresses of those before them there, and wait for the dead.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.distributed_c10d.PrefixStore(f"gradvac-attempt-{attempt}", store)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)
    try:
        ranks = Ranks(dist.distributed_c10d._get_default_group())
        with ExitStack() as stack:
            prepared = _prepared(ranks, recipe, prepare)
            job = SharedJob(prepared, ranks)
            quiet = Console(quiet=True)
            if ranks.rank:
                scratch = stack.enter_context(tempfile.TemporaryDirectory())
                job.folder = Path(scratch)
            tensorboard = job.folder / "tensorboard" if recipe.training.tensorboard else None
            display = Display(quiet if ranks.rank else console, tensorboard)
            return RankTrainer(job, display, ranks, prepared.folder).train()
    finally:
        dist.destroy_process_group()


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
    folder, error = "", ""
    prepared = None
    failure: Exception | None = None
    if ranks.rank == 0:
        try:
            prepared = prepare()
            folder = str(prepared.folder.resolve())
        except Exception as e:
            error, failure = f"{type(e).__name__}: {e}", e
    said = ranks.messages({"folder": folder, "error": error})[0]
    if failure:
        raise failure
    if said["error"]:
        raise RankError(f"rank 0 could not prepare the run: {said['error']}")
    if prepared is None and not Path(said["folder"]).exists():
        raise RankError(
            f"rank {ranks.rank} does not see {said['folder']}, which rank 0 prepared; a run must "
            "be on a file system that all ranks share"
        )
    return prepared or open_prepared(Path(said["folder"]))


class SharedJob(TranslationJob):
    """Translation on this rank's part of each batch: a stretch of it, so that it has few tasks."""

    def __init__(self, prepared: Prepared, ranks: Ranks) -> None:
        super().__init__(prepared)
        self.ranks = ranks

    def batch(self, number: int) -> Batch:
        """Return this rank's sentence pairs, perhaps none."""
        return self.balance.plan(number, self.ranks.rank, self.ranks.size, together=True)

    def describe(self) -> list[str]:
        """Add what the ranks send each other in a step."""
        first = [
            len(self.balance.plan(0, r, self.ranks.size, together=True).present)
            for r in range(self.ranks.size)
        ]
        all_tasks = len(self.balance.plan(0).present)
        count = sum(p.numel() for p in self.model.parameters())
        per_rank = sum(first) / len(first)
        model = cost(count, self.ranks.size, all_tasks, per_rank, 1)
        sent = model.sent if self.recipe.method.name != "joint" else model.plain
        line = (
            f"{self.ranks.size} ranks, {per_rank:.1f} of {all_tasks} directions on each in the "
            f"first batch: a rank sends {sent / 1e6:,.1f} MB in a step, plain training "
            f"{model.plain / 1e6:,.1f} MB"
        )
        return [*super().describe(), line]


class RankUpdates(Updates):
    """Updates that every rank makes alike, each from its part of the batch."""

    def __init__(self, job: Job, outbox: Outbox, ranks: Ranks) -> None:
        super().__init__(job, outbox)
        self.ranks = ranks
        self._tokens, self._loss = 0, 0.0

    def make(self, learned: Any) -> tuple[int, str]:
        """One update; the tokens all ranks saw, and what there is to tell."""
        window = self.window
        nll, tokens, padding = dict(window.nll), dict(window.tokens), window.padding
        _, note = super().make(learned)
        window = self.window  # a skipped step brings the one before back
        own = {
            task: [window.nll[task] - nll.get(task, 0.0), window.tokens[task] - tokens.get(task, 0)]
            for task in window.nll
        }
        said = self.ranks.messages({"counted": own, "padding": window.padding - padding})
        for message in said:
            for task, (sum_, count) in message["counted"].items():
                nll[task] = nll.get(task, 0.0) + sum_
                tokens[task] = tokens.get(task, 0) + count
        window.nll, window.tokens = nll, tokens
        window.padding = padding + sum(m["padding"] for m in said) / self.ranks.size
        return self._tokens, note

    def _gradient(self, batches: list[TaskBatch], tokens: int) -> tuple[float, float]:
        """Set ``p.grad`` from the parts of all ranks; memory that runs out is not made up for."""
        total = torch.tensor([float(tokens)], dtype=torch.float64, device=self.ranks.device)
        self.ranks.sum(total)()
        self._tokens = int(total)
        loss, norm = self._try(batches, self._tokens)
        return (loss if self.engine else self._loss), norm

    def _seed(self) -> None:
        """Other dropout masks on each rank: its samples are others."""
        seed = replay.step_seed(self.recipe.seed, self.step)
        torch.manual_seed((seed + self.ranks.rank * 0x632BE59BD9B4E019) % 2**63)

    def _backward_jointly(self, batch: TaskBatch, tokens: int) -> float:
        self._seed()
        return super()._backward_jointly(batch, tokens) if len(batch.task) else 0.0

    def _combine_tasks(self, engine: Engine, batches: list[TaskBatch], tokens: int) -> float:
        self._seed()
        report = None
        present = [batch for batch in batches if len(batch.task)]
        counts: dict[str, int] = {}
        for batch in present:
            for task, own in batch.counts.items():
                counts[task] = counts.get(task, 0) + own
        shares = {task: count / tokens for task, count in counts.items()}
        for batch in present:
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

    def _clip(self) -> float:
        if self.engine is None:
            add_gradients(self.ranks, list(self.model.parameters()))
        return super()._clip()

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

    def __init__(self, job: Job, display: Display, ranks: Ranks, folder: Path) -> None:
        super().__init__(job, display)
        self.ranks, self.run, self.processes = ranks, folder, ranks.size
        if ranks.rank:
            self.outbox = _Nowhere()
        self.updates = RankUpdates(job, self.outbox, ranks)

    def train_step(self) -> int:
        """One update; afterwards all ranks know whether one of them was asked to stop."""
        tokens = super().train_step()
        stops = [message["stop"] for message in self.ranks.messages({"stop": self.stop.number})]
        self.stop.number = next((stop for stop in stops if stop), None)
        return tokens

    def _save(self) -> None:
        if not self.ranks.rank:
            super()._save()

    def _finish(self) -> int:
        return 0 if self.ranks.rank else super()._finish()

    def _resume(self) -> None:
        """Resume on rank 0, which may repair the folder, and then on the others."""
        if not self.ranks.rank:
            super()._resume()
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
