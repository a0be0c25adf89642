"""What an engine will do with a model, found out by two steps before training."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gradvac.engine import Engine, StepReport
from gradvac.engine.groups import Grouping
from gradvac.engine.task_names import TaskOfSample
from gradvac.errors import GradientError
from gradvac.geometry.diagnose import undisturbed
from gradvac.methods import Joint, Method
from gradvac.tables import Table

__all__ = ["Preflight", "preflight"]

LossesOf = Callable[[nn.Module, Any], Tensor]
"""The losses of a model on a batch, ``[B, ...]``, neither averaged nor summed over samples."""

_IGNORED = -100  # label of a position without loss, by the convention of transformers


@dataclass(frozen=True)
class Preflight:
    """What an engine will do with a model; ``print`` shows it as a table.

    Attributes:
        tasks: the K tasks of the batch.
        single_pass: whether one backward pass gives the gradients of all tasks.
        reason: why not; empty if it does. It names the operation and its module.
        backward_passes: number of backward passes of a step.
        trained: how many numbers are trained.
        groups: bytes of one gradient of each parameter group, by name.
        plain: bytes that a step of plain training needs at its peak beside the model.
        peak: the same for a step of the engine, which includes the gradients of all tasks.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
        >>> batch, tasks = torch.randn(4, 8), ["fr", "hi", "fr", "hi"]
        >>> found = gradvac.preflight(model, batch, tasks, lambda model, x: model(x).square())
        >>> found.single_pass, found.backward_passes
        (False, 2)
        >>> found.reason  # doctest: +ELLIPSIS
        "'batch_norm' in module '1' (BatchNorm1d): batch normalisation in training mode mixes ..."
    """

    tasks: tuple[str, ...]
    single_pass: bool
    reason: str
    backward_passes: int
    trained: int
    groups: dict[str, int]
    plain: int
    peak: int

    def __str__(self) -> str:
        k, largest = len(self.tasks), max(self.groups, key=lambda name: self.groups[name])
        way = (
            "one backward pass for all tasks" if self.single_pass else f"falls back: {self.reason}"
        )
        rows = [
            ("tasks", f"{k}: {', '.join(self.tasks)}"),
            ("trained", f"{self.trained:,} numbers in {len(self.groups)} groups"),
            ("backward passes of a step", str(self.backward_passes)),
            ("peak of a step of plain training", _size(self.plain)),
            ("peak of a step of the engine", _size(self.peak)),
            (f"gradients of {k} tasks, all groups", _size(k * sum(self.groups.values()))),
            (f"of the largest group, {largest}", _size(k * self.groups[largest])),
        ]
        table = Table(["", ""], [list(row) for row in rows])
        return f"{way}\n{table.text()}"


def preflight(
    model: nn.Module,
    batch: Any,
    tasks: TaskOfSample,
    losses: LossesOf | None = None,
    *,
    method: Method | None = None,
    granularity: Grouping = "all_layer",
    batch_dim: int = 0,
    **options: Any,
) -> Preflight:
    """Say before training whether one backward pass is enough, else why not, and what it costs.

    It runs one step of plain training and two of an engine, of which the first has the checks, and
    follows what memory tensors take. The model is left as it was: parameters, ``p.grad``, buffers,
    modes, and torch's random numbers.

    Args:
        model: the model, in the mode to be trained.
        batch: what the model takes, as large as in training if the memory is to be known.
        tasks: the task of each of the B samples, as for ``engine.tasks``.
        losses: losses ``[B, ...]`` of the model and the batch; by default, for a mapping with
            ``labels``, the cross-entropy of the logits that ``model(**batch)`` returns.
        method: the method; it is copied. By default the plain sum.
        granularity: how parameters are grouped.
        batch_dim: the dimension of the samples.
        **options: further arguments of the engine, such as ``heads``, ``budget`` or ``passes``.

    Raises:
        GradientError: if the engine would reject the model or the losses.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Linear(8, 2)
        >>> batch, tasks = torch.randn(4, 8), ["fr", "hi", "fr", "hi"]
        >>> found = gradvac.preflight(model, batch, tasks, lambda model, x: model(x).square())
        >>> found.single_pass, found.reason, found.backward_passes
        (True, '', 1)
        >>> found.groups  # 18 numbers of 4 bytes each
        {'head': 72}
    """
    compute = losses or _own_losses
    with undisturbed(model), _quiet():
        trained = [p for p in model.parameters() if p.requires_grad]
        with Memory() as of_plain:
            loss = compute(model, batch).sum()
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            del loss, gradients
        memory = Memory()
        engine = Engine(model, copy.deepcopy(method or Joint()), granularity, **options)

        given: Any = list(tasks) if isinstance(tasks, Iterator) else tasks  # read twice

        def step() -> StepReport:
            model.zero_grad()
            memory.restart()
            with memory, engine.tasks(given, batch_dim):
                loss = compute(model, batch)
                return engine.backward(loss / loss.numel())

        step()  # with the checks
        report = step()
        model.zero_grad()
    wide = lambda p: p.numel() * max(4, p.element_size())
    return Preflight(
        tasks=tuple(report.tasks),
        single_pass=not engine.refused and options.get("engine") != "per_task",
        reason=engine.refused,
        backward_passes=_passes(engine, len(report.tasks), options),
        trained=sum(p.numel() for p in trained),
        groups={group.name: sum(map(wide, group.parameters)) for group in engine.groups},
        plain=of_plain.peak,
        peak=memory.peak,
    )


def _passes(engine: Engine, n_tasks: int, options: Mapping[str, Any]) -> int:
    if engine.refused or options.get("engine") == "per_task":
        return n_tasks
    return options.get("passes", 1)


def _own_losses(model: nn.Module, batch: Any) -> Tensor:
    """The cross-entropy of each label; causal models shift them, which makes no difference here."""
    if not isinstance(batch, Mapping) or "labels" not in batch:
        raise GradientError(
            "preflight() needs losses=, a function of the model and the batch that returns losses "
            "[B, ...], or a batch that is a mapping with 'labels'"
        )
    labels: Tensor = batch["labels"]
    logits = model(**batch)["logits"]
    if logits.shape[:-1] != labels.shape or labels.is_floating_point():
        raise GradientError(
            f"logits are {list(logits.shape)} and labels {labels.dtype} {list(labels.shape)}, "
            "which do not fit a classification; give losses=, a function of the model and the batch"
        )
    found = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return (found * (labels != _IGNORED).flatten()).view(labels.shape)


class Memory(TorchDispatchMode):
    """Follows the memory of the tensors that are made inside.

    Attributes:
        peak: the most bytes that they took at a time, since the last restart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: set[int] = set()

    def restart(self) -> None:
        """Begin to look for the peak again; tensors that still live count."""
        self.peak = self._now

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count the memory of what it returns unless that is known."""
        given = {_key(x) for x in _tensors((*args, *(kwargs or {}).values()))}
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):
            if (key := _key(x)) not in given:
                self._add(x.untyped_storage(), key)
        return out

    def _add(self, storage: torch.UntypedStorage, key: int) -> None:
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.layout == torch.strided:
            yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _size(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB"


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the engine's lines about falling back, which the result has."""
    log = logging.getLogger("gradvac")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
