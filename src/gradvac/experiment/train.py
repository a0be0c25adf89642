"""The training loop.

A run can be stopped at any moment. Everything random follows from (seed, step), metrics hold
nothing that depends on the clock, and a resumed run writes what an uninterrupted one would have
written, byte for byte.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.checkpoint import (
    Checkpoint,
    average,
    keep_newest,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from gradvac.experiment.display import Display
from gradvac.experiment.job import Job
from gradvac.experiment.metrics import Window, append, truncate
from gradvac.experiment.model_folder import fill, save_parameters
from gradvac.experiment.process import StopSignal, alone, bound_kernel_caches
from gradvac.experiment.updates import Updates


class Trainer:
    """One run: begins or resumes it, trains to the last step, leaves a folder that tells all."""

    def __init__(self, job: Job, display: Display) -> None:
        bound_kernel_caches()
        self.job, self.display = job, display
        self.recipe, self.folder = job.recipe, job.folder
        self.updates = Updates(job)
        self.best: dict[str, Any] = {"value": math.inf, "step": 0, "waited": 0}
        self.stop = StopSignal()
        self._check_metric()

    @property
    def step(self) -> int:
        """Updates made or skipped."""
        return self.updates.step

    # -- the loop -------------------------------------------------------------------------------

    def train(self) -> int:
        """Train until the last step or a signal; returns the exit code (0, or 128 + signal)."""
        training = self.recipe.training
        with alone(self.folder), self.stop.listening():
            self._resume()
            for line in [] if self.step else self.job.describe():
                self.display.line(line)
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
        """One update of the parameters; returns the tokens it saw."""
        shares = self.job.begin(self.step)
        tokens, problem = self.updates.make()
        if problem:
            self.display.line(f"step {self.step} skipped: {problem}")
        if shares:  # the line of a step, not of the checkpoint before it: a resumed run writes it
            self._write("sampling", shares)
            if "task_reward" in shares:
                words = ", ".join(f"{task} {p:.1%}" for task, p in shares["task_share"].items())
                self.display.line(f"step {self.step}: shares {words}")
        return tokens

    # -- validation -----------------------------------------------------------------------------

    def _validate(self, kind: str = "valid") -> None:
        """Write a validation line; keep the parameters when the chosen metric improved."""
        values = self.job.validate()
        if not values:
            return
        value = values[self.recipe.training.metric]
        if value < self.best["value"]:
            self.best = {"value": value, "step": self.step, "waited": 0}
            self._keep_parameters()
        else:
            self.best["waited"] += 1
        self._write(kind, values)
        self.display.line(
            f"step {self.step}: validation NLL {values['nll']:.4f}, perplexity "
            f"{values['perplexity']:.2f} (best {self.best['value']:.4f} at {self.best['step']})"
        )

    def _keep_parameters(self) -> None:
        file = self.folder / "best" / "model.safetensors"
        save_parameters(file, self.job.model.state_dict())

    def _check_metric(self) -> None:
        names, metric = self.job.metrics(), self.recipe.training.metric
        if names and metric not in names:
            raise RecipeError(f"training.metric: {metric!r} is not among: {', '.join(names)}")

    def _patience_spent(self) -> bool:
        patience = self.recipe.training.patience
        return patience is not None and self.best["waited"] >= patience

    # -- what is written ------------------------------------------------------------------------

    def _log(self) -> None:
        window = self.updates.window
        if not window.steps:  # all skipped: the next line counts them
            return
        line = window.line() | {"learning_rate": self.updates.learning_rate(self.step)}
        self.display.log(self.step, line)
        self._write("train", line)
        self.updates.window = Window.empty()

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
        state = {"best": self.best, "balance": self.job.state_dict(), **self.job.identity}
        save_checkpoint(self.folder / "checkpoints", self.updates.checkpoint(state))
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
            fill(self.job.model, average(folders[-self.recipe.training.average :]), self.folder)
            self._validate("average")
        if not self.job.metrics():
            self._keep_parameters()
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
            self.updates.restore(checkpoint, saved[-1])
            self.job.load_state_dict(checkpoint.state.get("balance", {}))
            self.best = checkpoint.state["best"]
        finished = (self.folder / "done.json").exists() and self.step >= self.recipe.training.steps
        if not finished:
            (self.folder / "done.json").unlink(missing_ok=True)
            truncate(self.folder / "metrics.jsonl", self.step)
            truncate(self.folder / "speed.jsonl", self.step)
            self.updates.record.truncate(self.step - 1)

    def _check_fits(self, checkpoint: Checkpoint, folder: Path) -> None:
        for key, value in self.job.identity.items():
            if checkpoint.state.get(key) != value:
                raise RunError(
                    f"{folder}: its {key} is {checkpoint.state.get(key)}, the run has {value}"
                )
