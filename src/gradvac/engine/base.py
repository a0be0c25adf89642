"""What every engine has in common: groups, method, the number of the next step and how one ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradvac.engine.groups import Grouping, Heads, parameter_groups, task_heads
from gradvac.engine.guards import Guard, refuse_wrapped
from gradvac.engine.heads import HeadGradients
from gradvac.engine.nonfinite import LossScale, NonFinite, check_policy, skip_or_raise
from gradvac.engine.ranks.agreement import Agreement, agree, sameness, tell_failure
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.shards import Shards, failure_of_a_collective, shards_of
from gradvac.engine.report import StepReport
from gradvac.engine.step import Step
from gradvac.errors import GradientError, NotFiniteError, RankError
from gradvac.methods import Method

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TaskEngine:
    """Makes one gradient of those of several tasks; how these come about is up to the kind.

    Attributes:
        model: the model, or the names and parameters given instead of one.
        method: turns the geometry of a step into weights.
        groups: parameters that get the same weights.
        step: number of the next step.
        nonfinite: "raise" or "skip".

    With ``torch.distributed`` initialised, or a process group of several ranks given, the gradients
    of each task are added up over the ranks; see :mod:`gradvac.engine.ranks.collector`.

    Raises:
        GradientError: if the model is wrapped for data parallelism or has nothing to train, or an
            argument is not one of those allowed.
    """

    def __init__(
        self,
        model: nn.Module | list[tuple[str, nn.Parameter]],
        method: Method,
        granularity: Grouping,
        nonfinite: NonFinite,
        heads: Heads | None,
        task_names: Collection[str] | None,
        process_group: ProcessGroup | Ranks | None,
        shards: Shards | None = None,
    ) -> None:
        check_method(method)
        if isinstance(model, nn.Module):
            refuse_wrapped(model)
        check_policy(nonfinite)
        self.model = model
        self.method = method
        self.nonfinite: NonFinite = nonfinite
        self._shards = shards_of(model) if shards is None else shards
        self._heads = HeadGradients(task_heads(model, heads), self._shards)
        self.groups = parameter_groups(model, granularity, self._heads.heads)
        self.step = 0
        shared = [p for group in self.groups for p in group.parameters]
        self._parameters = [*shared, *self._heads.parameters]
        self._leaves = [self._shards.whole(p) if self._shards else p for p in self._parameters]
        self._guard = Guard(model, [*self._parameters, *self._leaves], task_names)
        self._step = Step()
        self._ranks = Ranks.of(process_group, alone=self._shards is not None)
        if self._shards is not None and self._ranks is not None:
            self._shards.check_ranks(dist.get_process_group_ranks(self._ranks.group))

    def _name(self, leaf: Tensor) -> str:
        """Return the name of a parameter, or of the one that a whole parameter is a shard of."""
        groups = [*self.groups, *self._heads.heads]
        return next(
            name
            for group in groups
            for name, p in zip(group.names, group.parameters, strict=True)
            if p is leaf or (self._shards and self._shards.whole(p) is leaf)
        )

    def _agree(self) -> Agreement | None:
        """Hear of the tasks that other ranks bring to the step; None without other ranks.

        Raises:
            RankError: if a rank failed, is at another step, or runs something else.
        """
        ranks, now = self._ranks, self._step
        if ranks is None:
            return None
        same = None
        if not ranks.same:
            same = sameness(self.groups, self._heads.heads, self.method, self.nonfinite)
        here = [now.names[n] for n in now.present()]
        losses = dict(zip(now.names, now.losses(len(now.names)).tolist(), strict=True))
        now.agreed = agree(ranks, now.number, now.loss_scale, losses, now.shares, same, here)
        ranks.same = True
        return now.agreed

    def _tell(self, error: BaseException) -> None:
        """Let the other ranks know that this one gives the step up, unless they do already."""
        ranks, now = self._ranks, self._step
        if ranks is None or error is ranks.known or isinstance(error, RankError):
            return
        ranks.known = error
        if now.failed_alike or isinstance(error, NotFiniteError):
            if self._shards is not None:
                self._shards.reset()
            return
        if self._shards is not None:  # they may be gathering parameters, and hear nothing
            if failure_of_a_collective(error):
                raise ranks.lost(error) from error
            ranks.leave(f"{type(error).__name__}: {error}")
        elif now.agreed is not None:  # they wait for gradients that will not come
            ranks.broken = ranks.broken or f"its step {now.number} failed: {error}"
        elif isinstance(error, Exception):
            with suppress(RankError):
                tell_failure(ranks, now.number, error)

    @contextmanager
    def _ending(
        self,
        loss_scale: float | torch.amp.GradScaler,
        step: int | None,
        shares: Mapping[str, float] | None,
    ) -> Iterator[End]:
        """End the step inside, or skip it; if that fails, the method is as it was before."""
        scale, now, end = LossScale.of(loss_scale), self._step, End()
        now.number = self.step if step is None else step
        now.loss_scale = scale.factor
        now.shares = shares
        before = self.method.state_dict()
        try:
            yield end
            put(end.gradients, scale)
        except BaseException as e:
            self.method.load_state_dict(before)
            self._tell(e)
            tasks, groups = now.tasks, tuple(group.name for group in self.groups)
            losses = now.task_losses
            end.report = skip_or_raise(
                e, self.nonfinite, self._parameters, scale, tasks, groups, losses, now.number
            )
        finally:
            self.clear()
        self.step = now.number + 1
        self._guard.end_step()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied: a copy would go on making gradients for the old model."""
        raise GradientError(
            "an engine is neither copied nor pickled: it makes gradients for the parameters of one "
            "model; make a new engine for the copy of the model, and "
            "new.load_state_dict(old.state_dict()) hands the state over"
        )

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        self._heads.clear()
        self._step = Step()

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that the engine makes a gradient for whatever an optimizer is to train.

        The first optimizer to step with a parameter of the engine is checked without being asked.

        Raises:
            GradientError: if a parameter gets no gradient, or none is the engine's.
        """
        self._guard.check_optimizer(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the step number and the method's state."""
        return {"step": self.step, "method": self.method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where the engine that returned ``state`` was."""
        self.method.load_state_dict(state["method"])
        self.step = int(state["step"])


def check_method(method: object) -> None:
    """Raise GradientError for what is no method, such as its name or its class."""
    if isinstance(method, Method):
        return
    shown = method.__name__ if isinstance(method, type) else repr(method)
    raise GradientError(
        f"method is {shown}; it must be an instance of a method, such as gradvac.GradVac(beta=1e-2)"
    )


class End:
    """How a step ended.

    Attributes:
        report: what happened.
        gradients: the combined gradient of each parameter, None for one that was not used.
    """

    report: StepReport
    gradients: Sequence[tuple[Tensor, Tensor | None]]


@torch.no_grad()
def put(gradients: Iterable[tuple[Tensor, Tensor | None]], scale: LossScale) -> None:
    """Add gradients to ``p.grad``, as a backward pass of autograd does, and call who waits for it.

    Args:
        gradients: parameters and their gradients, None where ``p.grad`` stays as it is.
        scale: what ``p.grad`` is to be multiplied by for a GradScaler.
    """
    for p, gradient in gradients:
        if gradient is None:
            continue
        if scale.scaled:
            gradient = gradient * scale.factor
        if p.grad is None:
            p.grad = gradient
        elif p.grad.layout == gradient.layout == torch.strided:
            p.grad += gradient
        else:
            p.grad = p.grad + gradient
        for hook in list((getattr(p, "_post_accumulate_grad_hooks", None) or {}).values()):
            hook(p)
