"""The task of each sequence in the packed rows of Axolotl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradvac.errors import GradientError
from gradvac.integrations.transformers_batch import TaskCollator

LENGTHS = "task_lengths"
"""Key of a batch: for each row, how many tokens each of its sequences has."""


class PackedCollator:
    """Collates packed rows by another collator and adds the tasks and lengths of their sequences.

    Axolotl gives a list of rows, each a list of sequences. What is not packed is left to the other
    collator.

    Args:
        collator: a ``TaskCollator``; of packed rows it never gets the tasks.
        column: key of the task of a sequence.
    """

    def __init__(self, collator: TaskCollator, column: str) -> None:
        self.collator = collator
        self.column = column

    def __call__(self, features: list[Any]) -> Any:
        """Return the batch; with tasks if its sequences have them: evaluation does not need them.

        Raises:
            GradientError: if a sequence has no task and others have, or a row is padded on the
                left.
        """
        if not isinstance(features[0], list):
            return self.collator(features)
        sequences: list[Mapping[str, Any]] = [f for row in features for f in row]
        tasks = [f.get(self.column) for f in sequences]
        rest = [[{k: v for k, v in f.items() if k != self.column} for f in row] for row in features]
        batch = self.collator(rest)
        if all(task is None for task in tasks):
            return batch
        if None in tasks:
            raise GradientError(
                f"sequence {tasks.index(None)} of a packed row has no {self.column!r} and others "
                "have; every sequence needs its task"
            )
        lengths = [[len(f["input_ids"]) for f in row] for row in features]
        padded = any(batch["input_ids"].shape[1] > sum(row) for row in lengths)
        tokenizer = getattr(self.collator.collator, "tokenizer", None)
        if padded and getattr(tokenizer, "padding_side", "right") != "right":
            raise GradientError(
                "a packed row is padded on the left; set padding_side='right' in the tokenizer's "
                "configuration"
            )
        batch[self.column] = [[f[self.column] for f in row] for row in features]
        batch[LENGTHS] = lengths
        return batch


def segments_of_lengths(lengths: Sequence[Sequence[int]], n_tokens: int) -> Tensor:
    """Return the sequence of each token, ``[B, T]``; padding belongs to the last of its row.

    Args:
        lengths: for each row, how many tokens each of its sequences has.
        n_tokens: T, with padding, which has no losses.

    Example:
        >>> segments_of_lengths([[2, 1], [4]], 5)
        tensor([[0, 0, 1, 1, 1],
                [2, 2, 2, 2, 2]])
    """
    rows, first = [], 0
    for row in lengths:
        last = first + len(row) - 1
        found = torch.arange(first, last + 1).repeat_interleave(torch.tensor(row))
        rows.append(F.pad(found, (0, n_tokens - len(found)), value=last))
        first = last + 1
    return torch.stack(rows)
