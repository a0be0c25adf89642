"""Measurements during training, and the lines of ``metrics.jsonl``."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradvac.engine import StepReport
from gradvac.engine.step import read_together
from gradvac.errors import RunError
from gradvac.reading import LONGEST_LINE, regular
from gradvac.writing import write_bytes

MOST_NLL = 700.0
"""Above it the perplexity overflows; equally likely tokens have NLL ln V, about 11."""


class Diverged(RunError):
    """Validation numbers show that training diverged and cannot recover."""


@dataclass
class Window:
    """Sums since the last line of the log, for JSON.

    Per task the negative log-likelihood, the tokens, and the steps skipped because of it; the steps
    made in halves to save memory; for steps that were not skipped, the numbers that the method
    reported: name -> task (or "") -> [sum, steps].
    """

    nll: dict[str, float]
    tokens: dict[str, int]
    loss: float = 0.0
    norm: float = 0.0
    padding: float = 0.0
    steps: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    halved: int = 0
    method: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Window:
        """A window without any step."""
        return cls({}, {})

    def add(self, task: str, nll: float, tokens: int) -> None:
        """Add the NLL of the tokens of one task, a sum, and their number."""
        self.nll[task] = self.nll.get(task, 0.0) + nll
        self.tokens[task] = self.tokens.get(task, 0) + tokens

    def observe(self, report: StepReport) -> None:
        """Add the report of a method on a step, over all parameter groups.

        Weights and other numbers per task are averaged over the groups, counts are summed; numbers
        per pair of tasks are averaged over all pairs.
        """
        for name, value in ({"task_weights": report.weights} | report.diagnostics).items():
            if value.dim() == 3:
                pairs = ~torch.eye(value.shape[1], dtype=torch.bool)
                value = value[:, pairs].mean(1) if bool(pairs.any()) else value[:, 0, 0] * 0
            whole = value.mean(0) if value.is_floating_point() else value.sum(0)
            keys = report.tasks if whole.dim() else ("",)
            for key, number in zip(keys, whole.double().reshape(-1).tolist(), strict=True):
                entry = self.method.setdefault(name, {}).setdefault(key, [0.0, 0])
                entry[0] += number
                entry[1] += 1

    def line(self) -> dict[str, Any]:
        """Averages for the log."""
        total = sum(self.tokens.values())
        method: dict[str, Any] = {
            name: {task: sum_ / steps for task, (sum_, steps) in sorted(entries.items())}
            for name, entries in self.method.items()
        }
        method = {name: each.get("", each) for name, each in method.items()}
        weights = {"task_weights": method.pop("task_weights")} if method else {}
        return {
            "loss": self.loss / self.steps,
            "nll": sum(self.nll.values()) / total,
            "gradient_norm": self.norm / self.steps,
            "padding": self.padding / self.steps,
            "tokens": total,
            "task_nll": {t: self.nll[t] / self.tokens[t] for t in sorted(self.nll)},
            "task_tokens": {t: self.tokens[t] for t in sorted(self.tokens)},
            **weights,
            **({"method": method} if method else {}),
            **({"skipped": self.skipped} if self.skipped else {}),
            **({"halved": self.halved} if self.halved else {}),
        }


@dataclass
class Unread:
    """Numbers of a step that are still on the device: the host waits for all of them once.

    ``losses`` are parts of the step's loss; ``nll`` the tokens of each task of a batch, and the
    sums of their NLL in the same order.
    """

    losses: list[Tensor] = field(default_factory=list)
    nll: list[tuple[Mapping[str, int], Tensor]] = field(default_factory=list)

    def read(self, norm: Tensor, window: Window) -> tuple[float, float]:
        """Add the NLL to a window; returns the step's loss and ``norm``."""
        there = [norm, *self.losses, *(sums for _, sums in self.nll)]
        found = [x for x in read_together([x.double() for x in there]) if x is not None]
        for (tokens, _), sums in zip(self.nll, found[1 + len(self.losses) :], strict=True):
            for (task, count), own in zip(tokens.items(), sums.tolist(), strict=True):
                window.add(task, own, count)
        return sum(map(float, found[1 : 1 + len(self.losses)]), 0.0), float(found[0])


def averages(nll: Mapping[str, float], levels: Mapping[str, str]) -> dict[str, float]:
    """Mean NLL per token over all directions and by resource level, and each ``nll/xx-yy``.

    ``perplexity`` is the mean of the directions' perplexities. Diverged if an NLL is not finite or
    above `MOST_NLL`.
    """
    for task, value in nll.items():
        if not value <= MOST_NLL:  # true for NaN too
            raise Diverged(
                f"the validation NLL of {task} is {value:.4g} per token: the run has diverged. "
                "Lower training.learning_rate or raise training.warmup; best/ keeps the "
                "parameters of the best validation before, if there was one"
            )
    mean = lambda values: sum(values) / len(values)
    out = {"nll": mean(list(nll.values()))}
    out["perplexity"] = mean([math.exp(v) for v in nll.values()])
    for level in sorted({levels[t] for t in nll}):
        out[f"nll/{level}"] = mean([v for t, v in nll.items() if levels[t] == level])
    return out | {f"nll/{task}": v for task, v in nll.items()}


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Append one complete line to a ``.jsonl`` file; on OSError the file is unchanged."""
    data = (json.dumps(line) + "\n").encode()
    with file.open("ab", buffering=0) as out:
        end = out.tell()
        try:
            if out.write(data) < len(data):  # a full disk may write only a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        except OSError as e:
            out.truncate(end)
            raise OSError(e.errno, e.strerror, str(file)) from e


def truncate(file: Path, step: int, end: int | None = None) -> int:
    """Drop the lines of a ``.jsonl`` file that a run resumed at ``step`` will write again.

    They begin at byte ``end``, if known. Returns how many complete but unreadable lines were
    dropped.
    """
    if not file.exists():
        return 0
    if end is not None and regular(file).stat().st_size >= end:
        os.truncate(file, end)
        return 0
    kept, damaged = [], 0
    with regular(file).open("rb") as lines:
        for text in iter(lambda: lines.readline(LONGEST_LINE), b""):
            try:
                line = json.loads(text)
                if text.endswith(b"\n") and line["step"] <= step and line.get("kind") != "average":
                    kept.append(text)
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged += text.endswith(b"\n")
    write_bytes(file, b"".join(kept))
    return damaged
