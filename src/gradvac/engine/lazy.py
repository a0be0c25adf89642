"""Steps without a wait: decided on the device, and read when somebody looks at their report.

The Gram matrices stay on the device, and a method with ``on_device`` computes its weights there.
Whether everything is finite is one bool on the device. Where it is False, ``p.grad`` gets zeros
added and the method keeps the state from before the step. Its copy on the host arrives later, and
the error is raised when the next step begins after that, or where the host waits anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.heads import check_heads
from gradvac.engine.nonfinite import NonFinite, skipped_report
from gradvac.engine.report import StepReport, check_shape, check_weights, joined
from gradvac.engine.step import Step, read_together
from gradvac.errors import NotFiniteError
from gradvac.methods import Method, StepGeometry

_FIELDS = ("geometry", "weights", "diagnostics", "skipped")


class LazyReport(StepReport):
    """What :class:`StepReport` says, read from the device when it is first looked at.

    The host then waits, once. ``step``, ``tasks``, ``groups`` and :attr:`found_inf` need no wait.

    Raises:
        GradientError: when a number is read, if the step was not finite (NotFiniteError); with
            ``nonfinite="skip"`` only ``skipped`` says so.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> engine = gradvac.Engine(model, gradvac.PCGrad(), lazy=True)
        >>> with engine.tasks(["fr", "hi"]):  # their gradients are (1, 0) and (-1, 1)
        ...     report = engine.backward(model(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])))
        >>> report.weights, report.found_inf
        (tensor([[2.0000, 1.5000]], dtype=torch.float64), tensor(0.))
    """

    _unread: _Unread

    def __init__(self, unread: _Unread) -> None:
        object.__setattr__(self, "_unread", unread)

    def __getattr__(self, name: str) -> Any:
        """Read the numbers from the device."""
        if name not in _FIELDS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        read = self._unread.read()
        for field in _FIELDS:
            object.__setattr__(self, field, getattr(read, field))
        return self.__dict__[name]

    @property
    def step(self) -> int:
        """Number of the optimizer step."""
        return self._unread.parts[0].step

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of the batch; a task without a loss has the weight 0."""
        return self._unread.parts[0].tasks

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the parameter groups."""
        return self._unread.groups

    @property
    def finite(self) -> Tensor:
        """Whether the step was finite, a bool on the device."""
        return self._unread.finite

    @property
    def found_inf(self) -> Tensor:
        """1 if the step was not finite, else 0: a float32 number on the device.

        Fused optimizers of PyTorch do nothing at all where their attribute ``found_inf`` is 1.
        """
        return 1.0 - self.finite.float()


@dataclass
class _Unread:
    """The numbers of a step on the device; see :func:`report_unread`."""

    parts: list[StepReport]  # of some groups each, as the method decided them
    groups: tuple[str, ...]
    method: str  # its class
    heads: list[tuple[str, str]]  # task and name of each parameter of a head that has a gradient
    heads_state: Tensor | None
    finite: Tensor
    policy: NonFinite

    def read(self) -> StepReport:
        """Copy everything to the host in one wait.

        Raises:
            GradientError: if the step was not finite.
        """
        first = self.parts[0].geometry
        every = [t for p in self.parts for t in (p.gram, p.weights, *p.diagnostics.values())]
        there = [*every, first.losses, first.shares, self.heads_state]
        found = read_together([None if x is None else x.double() for x in there])
        losses, shares, heads = found[-3:]
        assert losses is not None
        numbers = iter(x.to(t.dtype) for x, t in zip(found, every, strict=False) if x is not None)
        parts: list[StepReport] = []
        try:
            for part in self.parts:
                names = part.tasks, part.groups, part.step
                geometry = StepGeometry(next(numbers), losses, *names, shares)
                weights = next(numbers)
                diagnostics = {key: next(numbers) for key in part.diagnostics}
                geometry.check_finite()
                check_weights(weights, geometry, self.method)
                parts.append(StepReport(geometry, weights, diagnostics))
            if heads is not None:
                check_heads(self.heads, heads.tolist())
        except NotFiniteError as error:
            if self.policy == "raise":
                raise
            part = self.parts[0]
            return skipped_report(part.tasks, self.groups, losses, part.step, str(error))
        return joined(parts, self.groups)


def decide_unread(step: Step, method: Method, gram: Tensor, groups: tuple[str, ...]) -> Tensor:
    """Return the method's weights ``[groups, K]``, on the device; nothing is read or checked.

    Tasks without a loss get the weight 0, as if they were not there.

    Args:
        step: the step; what is to be reported is added to it.
        method: the method; its state advances.
        gram: inner products of the gradients of all tasks, ``[groups, K, K]``, on the device.
        groups: names of the groups.
    """
    device, tasks = gram.device, step.tasks
    added = step.added().to(device)
    here = added[1] > 0
    here = here | ~here.any()
    losses, shares = added[0] / step.loss_scale, step.shares_on(device)
    gram = torch.where(here[:, None] & here, gram, 0.0)
    geometry = StepGeometry(gram, losses, tasks, groups, step.number, shares)
    weights = method.weights_unread(geometry)
    check_shape(weights, geometry, type(method).__name__)
    weights = torch.where(here, weights, 0.0)
    step.unread.append(StepReport(geometry, weights, method.report()))
    return weights


def report_unread(
    step: Step,
    method: Method,
    groups: tuple[str, ...],
    heads: list[tuple[str, str]],
    policy: NonFinite,
) -> LazyReport:
    """Return the report of a step.

    Args:
        step: the step, all groups of which were decided by :func:`decide_unread`.
        method: the method.
        groups: names of the groups, in the order of the model.
        heads: task and name of each parameter of a head that has a gradient.
        policy: what is done about a number that is not finite.
    """
    numbers: list[Tensor] = []
    for part in step.unread:
        numbers += [part.gram.flatten(), part.weights.flatten(), part.geometry.mean_losses]
    finite = torch.cat(numbers).mul(0).sum() == 0  # inf and NaN times 0 are NaN
    if step.heads_state is not None:
        finite = finite & (step.heads_state.amin() != 0).to(finite.device)
    parts, name = step.unread, type(method).__name__
    return LazyReport(_Unread(parts, groups, name, heads, step.heads_state, finite, policy))


def zero_unless(finite: Tensor, gradients: Iterable[tuple[Tensor, Tensor | None]]) -> None:
    """Set combined gradients to 0 in place where a step was not finite."""
    whole: dict[int, Tensor] = {}
    for _, gradient in gradients:
        if gradient is not None:
            dense = gradient._values() if gradient.is_sparse else gradient
            base = dense if dense._base is None else dense._base  # of all parameters of a group
            whole[id(base)] = base
    bad = ~finite
    for each in whole.values():
        each.masked_fill_(bad.to(each.device), 0.0)


class Unsettled:
    """Steps of which the host does not know yet whether they were finite."""

    def __init__(self) -> None:
        self._steps: list[tuple[LazyReport, Tensor, torch.Event | None]] = []

    def add(self, report: LazyReport) -> None:
        """Send for the answer, without a wait."""
        there, event = report.finite, None
        answer = there.to("cpu", non_blocking=True)
        if there.device.type != "cpu":
            event = torch.Event(there.device)
            event.record()
        self._steps.append((report, answer, event))

    def check(self, wait: bool = False) -> None:
        """Look at the answers that have arrived; wait for all of them if ``wait``.

        Raises:
            GradientError: if a step was not finite (NotFiniteError), once.
        """
        while self._steps:
            report, answer, event = self._steps[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._steps.pop(0)
            if not bool(answer):
                _ = report.skipped  # raises, unless such steps are skipped
