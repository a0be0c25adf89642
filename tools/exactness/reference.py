"""Models to compare on, and their exact gradients by backward passes of plain PyTorch."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Case:
    """A model and a batch.

    Attributes:
        model: what is trained; it is copied for every run.
        losses: the forward pass of such a copy, losses ``[B, ...]``.
        tasks: the task of each of the B samples.
        options: further arguments of ``engine.tasks``.
        permutes: whether losses may stand in another order than samples. An engine that follows
            the samples then knows better whose losses they are than their order says, and is
            told the order where that makes a difference.
    """

    model: nn.Module
    losses: Callable[[nn.Module], Tensor]
    tasks: Sequence[str]
    options: dict[str, Any] = field(default_factory=dict)
    permutes: bool = False


class Unfit(Exception):
    """The case says nothing about the engine: it does not run in plain PyTorch either."""


HALF = (torch.bfloat16, torch.float16, torch.complex32)
SINGLE = (torch.float32, torch.complex64)


class Casts(TorchFunctionMode):
    """Notes the fewest bytes of the numbers that carry a gradient: 8, 4 or 2."""

    narrow = 8

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.requires_grad and out.dtype in (*HALF, *SINGLE):
            self.narrow = min(self.narrow, 2 if out.dtype in HALF else 4)
        return out


def seed() -> None:
    """Set every source of random numbers that a forward pass may use."""
    torch.default_generator.manual_seed(1)  # not those of devices, which takes ten times as long
    np.random.seed(1)
    random.seed(1)


@dataclass
class Reference:
    """The gradient of each task and parameter, by a backward pass of plain PyTorch for each."""

    of: dict[str, list[Tensor]]
    names: list[str]
    losses: dict[str, float]
    narrow: int

    @property
    def limits(self) -> tuple[float, float]:
        """The error allowed, and below what part of the whole gradient nothing is relative.

        A gradient that should be zero is rounding alone.
        """
        return {8: (1e-8, 1e-3), 4: (1e-3, 1e-3), 2: (0.05, 0.05)}[self.narrow]


def separate(case: Case) -> Reference:
    """Run the backward passes that the engine is compared with.

    Raises:
        Unfit: if plain PyTorch does not run the case, or not twice alike.
    """
    model = copy.deepcopy(case.model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    try:
        seed()
        with Casts() as casts:
            loss = case.losses(model)
        if loss.shape[:1] != (len(case.tasks),):
            raise Unfit(f"losses {list(loss.shape)} are not one for each sample")
        found: dict[str, list[Tensor]] = {}
        values = {}
        for task in dict.fromkeys(case.tasks):
            own = loss[torch.tensor([t == task for t in case.tasks])].sum()
            values[task] = float(own.detach())
            found[task] = _gradients(own, parameters, retain_graph=True)
        joint = _gradients(loss.sum(), parameters)
        seed()
        again = case.losses(copy.deepcopy(case.model)).detach()
    except Unfit:
        raise
    except Exception as e:
        raise Unfit(line_of(e)) from e
    size = float(sum(g.abs().sum().double() for each in found.values() for g in each))
    if not math.isfinite(size):
        raise Unfit("its gradients are not finite")
    if not size:
        raise Unfit("its gradients are zero")
    if not torch.equal(again, loss.detach()):
        raise Unfit("with the same random numbers it gives other losses the second time")
    sums = [torch.stack(each).double().sum(0) for each in zip(*found.values(), strict=True)]
    apart = sum(float((a - b).abs().sum()) for a, b in zip(sums, joint, strict=True))
    narrow = min(casts.narrow, 4) if apart > 1e-12 * size else casts.narrow
    return Reference(found, [name for name, _ in named], values, narrow)


def _gradients(
    loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False
) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g)
        for g, p in zip(gradients, parameters, strict=True)
    ]


def line_of(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(lines[0].split()) if lines else ''}"[:200]
