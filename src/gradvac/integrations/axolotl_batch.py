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
"""Key of a batch: how many tokens each sequence of its row has."""


class PackedCollator:
    """Collates a packed row by another collator and adds the tasks and lengths of its sequences.

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
            GradientError: if there are several rows, a sequence has no task and others have, or
                the row is padded on the left.
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
        if len(features) > 1:
            raise GradientError(
                f"a batch has {len(features)} packed rows, which the engine does not split; set "
                "multipack_real_batches: false, which packs the same tokens into one row"
            )
        lengths = [len(f["input_ids"]) for f in sequences]
        padded = batch["input_ids"].shape[1] > sum(lengths)
        tokenizer = getattr(self.collator.collator, "tokenizer", None)
        if padded and getattr(tokenizer, "padding_side", "right") != "right":
            raise GradientError(
                "a packed row is padded on the left; set padding_side='right' in the tokenizer's "
                "configuration"
            )
        batch[self.column], batch[LENGTHS] = tasks, lengths
        return batch


def segments_of_lengths(lengths: Sequence[int], n_tokens: int) -> Tensor:
    """Return the sequence of each token, ``[1, T]``; padding belongs to the last.

    Args:
        lengths: how many tokens each sequence has.
        n_tokens: T, with padding, which has no losses.

    Example:
        >>> segments_of_lengths([2, 1], 5)
        tensor([[0, 0, 1, 1, 1]])
    """
    found = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return F.pad(found, (0, n_tokens - len(found)), value=len(lengths) - 1)[None]
