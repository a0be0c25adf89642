"""The training loop: joint, or through a gradient method, from the same batches.

A run can be stopped at any moment. Everything random follows from (seed, step), metrics hold
nothing that depends on the clock, and a resumed run writes what an uninterrupted one would have
written, byte for byte.
"""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradvac.engine import Engine, StepReport
from gradvac.errors import GradientError, NotFiniteError, RecipeError, RunError
from gradvac.experiment.balance import Balance
from gradvac.experiment.build import (
    build_method,
    build_model,
    device_of,
    parameter_count,
    uses_bf16,
)
from gradvac.experiment.checkpoint import (
    Checkpoint,
    average,
    join_state,
    keep_newest,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    split_state,
)
from gradvac.experiment.display import Display
from gradvac.experiment.metrics import Window, append, averages, truncate
from gradvac.experiment.model_folder import (
    fill,
    find_model,
    load_tensors,
    save_parameters,
    save_shape,
)
from gradvac.experiment.prepare import Prepared
from gradvac.experiment.process import StopSignal, alone, bound_kernel_caches
from gradvac.experiment.recipe import resolve
from gradvac.geometry.record import Frame, GramRecord
from gradvac.translation.batches import Batch, in_order
from gradvac.translation.languages import Direction
from gradvac.translation.vocabulary import PAD

VALIDATION_TOKENS = 8192  # padded cells of a validation batch: a matter of speed alone
# Steps skipped in a row before a run gives up. Chosen here: bad batches come singly, and parameters
# that are broken never recover.
MOST_SKIPPED = 10


