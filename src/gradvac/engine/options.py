"""The options of an engine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from gradvac.engine.groups import Grouping, Heads
from gradvac.engine.nonfinite import NonFinite, check_policy
from gradvac.errors import GradientError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from gradvac.engine.ranks.group import Ranks

BUDGET = 2**31
"""Bytes that the task gradients of one parameter may take by default: 2 GiB, chosen here.

The 64k-token softmax of Transformer-Big exceeds it from K = 9.
"""


@dataclass(frozen=True)
class EngineOptions:
    """The arguments of :class:`gradvac.Engine` besides model and method; documented there.

    Raises:
        GradientError: if a value is not one of those allowed.
    """

    granularity: Grouping = "all_layer"
    heads: Heads | None = None
    engine: Literal["single_pass", "per_task"] | None = None
    verify_steps: int = 1
    nonfinite: NonFinite = "raise"
    task_names: Collection[str] | None = None
    passes: int = 1
    budget: int = BUDGET
    process_group: ProcessGroup | Ranks | None = None
    storage: torch.dtype | None = None
    plan: bool = True
    lazy: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ("single_pass", "per_task", None):
            raise GradientError(
                f"engine is {self.engine!r}; it must be 'single_pass', 'per_task' or None for "
                "either"
            )
        check_policy(self.nonfinite)
        if self.passes not in (1, 2):
            raise GradientError(f"passes is {self.passes}; it must be 1 or 2")
        if self.storage not in (None, torch.bfloat16):
            raise GradientError(
                f"storage is {self.storage!r}; it must be torch.bfloat16, or None for float32"
            )
        if self.budget <= 0:
            raise GradientError(f"budget is {self.budget}; it must be a positive number of bytes")
