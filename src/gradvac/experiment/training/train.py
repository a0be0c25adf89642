"""The training loop.

A run can be stopped at any moment. Everything random depends only on (seed, step), metrics do not
depend on time, and a resumed run writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.run.checkpoint import (
    Checkpoint,
    average,
    keep_newest,
    list_checkpoints,
    newest_complete,
    recover,
    save_checkpoint,
    set_aside,
)
from gradvac.experiment.run.contents import Done
from gradvac.experiment.run.disk import DISK, Outbox, explain, is_refusal
from gradvac.experiment.run.files import DONE, ENDED, METRICS, SPEED
from gradvac.experiment.run.folder import save_parameters
from gradvac.experiment.run.lock import alone
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.job import Job
from gradvac.experiment.training.loggers import Loggers
from gradvac.experiment.training.metrics import Diverged, Window, append, truncate
from gradvac.experiment.training.notes import notes
from gradvac.experiment.training.process import (
    StopSignal,
    bound_kernel_caches,
    deterministic,
    differences,
    made_with,
)
from gradvac.experiment.training.updates import Updates
from gradvac.reading import read_json
from gradvac.writing import to_disk, write_json

# A run ends after this many failed checkpoints in a row. Chosen here: time to free disk space,
# while little work is lost.
MOST_UNSAVED = 3


class Trainer:
    """One run: starts or resumes it, trains to the last step, writes its folder."""

    processes = 1  # number of processes that train together

    def __init__(self, job: Job[Any], display: Display) -> None:
        bound_kernel_caches()
        self.job, self.display, self.loggers = job, display, Loggers(display.line)
        self.recipe, self.folder = job.recipe, job.folder
        self.run = job.folder  # checkpoints are read here; not all ranks write here
        self.outbox, self.unsaved = Outbox(), 0
        self.updates = Updates(job, self.outbox)
        self.best: dict[str, Any] = {"value": math.inf, "step": 0, "waited": 0}
        self.stop = StopSignal()
        self.finished = False  # before this process started
        self._check_metric()

    @property
    def step(self) -> int:
        """Number of updates made or skipped."""
        return self.updates.step

    # -- the loop -------------------------------------------------------------------------------

    def train(self) -> int:
        """Train until the last step, a signal, or too many failed checkpoints.

        Returns the exit code: 0, 128 + signal, or `DISK`.
        """
        training = self.recipe.training
        with (
            alone(self.folder),
            self.stop.listening(),
            deterministic(training.deterministic),
            closing(self.loggers),
        ):
            self._resume()
            if not self.finished:
                self._open_loggers()
            for line in [] if self.step else self.job.describe():
                self.display.line(line)
            for line in notes(training, self.job.device):
                self.display.line(line)
            self.display.start(training.steps, self.step)
            while self.step < training.steps and not self._patience_spent():
                started, worked = time.perf_counter(), time.process_time()
                tokens = self.train_step()
                worked = time.process_time() - worked
                self.display.advance(tokens, time.perf_counter() - started, worked)
                if self.step % training.log_every == 0:
                    self._log()
                if self.step % training.validate_every == 0:
                    self._validate()
                stop = self.stop.number
                if stop or self.step % training.checkpoint_every == 0:
                    self._save()
                if self.unsaved >= MOST_UNSAVED or (stop and self.unsaved):
                    return self._stop_unsaved()
                if stop:
                    self.display.finish(f"stopped at step {self.step}; the same command resumes")
                    return 128 + stop
            return self._finish()

    def _open_loggers(self) -> None:
        self.loggers.start(self.folder, self.recipe)

    def train_step(self) -> int:
        """One update of the parameters; returns its number of tokens."""
        learned = self.job.state_dict()
        shares = self.job.begin(self.step)
        tokens, note = self.updates.make(learned)
        if note:
            self.display.line(f"step {self.step} {note}")
        if shares:  # belongs to this step, not to the checkpoint before it: a resumed run writes it
            self._write("sampling", shares)
            if "task_reward" in shares:
                words = ", ".join(f"{task} {p:.1%}" for task, p in shares["task_share"].items())
                self.display.line(f"step {self.step}: shares {words}")
        return tokens

    # -- validation -----------------------------------------------------------------------------

    def _validate(self, kind: str = "valid") -> None:
        """Write a validation line; save the parameters if the chosen metric improved."""
        try:
            values = self.job.validate()
        except Diverged as e:
            raise RunError(f"{self.folder}: step {self.step}: {e}") from e
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
        kept = self._parameters()
        self.outbox.put(lambda: save_parameters(file, kept))

    def _parameters(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in self.job.model.state_dict().items()}

    def _check_metric(self) -> None:
        names, training = self.job.metrics(), self.recipe.training
        if names and training.metric not in names:
            raise RecipeError(
                f"training.metric: {training.metric!r} is not among: {', '.join(names)}"
            )
        usual = type(training).model_fields["metric"].default
        for key, needed in (
            ("metric", training.metric != usual),
            ("patience", training.patience is not None),
        ):
            if needed and not names:
                raise RecipeError(
                    f"training.{key}: found {getattr(training, key)!r}, and there is no validation "
                    "text to measure it on; give some, or leave the key out"
                )

    def _patience_spent(self) -> bool:
        patience = self.recipe.training.patience
        return patience is not None and self.best["waited"] >= patience

    def _why_early(self) -> str:
        """The reason for ending before the last step, or ""."""
        training = self.recipe.training
        if self.step >= training.steps:
            return ""
        return (
            f"training.patience {training.patience}: {training.metric} was not below "
            f"{self.best['value']:.4f}, that of step {self.best['step']}, in the last "
            f"{self.best['waited']} validations; training.steps is {training.steps}"
        )

    # -- writing --------------------------------------------------------------------------------

    def _log(self) -> None:
        window = self.updates.window
        if not window.steps:  # all steps skipped: the next line counts them
            return
        line = window.line() | {"learning_rate": self.updates.learning_rate(self.step)}
        self.display.log(self.step, line)
        self._write("train", line)
        self.updates.window = Window.empty()

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; times are written to speed.jsonl."""
        line = {"kind": kind, "step": self.step, **values}
        self.outbox.put(lambda: append(self.folder / METRICS, line))
        if kind == "train":
            speed = {"step": self.step, "time": time.time(), "device": self.job.device.type}
            shown = ("seconds", "cpu_seconds", "began", "tokens_per_s")
            speed |= {name: getattr(self.display, name) for name in shown}
            speed["processes"] = self.processes
            self.outbox.put(lambda: append(self.folder / SPEED, speed))
            values = {**values, "tokens_per_s": self.display.tokens_per_s}
        self.loggers.log(kind, self.step, values)

    def _save(self) -> None:
        """Save a checkpoint; if the disk fails, the last one is kept."""
        folder = self.folder / "checkpoints"
        try:
            if error := self.outbox.flush():
                raise error  # the log must not be behind the checkpoint
            logs = [self.folder / METRICS, *self.updates.record.files]
            positions = {f.name: _to_disk(f) for f in logs if f.exists()}
            state = {
                "best": self.best,
                "balance": self.job.state_dict(),
                **self.job.identity,
                "positions": positions,
                "made_with": made_with(self.job.device),
            }
            self._write_checkpoint(folder, self.updates.checkpoint(state))
            self.unsaved = 0
            self._remove_old(folder)
        except OSError as e:
            if not is_refusal(e):
                raise
            self.unsaved += 1
            saved = list_checkpoints(folder)
            last = saved[-1].name if saved else "none"
            self.display.line(
                f"warning: no checkpoint of step {self.step}: {explain(e)}; the last one: {last}"
            )

    def _remove_old(self, folder: Path) -> None:
        """Remove older checkpoints that the new one replaces."""
        training = self.recipe.training
        try:
            (self.folder / ENDED).unlink(missing_ok=True)
            keep = max(training.keep, training.average)
            keep_newest(folder, keep, training.keep_every, training.checkpoint_every)
        except OSError as e:
            if not is_refusal(e):
                raise
            self.display.line(f"warning: an older checkpoint is not removed: {explain(e)}")

    def _write_checkpoint(self, folder: Path, checkpoint: Checkpoint) -> None:
        save_checkpoint(folder, checkpoint)

    def _stop_unsaved(self) -> int:
        """End a run that cannot save checkpoints."""
        saved = list_checkpoints(self.folder / "checkpoints")
        last = f"{saved[-1].name} is the last one saved" if saved else "nothing is saved"
        self.display.finish(
            f"stopped at step {self.step}: the disk took none of the last {self.unsaved} "
            f"checkpoints; {last}; with room on the disk the same command resumes there"
        )
        return DISK

    def _finish(self) -> int:
        """Save the last checkpoint; validate the average of the last ones, save it if best."""
        if self.finished:
            self.display.finish(f"{self.folder}: finished at step {self.step}; nothing to do")
            return 0
        early = self._why_early()  # before validating the average, which counts too
        if self.step % self.recipe.training.validate_every:
            self._validate()
        self._save()
        if self.unsaved:
            return self._stop_unsaved()
        if self.recipe.training.average > 1:
            folders = list_checkpoints(self.run / "checkpoints")
            self.updates.fill(average(folders[-self.recipe.training.average :]), self.folder)
            self._validate("average")
        if not self.job.metrics():
            self._keep_parameters()
        done = {"step": self.step, "best": self.best, "metric": self.recipe.training.metric}
        done |= {"stopped_early": early} if early else {}
        self.outbox.put(lambda: write_json(self.folder / DONE, done, indent=None))
        if error := self.outbox.flush():
            self.display.line(f"warning: {explain(error)}")
            return self._stop_unsaved()
        why = f", early: {early}" if early else ""
        self.display.finish(f"{self.folder}: finished at step {self.step}{why}")
        return 0

    # -- resuming -------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Resume from the newest complete checkpoint; remove log lines written after it."""
        recover(self.folder / "checkpoints")
        found = newest_complete(self.folder / "checkpoints")
        positions = self._restore(*found) if found else {}
        spent = self._patience_spent()
        if (end := self._last_end()) and end["step"] == self.step:
            # It may be from an average, which is in no checkpoint.
            self.best = {**end["best"], "waited": self.best["waited"]}
        last = spent or self.step >= self.recipe.training.steps
        self.finished = last and end is not None and (self.folder / DONE).exists()
        if not self.finished:
            with suppress(FileNotFoundError):
                (self.folder / DONE).replace(self.folder / ENDED)
            for name in (METRICS, SPEED):
                if lost := truncate(self.folder / name, self.step, positions.get(name)):
                    self.display.line(
                        f"warning: {self.folder / name}: {lost} lines cannot be read and are gone"
                    )
            self.updates.record.truncate(self.step - 1)
        for file in [self.folder / METRICS, *self.updates.record.files]:
            there = file.stat().st_size if file.exists() else 0
            if there < positions.get(file.name, 0):
                self.display.line(
                    f"warning: {file} has lost its end: {there} bytes of "
                    f"{positions[file.name]}; training is not touched by that"
                )

    def _restore(
        self, saved: Path, checkpoint: Checkpoint, damaged: Mapping[Path, str]
    ) -> dict[str, int]:
        """Restore a checkpoint; returns the lengths of the logs when it was saved."""
        self._check_fits(checkpoint, saved)
        for folder, problem in damaged.items():
            aside = set_aside(folder).name
            self.display.line(f"warning: {problem}; now {aside}, going on from {saved.name}")
        if differ := differences(checkpoint.state.get("made_with", {}), self.job.device):
            self.display.line(f"note: {saved.name} was made with {differ}; last bits may differ")
        try:
            self.updates.restore(checkpoint, saved)
            self.job.load_state_dict(checkpoint.state.get("balance", {}))
            self.best = {"value": math.inf, "step": 0, "waited": 0} | checkpoint.state["best"]
            return {k: int(v) for k, v in checkpoint.state.get("positions", {}).items()}
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            raise RunError(f"{saved / 'state.json'}: not the state of this run: {e!r}") from e

    def _last_end(self) -> Done | None:
        """The earlier end of the run, if no checkpoint was saved since."""
        for file in (self.folder / DONE, self.folder / ENDED):
            if file.exists():
                try:
                    return read_json(file, Done)
                except RunError as e:
                    self.display.line(f"warning: {e}")
        return None

    def _check_fits(self, checkpoint: Checkpoint, folder: Path) -> None:
        for key, value in self.job.identity.items():
            found = checkpoint.state.get(key)
            if found == value:
                continue
            if isinstance(value, list) and isinstance(found, list) and set(found) != set(value):
                here, there = ", ".join(sorted(set(value) - set(found))), set(found) - set(value)
                raise RunError(
                    f"{folder}: its {key} are not those of the run; only in the checkpoint: "
                    f"{', '.join(sorted(there)) or 'none'}; only in the run: {here or 'none'}"
                )
            raise RunError(f"{folder}: its {key} is {found}, the run has {value}")


def _to_disk(file: Path) -> int:
    """Flush a log to the disk; returns its length."""
    to_disk(file)
    return file.stat().st_size