class Trainer:
    """One run: builds or resumes it, trains to the last step, leaves a folder that tells all."""

    def __init__(self, prepared: Prepared, display: Display) -> None:
        bound_kernel_caches()
        self.prepared, self.display = prepared, display
        self.recipe, self.folder = prepared.recipe, prepared.folder
        training = self.recipe.training
        self.device = device_of(self.recipe.device)
        self.bf16 = uses_bf16(training.precision, self.device)
        tags = {prepared.vocabulary.tag_id(Direction.parse(t).target) for t in prepared.tasks}
        model = build_model(self.recipe, len(prepared.vocabulary), sorted(tags))
        if training.start_from:
            start = find_model(resolve(training.start_from)).parameters
            fill(model, load_tensors(start), start)
        self.model = model.to(self.device)
        save_shape(self.folder, self.model.config)
        self.names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=training.learning_rate, betas=training.betas, fused=True
        )
        self.balance = Balance(prepared)
        self.plan = self.balance.plan
        section = self.recipe.method
        self.method = build_method(section, prepared.levels, self.recipe.seed)
        self.engine = self.method and Engine(
            self.model, self.method, section.granularity, engine=section.engine
        )
        self.record = GramRecord(self.folder / "geometry")
        self.step, self.window = 0, Window.empty()
        self.skipped = 0  # steps in a row
        self.best: dict[str, Any] = {"value": math.inf, "step": 0, "waited": 0}
        self.stop = StopSignal()
        self._check_metric()

    # -- the loop -------------------------------------------------------------------------------

    def train(self) -> int:
        """Train until the last step or a signal; returns the exit code (0, or 128 + signal)."""
        training = self.recipe.training
        with alone(self.folder), self.stop.listening():
            self._resume()
            if not self.step:
                self.display.line(self.balance.table())
                self.display.line(parameter_count(self.model))
            self.display.start(training.steps, self.step)
            while self.step < training.steps and not self._patience_spent():
                started = time.perf_counter()
                tokens = self.train_step()
                self.display.advance(tokens, time.perf_counter() - started)
                if self.step % training.log_every == 0:
                    self._log()
                if self.step % training.validate_every == 0:
                    self._validate()
                stop = self.stop.number
                if stop or self.step % training.checkpoint_every == 0:
                    self._save()
                if stop:
                    self.display.finish(f"stopped at step {self.step}; the same command resumes")
                    return 128 + stop
            self._finish()
            return 0

    def train_step(self) -> int:
        """One update of the parameters; returns the target tokens it saw."""
        micro = self.recipe.batches.accumulate
        shares = self.balance.begin(self.step, self.model, self._mean_loss)
        batches = [self.plan(self.step * micro + m).to(self.device) for m in range(micro)]
        tokens = sum(b.tokens for b in batches)
        torch.manual_seed(_mix(self.recipe.seed, self.step))
        self.model.train()
        self.model.begin_step(self.step / self.recipe.training.steps)
        self.optimizer.zero_grad(set_to_none=True)
        before = copy.deepcopy(self.window)
        try:
            if self.engine is None:
                loss = sum(self._backward_jointly(b, tokens) for b in batches)
            else:
                loss = self._combine_tasks(self.engine, batches, tokens)
            norm = self._clip()
            self._check_finite(loss, norm)
        except NotFiniteError as error:
            self.window = before
            self._skip(error)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(self.step + 1)
            self.optimizer.step()
            self.window.loss += loss
            self.window.norm += norm
            self.window.padding += sum(b.padding for b in batches) / micro
            self.window.steps += 1
            self.skipped = 0
        self.step += 1
        if shares:  # the line of a step, not of the checkpoint before it: a resumed run writes it
            self._write("sampling", shares)
            if "task_reward" in shares:
                words = ", ".join(f"{task} {p:.1%}" for task, p in shares["task_share"].items())
                self.display.line(f"step {self.step}: shares {words}")
        return tokens

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then inverse square root (Wang et al. 2021, appendix B)."""
        training = self.recipe.training
        return training.learning_rate * min(
            step / training.warmup, math.sqrt(training.warmup / step)
        )

    def _skip(self, error: NotFiniteError) -> None:
        """Go on without the step, if the recipe allows it and it does not happen all the time."""
        if self.recipe.training.nonfinite == "raise":
            raise GradientError(
                f"{error}; lower training.learning_rate, try training.precision=fp32, or go on "
                "without such steps by training.nonfinite=skip"
            ) from error
        self.skipped += 1
        if self.skipped > MOST_SKIPPED:
            raise GradientError(
                f"{MOST_SKIPPED} steps in a row were skipped, and now {error}; the parameters are "
                "broken: go back to an earlier checkpoint with a lower training.learning_rate"
            ) from error
        task = error.task or "joint"
        self.window.skipped[task] = self.window.skipped.get(task, 0) + 1
        self.display.line(f"step {self.step + 1} skipped: {error}")

    def _backward_jointly(self, batch: Batch, tokens: int) -> float:
        """Gradient of the mean token loss, every task in one backward pass."""
        loss, nll, rows = self._token_losses(batch)
        mean = loss.sum() / tokens
        beside = self.model.auxiliary_loss()
        total = mean if beside is None else mean + beside * (batch.tokens / tokens)
        total.backward()
        self._count(batch, nll, rows)
        return float(mean.detach())

    def _combine_tasks(self, engine: Engine, batches: list[Batch], tokens: int) -> float:
        """Let the method make one gradient of the task gradients; record what it saw.

        Each task's loss is its share of the mean token loss: their sum is the joint loss.
        """
        report = None
        for batch in batches:
            if self.recipe.method.engine == "per_task":
                for index in batch.present:
                    loss, nll, _ = self._token_losses(batch.of_task(index))
                    engine.accumulate({batch.tasks[index]: loss.sum() / tokens})
                    self.window.add(batch.tasks[index], nll)
                continue
            with engine.tasks((batch.task, batch.tasks)):
                loss, nll, rows = self._token_losses(batch)
                if len(batches) == 1:  # combines and frees each layer as the backward leaves it
                    report = engine.backward(
                        loss / tokens, rows, step=self.step, shares=_shares(batches)
                    )
                else:
                    engine.accumulate(loss / tokens, rows)
            self._count(batch, nll, rows)
        report = report or engine.combine(step=self.step, shares=_shares(batches))
        self.window.observe(report)
        if self.step % self.recipe.method.record_every == 0:
            self.record.append(_frame(report))
        return float(report.losses.sum())

    def _count(self, batch: Batch, nll: Tensor, rows: Tensor) -> None:
        """Add the tokens of a mixed batch to the log, each to its task."""
        task = batch.task[rows]
        for index in batch.present:
            self.window.add(batch.tasks[index], nll[task == index])

    def _mean_loss(self, batch: Batch) -> Tensor:
        return self._token_losses(batch.to(self.device))[0].mean()

    def _token_losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, nll, rows = self.model.token_losses(
                batch.source,
                batch.target_in,
                batch.target_out,
                self.recipe.training.label_smoothing,
            )
        return loss, nll.detach(), rows

    def _clip(self) -> float:
        """Clip the combined gradient; returns its norm before."""
        limit = self.recipe.training.clip or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))

    def _check_finite(self, loss: float, norm: float) -> None:
        """Check what joint training makes of a step; engines look at every task themselves."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        bad = [task for task, nll in self.window.nll.items() if not math.isfinite(nll)]
        task = bad[0] if bad else ""
        what = f"the loss of task {task!r}" if task else "the gradient"
        raise NotFiniteError(f"{what} is not finite at step {self.step}; nothing was updated", task)

    # -- validation -----------------------------------------------------------------------------

    @torch.no_grad()
    def validation_nll(self) -> dict[str, float]:
        """Mean negative log-likelihood per target token of every direction."""
        self.model.eval()
        result = {}
        tasks = tuple(self.prepared.valid)
        for index, task in enumerate(tasks):
            nll, tokens = 0.0, 0
            for batch in in_order(self.prepared.valid, tasks, index, VALIDATION_TOKENS):
                values = self._token_losses(batch.to(self.device))[1]
                nll += float(values.sum(dtype=torch.float64))
                tokens += values.numel()
            result[task] = nll / tokens
        return result

    def _validate(self, kind: str = "valid") -> None:
        """Write a validation line; keep the parameters when the chosen metric improved."""
        if not self.prepared.valid:
            return
        values = averages(self.validation_nll(), self.prepared.levels)
        value = values[self.recipe.training.metric]
        if value < self.best["value"]:
            self.best = {"value": value, "step": self.step, "waited": 0}
            save_parameters(self.folder / "best" / "model.safetensors", self.model.state_dict())
        else:
            self.best["waited"] += 1
        self._write(kind, values)
        self.display.line(
            f"step {self.step}: validation NLL {values['nll']:.4f}, perplexity "
            f"{values['perplexity']:.2f} (best {self.best['value']:.4f} at {self.best['step']})"
        )

    def _check_metric(self) -> None:
        valid, metric = self.prepared.valid, self.recipe.training.metric
        names = averages(dict.fromkeys(valid, 0.0), self.prepared.levels) if valid else {metric: 0}
        if metric not in names:
            raise RecipeError(f"training.metric: {metric!r} is not among: {', '.join(names)}")

    def _patience_spent(self) -> bool:
        patience = self.recipe.training.patience
        return patience is not None and self.best["waited"] >= patience

    # -- what is written ------------------------------------------------------------------------

    def _log(self) -> None:
        if not self.window.steps:  # all skipped: the next line counts them
            return
        line = self.window.line() | {"learning_rate": self.learning_rate(self.step)}
        self.display.log(self.step, line)
        self._write("train", line)
        self.window = Window.empty()

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; what depends on the clock goes to speed.jsonl."""
        append(self.folder / "metrics.jsonl", {"kind": kind, "step": self.step, **values})
        if kind == "train":
            speed = {"step": self.step, "seconds": self.display.seconds, "time": time.time()}
            speed["tokens_per_s"] = self.display.tokens_per_s
            append(self.folder / "speed.jsonl", speed)
        self.display.scalars(kind, self.step, values)

    def _save(self) -> None:
        training = self.recipe.training
        method_tensors, method_state = split_state(self.engine.state_dict() if self.engine else {})
        save_checkpoint(
            self.folder / "checkpoints",
            Checkpoint(
                step=self.step,
                model=self.model.state_dict(),
                optimizer=optimizer_tensors(self.optimizer, self.names),
                method=method_tensors,
                state={
                    "best": self.best,
                    "window": vars(self.window),
                    "skipped": self.skipped,
                    "method": method_state,
                    "balance": self.balance.state_dict(),
                    "vocabulary": self.prepared.vocabulary.fingerprint,
                    "tasks": list(self.prepared.tasks),
                    "torch": torch.__version__,
                },
            ),
        )
        count = max(training.keep, training.average)
        keep_newest(self.folder / "checkpoints", count, training.keep_every)

    def _finish(self) -> None:
        """The last checkpoint, and the average of the last ones when it is better than the best."""
        if (self.folder / "done.json").exists():
            self.display.finish(f"{self.folder}: finished at step {self.step}; nothing to do")
            return
        if self.step % self.recipe.training.validate_every:
            self._validate()
        self._save()
        if self.recipe.training.average > 1:
            folders = list_checkpoints(self.folder / "checkpoints")
            fill(self.model, average(folders[-self.recipe.training.average :]), self.folder)
            self._validate("average")
        if not self.prepared.valid:
            save_parameters(self.folder / "best" / "model.safetensors", self.model.state_dict())
        done = {"step": self.step, "best": self.best, "metric": self.recipe.training.metric}
        (self.folder / "done.json").write_text(json.dumps(done), encoding="utf-8")
        self.display.finish(f"{self.folder}: finished at step {self.step}")

    # -- resuming -------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Go on from the newest checkpoint; forget what was written after it."""
        saved = list_checkpoints(self.folder / "checkpoints")
        if saved:
            checkpoint = load_checkpoint(saved[-1])
            self._check_fits(checkpoint, saved[-1])
            fill(self.model, checkpoint.model, saved[-1])
            load_optimizer_tensors(
                self.optimizer, checkpoint.optimizer, {n: p for p, n in self.names.items()}
            )
            if self.engine:
                self.engine.load_state_dict(
                    join_state(checkpoint.method, checkpoint.state["method"])
                )
            self.step = checkpoint.step
            self.balance.load_state_dict(checkpoint.state.get("balance", {}))
            self.best = checkpoint.state["best"]
            self.window = Window(**checkpoint.state["window"])
            self.skipped = checkpoint.state.get("skipped", 0)
        finished = (self.folder / "done.json").exists() and self.step >= self.recipe.training.steps
        if not finished:
            (self.folder / "done.json").unlink(missing_ok=True)
            truncate(self.folder / "metrics.jsonl", self.step)
            truncate(self.folder / "speed.jsonl", self.step)
            self.record.truncate(self.step - 1)

    def _check_fits(self, checkpoint: Checkpoint, folder: Path) -> None:
        own = {
            "vocabulary": self.prepared.vocabulary.fingerprint,
            "tasks": list(self.prepared.tasks),
        }
        for key, value in own.items():
            if checkpoint.state.get(key) != value:
                raise RunError(
                    f"{folder}: its {key} is {checkpoint.state.get(key)}, the run has {value}"
                )


def _shares(batches: list[Batch]) -> dict[str, float]:
    """Each task's share of the target tokens of a step."""
    counts: dict[str, int] = {}
    for batch in batches:
        tokens = (batch.target_out != PAD).sum(1)
        for index in batch.present:
            own = int(tokens[batch.task == index].sum())
            counts[batch.tasks[index]] = counts.get(batch.tasks[index], 0) + own
    total = sum(counts.values())
    return {task: count / total for task, count in counts.items()}


def _frame(report: StepReport) -> Frame:
    """What the record keeps of a step."""
    none = torch.zeros(len(report.groups), dtype=torch.int64)
    counts = {
        name: tuple(report.diagnostics.get(name, none).tolist())
        for name in ("edits", "pcgrad_edits", "comparisons")
    }
    gram, weights = report.gram.numpy(), report.weights.numpy()
    return Frame(report.step, report.tasks, report.groups, gram, weights, **counts)


def _mix(seed: int, step: int) -> int:
    """A seed for one step, far from that of its neighbours."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) % 2**63
