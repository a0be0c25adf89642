"""Output during training: a progress bar on a terminal, otherwise plain lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gradvac.experiment.run.disk import is_refusal
from gradvac.terminal import Terminal


class Display:
    """Progress of one run. ``tensorboard`` is a folder for event files, or None.

    ``seconds`` and ``cpu_seconds`` (all threads of this process) are the time of the steps since
    step ``began``.
    """

    def __init__(self, console: Console | None = None, tensorboard: Path | None = None) -> None:
        self.console = console or Terminal()
        self.seconds, self.cpu_seconds, self.began = 0.0, 0.0, 0
        self.tokens_per_s, self._recent = 0.0, (0, 0.0)
        self._bar: Progress | None = None
        self._writer = tensorboard and _writer(tensorboard)

    def start(self, steps: int, done: int) -> None:
        """Begin at step ``done`` of ``steps``."""
        self._steps, self._here, self.began = steps, 0, done
        if done:
            self.line(f"resuming at step {done} of {steps}")
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TextColumn("{task.description}", markup=False),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=steps, completed=done)
            self._bar.start()

    def advance(self, tokens: int, seconds: float, cpu_seconds: float) -> None:
        """Count one step."""
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        self._here += 1
        self._recent = (self._recent[0] + tokens, self._recent[1] + seconds)
        if self._bar:
            self._bar.advance(self._task)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Show a line of the training log."""
        self.tokens_per_s = self._recent[0] / max(self._recent[1], 1e-9)
        self._recent = (0, 0.0)
        text = (
            f"NLL {values['nll']:.3f}  {self.tokens_per_s:,.0f} tokens/s  "
            f"padding {values['padding']:.0%}"
        )
        if self._bar:
            self._bar.update(self._task, description=text)
        else:
            left = (self._steps - step) * self.seconds / self._here
            self.line(f"step {step}/{self._steps}  {text}  {_clock(left)} left")

    def line(self, text: str) -> None:
        """Print a line above the bar; if the disk is full, retry with the next line."""
        try:
            self.console.print(text, markup=False)
        except OSError as e:
            if not is_refusal(e):
                raise

    def finish(self, text: str) -> None:
        """End the bar and print how the run ended."""
        if self._bar:
            self._bar.stop()
            self._bar = None
        self.line(text)

    def scalars(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write numbers for TensorBoard if the recipe enables it."""
        if self._writer:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _writer(folder: Path) -> Any:
    from gradvac.errors import RecipeError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise RecipeError(
            "training.tensorboard: needs the extra: pip install 'gradvac[tensorboard]'"
        ) from e
    return SummaryWriter(str(folder))
