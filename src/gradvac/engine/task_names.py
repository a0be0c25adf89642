"""The tasks of the samples of a batch, in the accepted forms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gradvac.errors import GradientError

TaskOfSample = Iterable[str | int] | Tensor | tuple[Tensor | Sequence[int], Sequence[str]]
"""A name for each sample, or a position for each sample and the names."""


def names_and_index(tasks: TaskOfSample) -> tuple[list[str], Tensor]:
    """Return the names of the tasks that occur and each sample's position among them, ``[B]``.

    Args:
        tasks: an iterable of B names; names may be integers, ``3`` meaning the task ``"3"``. Or
            ``(positions, names)``: B integers, each an index into ``names``, such as the column and
            the ``names`` of a ``ClassLabel``.

    Raises:
        GradientError: if there is no sample, or a name or a position is invalid.

    Example:
        >>> names_and_index(["fr", "hi", "fr"])
        (['fr', 'hi'], tensor([0, 1, 0]))
        >>> names_and_index(([2, 0, 2], ["fr", "hi", "tr"]))
        (['fr', 'tr'], tensor([1, 0, 1]))
    """
    if isinstance(tasks, tuple) and len(tasks) == 2 and not isinstance(tasks[0], str | Integral):
        names, index = _positions(*tasks)
    else:
        if isinstance(tasks, str):
            raise GradientError(f"tasks is {tasks!r}; it must hold a name for each sample")
        each = tasks.tolist() if isinstance(tasks, Tensor) else list(tasks)
        each = [task_name(name, n) for n, name in enumerate(each if isinstance(each, list) else [])]
        known = {name: n for n, name in enumerate(dict.fromkeys(each))}
        names, index = list(known), torch.tensor([known[name] for name in each], dtype=torch.int64)
    if not names:
        raise GradientError("tasks() needs at least one sample")
    return names, index


def tasks_of_tokens(index: Tensor, segments: Tensor) -> Tensor:
    """Return the position of the task of each token, on the CPU: ``[B, T]``, of one row ``[T]``.

    Args:
        index: position of the task of each sequence, ``[S]``.
        segments: position of the sequence of each token, ``[B, T]`` or ``[T]``.

    Raises:
        GradientError: if ``segments`` has another shape or is no position of a sequence.

    Example:
        >>> tasks_of_tokens(torch.tensor([1, 0]), torch.tensor([[0, 0, 0, 1, 1]]))
        tensor([1, 1, 1, 0, 0])
    """
    found = segments.detach().cpu()
    if found.is_floating_point() or found.dtype == torch.bool or found.ndim not in (1, 2):
        raise GradientError(
            f"segments is {found.dtype} {list(found.shape)}; it must be integers [B, T] or [T], "
            "the position of each token's sequence among the task names"
        )
    found = (found[0] if found.ndim == 2 and len(found) == 1 else found).long()
    some = found.numel() > 0
    if not some or not 0 <= int(found.min()) <= int(found.max()) < len(index):
        values = f"in [{int(found.min())}, {int(found.max())}]" if some else "missing"
        raise GradientError(
            f"segments are {values}; {len(index)} task names allow 0 to {len(index) - 1}"
        )
    return index[found]


def task_name(name: Any, sample: int | None = None) -> str:
    """Return the name of a task as a string; an integer is converted.

    Raises:
        GradientError: if it is anything else.
    """
    if isinstance(name, str):
        return name
    if isinstance(name, Integral) and not isinstance(name, bool):
        return str(int(name))
    where = "a task name" if sample is None else f"the task of sample {sample}"
    raise GradientError(
        f"{where} is {name!r}; it must be a string, or an integer to be written out"
    )


def _positions(positions: Any, names: Any) -> tuple[list[str], Tensor]:
    """Read positions and the names that they index."""
    names = [task_name(name) for name in names]
    try:
        found = torch.as_tensor(positions).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise GradientError(
            f"tasks are {type(positions).__name__} and {type(names).__name__}; two sequences are "
            "integers, one for each sample, and the names they stand for"
        ) from error
    if found.ndim != 1 or found.is_floating_point() or found.dtype == torch.bool:
        raise GradientError(
            f"task positions are {found.dtype} {list(found.shape)}; they must be integers [samples]"
        )
    if len(found) and not 0 <= int(found.min()) <= int(found.max()) < len(names):
        raise GradientError(
            f"task positions lie in [{int(found.min())}, {int(found.max())}]; "
            f"{len(names)} names allow 0 to {len(names) - 1}"
        )
    present, index = torch.unique(found, return_inverse=True)
    return [names[n] for n in present.tolist()], index
