"""Steps that do not fit into memory: split into halves, or an error that says what to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradvac.errors import RunError
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.training.job import TaskBatch

B = TypeVar("B", bound=TaskBatch)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is out of memory: of a GPU, PyTorch's CPU allocator or Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text
    )


def halves(batches: Sequence[B]) -> list[B]:
    """Each batch split into two halves, in order; a batch of one sample is not split.

    A batch is a dataclass; the first dimension of its tensors is the sample.
    """
    found: list[B] = []
    for batch in batches:
        size = len(batch.task)
        middle = (size + 1) // 2
        for rows in (slice(0, middle), slice(middle, size)):
            if rows.start < size:
                found.append(with_tensors(batch, lambda x, rows=rows: x[rows]))
    return found


def with_tensors(batch: B, change: Any) -> B:
    """The same batch with ``change`` applied to each tensor."""
    data: Any = batch
    tensors = {name: change(x) for name, x in tensors_of(batch).items()}
    return dataclasses.replace(data, **tensors)


def tensors_of(batch: TaskBatch) -> dict[str, Tensor]:
    """The tensors of a batch by field name."""
    data: Any = batch
    found = {field.name: getattr(batch, field.name) for field in dataclasses.fields(data)}
    return {name: x for name, x in found.items() if isinstance(x, Tensor)}


def too_large(recipe: BaseRecipe, step: int, batches: Sequence[TaskBatch]) -> RunError:
    """The error for a step that does not fit even in halves."""
    largest = max(batches, key=lambda b: max(x.numel() for x in tensors_of(b).values()))
    shapes = ", ".join(
        f"{name} {list(x.shape)}" for name, x in tensors_of(largest).items() if x.dim() > 1
    )
    section: Any = recipe.batches
    unit = "tokens" if hasattr(section, "tokens") else "sentences"  # of the batch size
    once = "and again with the batch in halves; the largest half is"
    if len(largest.task) == 1:
        once = "with one sentence at a time;"
    size, micro = getattr(section, unit), section.accumulate
    quarter = max(1, size // 4)
    return RunError(
        f"step {step}: memory ran out, {once} {shapes}. In another folder, lower batches.{unit} "
        f"(now {size}); with batches.{unit}={quarter} and batches.accumulate={micro * 4} "
        f"(now {micro}) a step holds as many sentences"
    )
