"""``method.engine: measured``: the cheaper of two exact ways to compute task gradients.

The first steps take both ways in turn. The steps after them take the one whose seconds per token
have the lower median. The choice is written into the run folder before it matters, so that a run
that is interrupted goes on as it would have gone on.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from gradvac.errors import RunError
from gradvac.reading import read_json
from gradvac.writing import write_json

if TYPE_CHECKING:
    from gradvac.experiment.recipe.sections import MethodSection
    from gradvac.experiment.run.disk import Outbox

CHOICE = "engine.json"
"""Name of the file with the choice."""

WAYS = ("single_pass", "per_task")
WARM, TIMED = 4, 6
"""Steps that are not timed, because the engine checks itself in them, and steps that are; half of
each for each way. Chosen here."""


class Way:
    """Which of the two ways a step takes.

    Args:
        section: says which, or that it is to be measured.
        folder: of the run, where the choice is kept.
        outbox: writes it.

    Raises:
        RunError: if the file with the choice names no way.
    """

    def __init__(self, section: MethodSection, folder: Path, outbox: Outbox) -> None:
        self.path, self.outbox = folder / CHOICE, outbox
        self.chosen = "" if section.engine == "measured" else section.engine
        self._times: dict[str, list[float]] = {way: [] for way in WAYS}
        self._begin = 0  # the first step that takes the chosen way
        if not self.chosen and self.path.exists():
            kept = read_json(self.path)
            self.chosen, begin = str(kept.get("engine")), kept.get("from_step")
            if self.chosen not in WAYS or not isinstance(begin, int):
                raise RunError(
                    f"{self.path}: engine is {self.chosen!r} from step {begin!r}; it must be "
                    f"{' or '.join(WAYS)} and a number of a step"
                )
            self._begin = begin

    def of(self, step: int) -> str:
        """The way of a step; the steps that measure are always the same."""
        return self.chosen if self.chosen and step >= self._begin else WAYS[step % 2]

    def note(self, step: int, seconds: float, tokens: int) -> str:
        """Note what a step took; once the way is chosen, returns what to tell the user."""
        if self.chosen:
            return ""
        if step >= WARM:
            self._times[self.of(step)].append(seconds / tokens)
        return self._choose(step + 1) if step + 1 >= WARM + TIMED else ""

    def _choose(self, begin: int) -> str:
        """Keep the cheaper way, of those that were timed, from a step on."""
        cost = {way: 1e6 * median(times) for way, times in self._times.items() if times}
        self.chosen, self._begin = min(cost, key=cost.__getitem__), begin
        found = {"engine": self.chosen, "from_step": begin, "microseconds_per_token": cost}
        self.outbox.put(lambda: write_json(self.path, found))
        shown = ", ".join(f"{way} {each:.1f}" for way, each in cost.items())
        return f"method.engine: {self.chosen} from here on; microseconds per token: {shown}"
