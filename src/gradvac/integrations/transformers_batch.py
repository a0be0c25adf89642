"""The task of each sample on its way from a dataset's column into a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from gradvac.errors import GradientError


class TaskCollator:
    """Collates a batch by another collator and adds the task of each sample, a list of B values.

    Args:
        collator: never gets the task, which it could not make a tensor of.
        column: key of the task.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str) -> None:
        self.collator = collator
        self.column = column

    def __call__(self, features: list[Any]) -> Any:
        """Return the batch, with tasks if its samples have them: evaluation does not need them.

        Raises:
            GradientError: if some samples have a task and others do not.
        """
        if not any(isinstance(f, Mapping) and self.column in f for f in features):
            return self.collator(features)
        tasks = [f.get(self.column) for f in features]
        if None in tasks:
            raise GradientError(
                f"sample {tasks.index(None)} of a batch has no {self.column!r} and others have; "
                "every sample needs its task"
            )
        rest = [{k: v for k, v in f.items() if k != self.column} for f in features]
        batch = self.collator(rest)
        batch[self.column] = tasks
        return batch


def take_tasks(inputs: dict[str, Any], column: str, names: Sequence[str] | None) -> list[list[str]]:
    """Take the tasks out of a batch and return their names, by rows.

    Args:
        inputs: the batch; ``column`` holds names, or positions in ``names``; of a row that holds
            several sequences, a list of them.
        column: key of the tasks.
        names: what positions stand for; if None, the position itself is the name.

    Raises:
        GradientError: if the batch has no tasks.
    """
    values = inputs.pop(column, None)
    if values is None:
        near = get_close_matches(column, inputs, 1)
        raise GradientError(
            f"the batch has no {column!r}, only {', '.join(inputs)}"
            + (f"; is it {near[0]!r}?" if near else "")
            + ". The training dataset needs a column with the task of each sample; task_column= "
            "says which"
        )
    values = values.tolist() if isinstance(values, Tensor) else values
    named = dict(enumerate(names or ()))
    rows = [value if isinstance(value, list) else [value] for value in values]
    return [[str(named.get(value, value)) for value in row] for row in rows]


def segments_of(inputs: Mapping[str, Any], tasks: Sequence[Sequence[str]]) -> Tensor | None:
    """Return the sequence of each token, ``[B, T]``, of a batch whose rows hold several sequences.

    Args:
        inputs: the batch, with ``position_ids`` ``[B, T]``: 0 where a sequence begins and in
            padding at the end of a row.
        tasks: the tasks of each sample, which are rows, or are laid end to end in one row.

    Returns:
        The position of each token's sequence; None if each sequence has a row of its own.

    Raises:
        GradientError: if there are not as many sequences as tasks, or it is not known where
            sequences begin.

    Example:
        >>> import torch
        >>> positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
        >>> segments_of({"position_ids": positions}, [["fr", "hi"], ["fr"]])
        tensor([[0, 0, 0, 1, 1, 2]])
        >>> positions = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]])
        >>> segments_of({"position_ids": positions}, [["fr", "hi"], ["hi"]])
        tensor([[0, 0, 1, 1],
                [2, 2, 2, 2]])
    """
    positions, ids = inputs.get("position_ids"), inputs.get("input_ids")
    positions = positions if isinstance(positions, Tensor) and positions.ndim == 2 else None
    shape = list(ids.shape) if isinstance(ids, Tensor) else []
    rows_apart = shape[:1] == [len(tasks)]
    n_sequences = sum(map(len, tasks))
    if n_sequences == 1 or (rows_apart and n_sequences == len(tasks)):
        return None
    if positions is not None and len(positions) == 1:
        return _segments_of_row(positions[0].cpu(), n_sequences)[None]
    if n_sequences == len(tasks):
        return None
    if positions is not None and len(positions) == len(tasks):
        rows, first = [], 0
        for row, own in zip(positions.cpu(), tasks, strict=True):
            rows.append(first + _segments_of_row(row, len(own)))
            first += len(own)
        return torch.stack(rows)
    if rows_apart:
        raise GradientError(
            f"the {len(tasks)} rows of a batch have {n_sequences} tasks, so rows hold several "
            f"sequences, and no position_ids {shape} say where each begins; let the data "
            "collator return them (and no attention_mask, beside which transformers ignores them)"
        )
    return None


def _segments_of_row(positions: Tensor, n_sequences: int) -> Tensor:
    """Return the sequence of each token, ``[T]``; a row of one task is one sequence."""
    if n_sequences == 1:
        return torch.zeros_like(positions)
    segments = (positions == 0).cumsum(0) - 1
    behind = segments >= n_sequences  # padding, which has no losses
    found = int(segments.max()) + 1
    if bool(behind.any()) and not bool(positions[behind].any()):
        found = n_sequences
    if found != n_sequences or int(segments.min()) < 0:
        raise GradientError(
            f"a packed row has {n_sequences} tasks and its position ids begin {found} sequences; "
            "each sequence needs one task and position ids that begin with 0"
        )
    return segments.clamp(max=n_sequences - 1)
