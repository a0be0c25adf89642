"""Small models around one operator: what its arguments are, and a loss for each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .reference import Case, Unfit

MOST = 20  # samples in a batch
ORDER = "bacabcab"  # of tasks


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [t for part in value for t in tensors_of(part)] if isinstance(value, list | tuple) else []
    )


def refilled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Put other tensors in the places of those of :func:`tensors_of`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: refilled(part, tensors) for key, part in value.items()}
    if isinstance(value, list | tuple) and tensors_of(value):
        parts = [refilled(part, tensors) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


@dataclass(frozen=True)
class Role:
    """What the tensor arguments of an operator are.

    Attributes:
        samples: positions of the arguments that hold samples, along ``dim``; none of them if the
            operator gets parameters alone.
        carries: whether a parameter was multiplied into the samples before.
        parameter: position of the argument that is a parameter; None for none.
        expanded: whether that parameter is expanded to the batch.
        pick: which output dimension of the size of the batch holds the losses.
        whole: whether the parameter multiplied in is one number.
    """

    samples: tuple[int, ...]
    dim: int = 0
    carries: bool = True
    parameter: int | None = None
    expanded: bool = False
    pick: int = 0
    whole: bool = False

    def __str__(self) -> str:
        what = f"samples {list(self.samples)} dim {self.dim}" if self.samples else "parameter alone"
        what += "" if self.carries or not self.samples else " without gradient"
        if self.parameter is not None and self.samples:
            what += f", parameter {self.parameter}{' expanded' if self.expanded else ''}"
        return what + (f", losses along candidate {self.pick}" if self.pick else "")


def _generator(text: str) -> torch.Generator:
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def _normal(shape: Sequence[int], what: str) -> Tensor:
    return torch.randn(tuple(shape), generator=_generator(what), dtype=torch.float64)


class Fixed:
    """What copies of a model share: arguments that are not copied, and may not allow it."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __deepcopy__(self, memo: Any) -> Fixed:
        return self


class Around(nn.Module):
    """An operator between two parameters."""

    def __init__(self, func: Callable[..., Any], arguments: Any, role: Role) -> None:
        super().__init__()
        self.fixed, self.role = Fixed(func, arguments), role
        self.before = nn.ParameterDict()
        tensors = tensors_of(arguments)
        if role.carries:
            for n in role.samples:
                shape = list(tensors[n].shape)
                shape[role.dim] = 1
                shape = [1] * len(shape) if role.whole else shape
                factor = 1.1 + 0.1 * _normal(shape, f"w{n}").tanh()
                self.before[str(n)] = nn.Parameter(factor.to(tensors[n].dtype))
        self.own = None
        if role.parameter is not None:
            value = tensors[role.parameter]
            value = value.narrow(role.dim, 0, 1) if role.expanded else value
            self.own = nn.Parameter(value.detach().clone())

    def forward(self, *samples: Tensor) -> Any:
        func, arguments = self.fixed.values
        tensors = tensors_of(arguments)
        for n, x in zip(self.role.samples, samples, strict=False):
            tensors[n] = x * self.before[str(n)] if self.role.carries else x
        if self.own is not None and (n := self.role.parameter) is not None:
            expanded = self.role.expanded
            tensors[n] = self.own.expand(tensors[n].shape) if expanded else self.own
        args, kwargs = refilled(arguments, iter(tensors))
        return func(*args, **kwargs)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


class Losses(nn.Module):
    """A loss for each sample of what an operator returns.

    Where no dimension of an output is as long as the batch, every loss depends on all of it.
    """

    def __init__(self, around: Around, n_samples: int) -> None:
        super().__init__()
        self.around, self.n = around, n_samples
        self.scales = nn.ParameterList()

    def prepare(self, samples: Sequence[Tensor]) -> None:
        """Make parameters of the shape of the outputs."""
        with torch.no_grad():
            outputs = self.outputs(samples)
        if not outputs:
            raise Unfit("no output carries a gradient")
        for n, out in enumerate(outputs):
            shape = list(out.shape)
            dim = self._dim(out)
            if dim is not None and self.around.role.samples:
                shape[dim] = 1
            self.scales.append(nn.Parameter((1 + 0.1 * _normal(shape, f"v{n}")).to(out.dtype)))

    def outputs(self, samples: Sequence[Tensor]) -> list[Tensor]:
        out = self.around(*samples)
        found = [x for x in tensors_of(out) if x.is_floating_point() or x.is_complex()]
        return [_real(x) for x in found if x.layout == torch.strided][:3]

    def _dim(self, out: Tensor) -> int | None:
        dims = [d for d in range(out.ndim) if out.shape[d] == self.n]
        first = self.around.role.dim
        dims.sort(key=lambda d: d != first)
        return dims[self.around.role.pick % len(dims)] if dims else None

    def forward(self, *samples: Tensor) -> Tensor:
        total = torch.zeros(self.n, dtype=torch.float64)
        for n, out in enumerate(self.outputs(samples)):
            if not self.around.role.samples:
                y = out * self.scales[n]
                weights = samples[0].view(-1, *[1] * out.ndim) * _normal(out.shape, f"x{n}")
                each = (weights * y).sin()
                total = total + (each.flatten(1).sum(1) if each.ndim > 1 else each)
                continue
            y = out * self.scales[n]
            dim = self._dim(out)
            weights = _normal(out.shape, f"c{n}")
            if dim is None:
                total = total + (y.sin() * weights).sum() * torch.arange(1.0, self.n + 1).double()
            else:
                each = (y.sin() * weights).movedim(dim, 0)
                total = total + (each.flatten(1).sum(1) if each.ndim > 1 else each)
        return total


def case_of(func: Callable[..., Any], arguments: Any, role: Role) -> Case:
    """Build the model and batch of a role."""
    tensors = tensors_of(arguments)
    samples = [tensors[n].detach().clone() for n in role.samples] or [_normal([4], "samples")]
    n = samples[0].shape[role.dim]
    model = Losses(Around(func, arguments, role), n)
    model.prepare(samples)
    tasks = [ORDER[i % len(ORDER)] for i in range(n)]
    options = {"inputs": samples, "batch_dim": role.dim}
    return Case(model, lambda m: m(*samples), tasks, options, permutes=True)
