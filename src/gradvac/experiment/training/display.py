"""Output during training: a progress bar on a terminal, otherwise plain lines."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gradvac.experiment.run.disk import is_refusal
from gradvac.terminal import Terminal


class Display:
    """Progress of one run. ``after``: seconds of work after it, which the time left includes.

    ``seconds`` and ``cpu_seconds`` (all threads of this process) are the time of the steps since
    step ``began``.
    """

    def __init__(self, console: Console | None = None, after: float = 0.0) -> None:
        self.console, self.after = console or Terminal(), after
        self.seconds, self.cpu_seconds, self.began = 0.0, 0.0, 0
        self.tokens_per_s, self._recent = 0.0, (0, 0.0)
        self._bar: Progress | None = None

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
                TextColumn("{task.fields[left]}"),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=steps, completed=done, left="")
            self._bar.start()

    def advance(self, tokens: int, seconds: float, cpu_seconds: float) -> None:
        """Count one step."""
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        self._here += 1
        self._recent = (self._recent[0] + tokens, self._recent[1] + seconds)
        if self._bar:
            left = self._left(self.began + self._here)
            self._bar.update(self._task, advance=1, left=f"{left} left")

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
            self.line(f"step {step}/{self._steps}  {text}  {self._left(step)} left")

    def _left(self, step: int) -> str:
        return clock((self._steps - step) * self.seconds / self._here + self.after)

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


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as in 0:03:50."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
