"""The task of each sample on its way from a dataset's column into a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

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


def take_tasks(inputs: dict[str, Any], column: str, names: Sequence[str] | None) -> list[str]:
    """Take the tasks out of a batch and return their names, ``[B]``.

    A row that holds several sequences has a list of tasks; these are put one after another.

    Args:
        inputs: the batch; ``column`` holds names, or positions in ``names``.
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
    each = [v for value in values for v in (value if isinstance(value, list) else [value])]
    named = dict(enumerate(names or ()))
    return [str(named.get(value, value)) for value in each]


def segments_of(inputs: Mapping[str, Any], tasks: Sequence[str]) -> Tensor | None:
    """Return the sequence of each token, ``[1, T]``, of a batch that is one row of sequences.

    Args:
        inputs: the batch; a padding-free one has ``position_ids`` ``[1, T]``, 0 where a sequence
            begins and in padding at the end.
        tasks: the task of each sequence.

    Returns:
        The position of each token's sequence; None if each sequence has a row of its own.

    Raises:
        GradientError: if there are not as many sequences as tasks.

    Example:
        >>> import torch
        >>> segments_of({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]])}, ["fr", "hi", "fr"])
        tensor([[0, 0, 0, 1, 1, 2]])
    """
    positions = inputs.get("position_ids")
    if not isinstance(positions, Tensor) or positions.shape[:-1] != (1,) or len(tasks) == 1:
        return None
    segments = (positions.cpu() == 0).cumsum(1) - 1
    behind = segments >= len(tasks)  # padding, which has no losses
    found = int(segments.max()) + 1
    if bool(behind.any()) and not bool(positions.cpu()[behind].any()):
        found = len(tasks)
    if found != len(tasks) or int(segments.min()) < 0:
        raise GradientError(
            f"a packed row has {len(tasks)} tasks and its position ids begin {found} sequences; "
            "each sequence needs one task and position ids that begin with 0"
        )
    return segments.clamp(max=len(tasks) - 1)
