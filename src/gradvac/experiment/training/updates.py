"""Updates of the parameters: joint, or with a gradient method."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradvac.engine import Engine, StepReport
from gradvac.engine.ranks.group import Ranks
from gradvac.errors import GradientError, NotFiniteError, RecipeError
from gradvac.experiment.recipe.schedule import learning_rate
from gradvac.experiment.run.checkpoint import (
    Checkpoint,
    join_state,
    load_optimizer_tensors,
    optimizer_tensors,
    split_state,
)
from gradvac.experiment.run.disk import Outbox
from gradvac.experiment.run.folder import fill
from gradvac.experiment.run.shards import empty_like, read_shards, rows_of, shapes, whole
from gradvac.experiment.training import replay
from gradvac.experiment.training.build import build_method
from gradvac.experiment.training.job import Job, TaskBatch
from gradvac.experiment.training.memory import halves, is_out_of_memory, too_large
from gradvac.experiment.training.metrics import Unread, Window
from gradvac.experiment.training.way import Way
from gradvac.geometry.record import Frame, GramRecord
from gradvac.methods import CATS
from gradvac.sending import to_device

# A run stops after this many skipped steps in a row. Chosen here: bad batches are isolated, and
# broken parameters never recover.
MOST_SKIPPED = 10


class Updates:
    """The optimizer and the method of a job, and the counts since the last line of the log.

    ``step`` is the number of updates made or skipped. Files of the run are written through
    ``outbox``. The engine uses ``ranks``, if there are any.
    """

    def __init__(self, job: Job[Any], outbox: Outbox, ranks: Ranks | None = None) -> None:
        self.job, self.recipe, self.model, self.outbox = job, job.recipe, job.model, outbox
        training, section = self.recipe.training, self.recipe.method
        self.names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.way = Way(section, job.folder, outbox)
        if ranks is not None and section.engine == "measured":
            raise RecipeError(
                "method.engine: measured with several ranks, each of which would choose by its own "
                "clock; use method.engine: single_pass or per_task"
            )
        self.method = build_method(section, dict(job.levels), self.recipe.seed)
        cats = self.method if isinstance(self.method, CATS) else None
        self._shown = cats if cats and cats.gradients == "validation" else None
        missing = [task for task in job.tasks if task not in job.prepared.valid]
        if self._shown and missing:
            raise RecipeError(
                "method.options.gradients: validation learns from validation gradients, and "
                f"data.valid has no text of {', '.join(missing)}"
            )
        self.engine = self.method and Engine(
            self.model,
            self.method,
            section.granularity,
            engine=None if section.engine == "measured" else section.engine,
            process_group=ranks,
            plan=False,  # a run is resumed to the last bit
        )
        self.record = GramRecord(job.folder / "geometry")
        self.step, self.window = 0, Window.empty()
        self.skipped = 0  # consecutive steps
        self._report: StepReport | None = None  # of the current step, with a method
        self._unread = Unread()

    def make(self, learned: Mapping[str, Any]) -> tuple[int, str]:
        """One update; returns its tokens, and a message if something unusual happened.

        ``learned`` is the state of the job before it began the step.
        """
        micro = self.recipe.batches.accumulate
        numbers = range(self.step * micro, (self.step + 1) * micro)
        batches = [self.job.batch(n) for n in numbers]  # on the host, where they are counted
        tokens = sum(b.tokens for b in batches)
        self._show_validation()
        before, halved = copy.deepcopy(self.window), self.window.halved
        began = time.perf_counter()
        try:
            loss, norm = self._gradient(batches, tokens)
        except NotFiniteError as error:
            self.window = before
            note = f"skipped: {self._skip(error, batches, learned)}"
        else:
            if self.window.halved > halved:
                note = "made in halves: memory ran out"
            else:
                note = self.way.note(self.step, time.perf_counter() - began, tokens)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(self.step + 1)
            self.optimizer.step()
            if self._report and self.recipe.method.records(self.step):
                seen = frame(self._report)
                self.outbox.put(lambda: self.record.append(seen))
            self.window.loss += loss
            self.window.norm += norm
            self.window.padding += sum(b.padding for b in batches) / micro
            self.window.steps += 1
            self.skipped = 0
        self.step += 1
        return tokens, note

    def _show_validation(self) -> None:
        """Give CATS the gradients of validation text, if it learns from them in this step."""
        if self._shown and self._shown.due:
            try:
                self._shown.observe(self.job.held_out(self.step))
            except NotFiniteError as e:
                raise GradientError(f"validation text, before the step: {e}") from e

    def _gradient(self, batches: list[TaskBatch], tokens: int) -> tuple[float, float]:
        """Set ``p.grad``; returns loss and norm. If out of memory, retry in halves.

        Losses are shares of the mean of the whole step and gradients are summed by task, so halves
        make the same step, except for dropout masks and the budget of CLSR.
        """
        before = copy.deepcopy(self.window)
        method = self.engine.state_dict() if self.engine else {}
        try:
            return self._try(batches, tokens)
        except (RuntimeError, MemoryError) as e:
            parts = halves(batches)
            if not is_out_of_memory(e):
                raise
            if len(parts) == len(batches):
                raise too_large(self.recipe, self.step, parts) from e
        # Not in the except clause: there the error still holds the memory.
        self.window = before
        if self.engine:
            self.engine.clear()
            self.engine.load_state_dict(method)  # it may have changed before memory ran out
        self.optimizer.zero_grad(set_to_none=True)
        if self.job.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            made = self._try(parts, tokens)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            raise too_large(self.recipe, self.step, parts) from e
        self.window.halved += 1
        return made

    def _try(self, batches: list[TaskBatch], tokens: int) -> tuple[float, float]:
        torch.manual_seed(replay.step_seed(self.recipe.seed, self.step))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        self._unread = Unread()
        if self.engine is None:
            for batch in batches:
                self._backward_jointly(batch, tokens)
        else:
            self._combine_tasks(self.engine, batches, tokens)
        loss, norm = self._unread.read(self._clip(), self.window)
        self._check_finite(loss, norm)
        return loss, norm

    def learning_rate(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 1."""
        return learning_rate(self.recipe.training, step)

    def _skip(
        self, error: NotFiniteError, batches: list[TaskBatch], learned: Mapping[str, Any]
    ) -> str:
        """Skip the step, if the recipe allows it and not too many in a row were skipped.

        The step is saved for `gradvac replay`; returns a message.
        """
        told = f"{error}; {replay.keep(self.job, batches, self.step, learned, error)}"
        if self.recipe.training.nonfinite == "raise":
            raise GradientError(
                f"{told}; go on without such steps by training.nonfinite=skip, or, in another "
                "folder, lower training.learning_rate or try training.precision=fp32"
            ) from error
        self.skipped += 1
        if self.skipped > MOST_SKIPPED:
            raise GradientError(
                f"{MOST_SKIPPED} steps in a row were skipped, and now {told}; the parameters are "
                "broken: begin anew in another folder with a lower training.learning_rate"
            ) from error
        task = error.task or "joint"
        self.window.skipped[task] = self.window.skipped.get(task, 0) + 1
        return told

    def _backward_jointly(self, batch: TaskBatch, tokens: int) -> None:
        """Gradient of the mean token loss, all tasks in one backward pass."""
        there = batch.to(self.job.device)
        loss, nll, rows = self.job.losses(there)
        mean = loss.sum() / tokens
        beside = self.job.auxiliary_loss()
        total = mean if beside is None else mean + beside * (batch.tokens / tokens)
        total.backward()
        self._unread.losses.append(mean.detach())
        self._count(batch, there, nll, rows)

    def _combine_tasks(self, engine: Engine, batches: list[TaskBatch], tokens: int) -> None:
        """Combine the task gradients with the method, and record its report.

        Each task's loss is its share of the mean token loss; the sum is the joint loss.
        """
        shares = shares_of(batches, tokens)
        report = self._give(engine, batches, tokens, shares, alone=len(batches) == 1)
        report = report or engine.combine(step=self.step, shares=shares)
        self.window.observe(report)
        self._unread.losses.append(report.losses.sum())
        self._report = report

    def _give(
        self,
        engine: Engine,
        batches: Sequence[TaskBatch],
        tokens: int,
        shares: dict[str, float],
        alone: bool,
    ) -> StepReport | None:
        """Run the backward passes of some batches; returns the report if ``alone``.

        Args:
            engine: receives the losses.
            batches: none empty.
            tokens: number in the whole step.
            shares: share of the tokens by task.
            alone: whether the step has one batch only, so that layers are freed one by one.
        """
        report = None
        for batch in batches:
            if self.way.of(self.step) == "per_task":
                for index in batch.present:
                    own = batch.of_task(index)
                    there = own.to(self.job.device)
                    loss, nll, rows = self.job.losses(there)
                    engine.accumulate({batch.tasks[index]: loss.sum() / tokens})
                    self._count(own, there, nll, rows)
                continue
            there = batch.to(self.job.device)
            with engine.tasks((batch.task, batch.tasks)):
                loss, nll, rows = self.job.losses(there)
                if alone:  # combines and frees each layer during the backward pass
                    report = engine.backward(loss / tokens, rows, step=self.step, shares=shares)
                else:
                    engine.accumulate(loss / tokens, rows)
            self._count(batch, there, nll, rows)
        return report

    def _count(self, batch: TaskBatch, there: TaskBatch, nll: Tensor, rows: Tensor) -> None:
        """Add up the NLL by task where it is; ``there`` is the batch on the device."""
        present = to_device(torch.tensor(batch.present, dtype=torch.int64), nll.device)
        own = there.task.index_select(0, rows) == present[:, None]
        # A task that is not finite leaves the others as they are, which a product would not.
        sums = torch.where(own, nll.double(), 0.0).sum(1)
        self._unread.nll.append((batch.counts, sums))

    def _clip(self) -> Tensor:
        """Clip the combined gradient; returns its norm before clipping, on the device."""
        limit = self.recipe.training.clip or math.inf
        return whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))

    def _check_finite(self, loss: float, norm: float) -> None:
        """Check loss and norm of joint training; engines check every task themselves."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        bad = [task for task, nll in self.window.nll.items() if not math.isfinite(nll)]
        task = bad[0] if bad else ""
        what = f"the loss of task {task!r}" if task else "the gradient"
        raise NotFiniteError(f"{what} is not finite at step {self.step}; nothing was updated", task)

    # -- to and from a checkpoint ---------------------------------------------------------------

    def fill(self, tensors: dict[str, Tensor], where: Path) -> None:
        """Load parameters by name, complete or the rows of this rank; RunError as in `fill`."""
        own = self.model.state_dict()
        fill(
            self.model,
            {k: rows_of(v, own[k]) if k in own else v for k, v in tensors.items()},
            where,
        )

    def _from_shards(
        self, folder: Path, parameters: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Read model and optimizer; for a sharded model, the rows of this rank."""
        own = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        into: dict[str, Tensor] = {}
        for name, (shape, dtype) in shapes(folder).items():
            like = own.get(name, parameters.get(name.split("/", 2)[-1]))
            if like is not None and like.shape == shape:
                into[name] = empty_like(like)
            else:
                into[name] = torch.empty(shape, dtype=dtype)
        read_shards(folder, into)
        of = lambda part: {
            name.removeprefix(part): v for name, v in into.items() if name.startswith(part)
        }
        return of("model/"), of("optimizer/")

    def checkpoint(self, state: dict[str, Any]) -> Checkpoint:
        """Everything that the next update depends on, and ``state`` from other objects."""
        tensors, method = split_state(self.engine.state_dict() if self.engine else {})
        own = {"window": vars(self.window), "skipped": self.skipped, "method": method}
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=optimizer_tensors(self.optimizer, self.names),
            method=tensors,
            state={**state, **own},
        )

    def restore(self, checkpoint: Checkpoint, where: Path) -> None:
        """Restore a checkpoint; RunError names ``where`` if it is of another model."""
        parameters = {name: p for p, name in self.names.items()}
        model, optimizer = checkpoint.model, checkpoint.optimizer
        if checkpoint.shards:
            model, optimizer = self._from_shards(checkpoint.shards, parameters)
        self.fill(model, where)
        optimizer = {
            key: rows_of(value, parameters[name])
            if (name := key.partition("/")[2]) in parameters and value.ndim
            else value
            for key, value in optimizer.items()
        }
        load_optimizer_tensors(self.optimizer, optimizer, parameters)
        if self.engine:
            self.engine.load_state_dict(join_state(checkpoint.method, checkpoint.state["method"]))
        self.step = checkpoint.step
        self.window = Window(**checkpoint.state["window"])
        self.skipped = checkpoint.state.get("skipped", 0)


def frame(report: StepReport) -> Frame:
    """The frame of a step for the record."""
    none = torch.zeros(len(report.groups), dtype=torch.int64)
    counts = {
        name: tuple(report.diagnostics.get(name, none).tolist())
        for name in ("edits", "pcgrad_edits", "comparisons")
    }
    gram, weights = report.gram.numpy(), report.weights.numpy()
    targets = report.diagnostics.get("targets")
    return Frame(
        step=report.step,
        tasks=report.tasks,
        groups=report.groups,
        gram=gram,
        weights=weights,
        targets=None if targets is None else targets.cpu().double().numpy(),
        **counts,
    )


def shares_of(batches: Sequence[TaskBatch], tokens: int) -> dict[str, float]:
    """Each task's share of the ``tokens`` of a step."""
    counts: dict[str, int] = {}
    for batch in batches:
        for task, own in batch.counts.items():
            counts[task] = counts.get(task, 0) + own
    return {task: count / tokens for task, count in counts.items()}
