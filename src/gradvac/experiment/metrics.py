"""What a run measures while it trains, and the lines it leaves in ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass
class Window:
    """Sums since the last line of the log: per task, negative log-likelihood and tokens."""

    nll: dict[str, float]
    tokens: dict[str, int]
    loss: float = 0.0
    norm: float = 0.0
    padding: float = 0.0
    steps: int = 0

    @classmethod
    def empty(cls) -> Window:
        """Nothing seen yet."""
        return cls({}, {})

    def add(self, task: str, nll: Tensor) -> None:
        """Count the tokens of one task."""
        self.nll[task] = self.nll.get(task, 0.0) + float(nll.sum(dtype=torch.float64))
        self.tokens[task] = self.tokens.get(task, 0) + nll.numel()

    def line(self) -> dict[str, Any]:
        """Averages for the log."""
        total = sum(self.tokens.values())
        return {
            "loss": self.loss / self.steps,
            "nll": sum(self.nll.values()) / total,
            "gradient_norm": self.norm / self.steps,
            "padding": self.padding / self.steps,
            "tokens": total,
            "task_nll": {t: self.nll[t] / self.tokens[t] for t in sorted(self.nll)},
            "task_tokens": {t: self.tokens[t] for t in sorted(self.tokens)},
        }


def averages(nll: Mapping[str, float], levels: Mapping[str, str]) -> dict[str, float]:
    """Means over directions of the NLL per token: all, by resource level, each ``nll/xx-yy``.

    ``perplexity`` is the mean of the directions' perplexities.
    """
    mean = lambda values: sum(values) / len(values)
    out = {"nll": mean(list(nll.values()))}
    out["perplexity"] = mean([math.exp(v) for v in nll.values()])
    for level in sorted({levels[t] for t in nll}):
        out[f"nll/{level}"] = mean([v for t, v in nll.items() if levels[t] == level])
    return out | {f"nll/{task}": v for task, v in nll.items()}


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Add one line to a ``.jsonl`` file."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def truncate(file: Path, step: int) -> None:
    """Drop the lines of a ``.jsonl`` file that a run resumed at ``step`` will write again."""
    if not file.exists():
        return
    kept = []
    for text in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            line = json.loads(text)
            if text.endswith("\n") and line["step"] <= step and line.get("kind") != "average":
                kept.append(text)
        except (ValueError, KeyError, TypeError):
            break
    new = file.with_suffix(".new")
    new.write_text("".join(kept), encoding="utf-8")
    new.replace(file)
