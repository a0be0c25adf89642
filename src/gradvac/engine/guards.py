"""Errors for silent failures: parameters that never get a gradient from the engine."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradvac.errors import GradientError

_HOOKS: dict[weakref.ref[Any], Any] = {}
"""Hooks of guards that wait for an optimizer; removed when their engine is deleted."""

_ANEW = (
    "make a new engine; new.load_state_dict(old.state_dict()) hands the state over, which is kept "
    "by name"
)


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse wrappers whose gradient reduction is bypassed: ranks would silently diverge."""
    wrappers = ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel")
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in wrappers:
                raise GradientError(
                    f"the model is wrapped in {kind.__name__}, which averages gradients over "
                    "ranks only in backward(), once for all tasks; per-task gradients would stay "
                    "local and the ranks would drift apart without an error. Pass the bare module "
                    "(model.module): the engine adds gradients up over the ranks itself. To shard "
                    "parameters use fully_shard"
                )


def say_if_summed(total: float, count: int) -> None:
    """Log that losses are added up, if their sum is far above any mean of ``count`` losses.

    More than 20 is: a guess among ten million classes has a mean loss of 16.
    """
    if count > 2 and 20 < total < math.inf:
        logging.getLogger("gradvac").warning(
            "the losses of the first step add up to %.3g: the gradient is that of the sum of %d "
            "losses, not of their mean, which is %.3g; for the mean, as with loss.mean(), divide "
            "them first: engine.backward(loss / loss.numel())",
            total,
            count,
            total / count,
        )


class Guard:
    """Checks that model, engine and optimizer keep using the same parameters.

    Attributes:
        pending: whether a forward pass waits for the engine's backward pass.

    Args:
        model: the model, or the names and parameters the engine was given instead of one.
        parameters: those the engine computes gradients for.
        task_names: the allowed tasks; None to allow any.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[tuple[str, nn.Parameter]],
        parameters: Iterable[Tensor],
        task_names: Collection[str] | None = None,
    ) -> None:
        self._model = model
        self._known = {id(p) for p in parameters}
        self._trained = [(name, p, p.requires_grad) for name, p in self._named()]
        self._tasks = None if task_names is None else list(task_names)
        self._fresh = True  # until a first step has succeeded
        self._begun = self._unused_said = False
        self._optimizer_seen = False
        self._hook: Any = None
        self.pending = False

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        model = self._model
        return list(model.named_parameters() if isinstance(model, nn.Module) else model)

    def check_tasks(self, names: Iterable[str]) -> None:
        """Raise GradientError for a task that the engine was not made for."""
        for name in names:
            if self._tasks is not None and name not in self._tasks:
                near = get_close_matches(name, self._tasks, 1)
                raise GradientError(
                    f"unknown task {name!r}; the engine was made for {', '.join(self._tasks)}"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                )

    def check_parameters(self) -> None:
        """Check that the same parameters are trained as when the engine was made.

        Raises:
            GradientError: if one was frozen, unfrozen, added or replaced since.
        """
        for name, p, trained in self._trained:
            if p.requires_grad != trained:
                what = "frozen (requires_grad is False)" if trained else "unfrozen"
                raise GradientError(
                    f"parameter {name!r} has been {what} since the engine was made; {_ANEW}"
                )
        if not self._fresh:
            return
        for name, p in self._named():
            if p.requires_grad and id(p) not in self._known:
                raise GradientError(
                    f"parameter {name!r} has been added or replaced since the engine was made; "
                    f"{_ANEW}"
                )

    def check_leaves(self, leaves: Iterable[Tensor]) -> None:
        """In the first step, check on which leaves besides the model's the loss depends.

        Raises:
            GradientError: if one is a parameter for which the engine computes no gradient.
        """
        if not isinstance(self._model, nn.Module):
            return  # the parameters were chosen by hand
        for leaf in leaves:
            if isinstance(leaf, nn.Parameter) and id(leaf) not in self._known:
                raise GradientError(
                    f"the loss depends on a parameter {list(leaf.shape)} that is not in the model "
                    "given to the engine (part of the criterion, or of another model?) and would "
                    "get no gradient; give the engine a module that holds both, or freeze it"
                )

    @property
    def fresh(self) -> bool:
        """Whether no step has succeeded yet."""
        return self._fresh

    def begin(self) -> None:
        """At the first forward pass, begin to wait for the optimizer."""
        self.pending = self._begun = True
        self.watch()

    def watch(self) -> None:
        """Look at each step of an optimizer until the first one after a step of the engine."""
        if self._fresh and self._hook is None:
            for other in [other for other in _HOOKS if other() is None]:
                _HOOKS.pop(other).remove()
            self._hook = register_optimizer_step_pre_hook(_when_stepping(self))
            _HOOKS[weakref.ref(self)] = self._hook

    def end_step(self) -> None:
        """End a successful step."""
        if self._fresh:
            self.begin()
            self._fresh = self.pending = False
        elif self._optimizer_seen and self._hook is not None:
            self._hook.remove()  # not inside the hook: torch is iterating over a list of them
            self._hook = None

    def sees(self, optimizer: Optimizer) -> None:
        """Check the first optimizer that steps with a parameter of the engine."""
        if not self._optimizer_seen and any(
            id(p) in self._known for p in _parameters_of(optimizer)
        ):
            if not self._begun:
                self._say_unused(optimizer)
                return
            if self.pending:
                raise GradientError(
                    "the optimizer steps after a forward pass inside `with engine.tasks(...)` "
                    "whose engine.backward(loss) was never called: the method has not been "
                    "applied; call it in place of loss.backward()"
                )
            self._optimizer_seen = True
            self.check_optimizer(optimizer)

    def _say_unused(self, optimizer: Optimizer) -> None:
        """Log once that an optimizer steps with gradients that the engine did not make."""
        if self._unused_said or all(p.grad is None for p in _parameters_of(optimizer)):
            return
        self._unused_said = True
        logging.getLogger("gradvac").warning(
            "the optimizer steps with gradients that the engine did not make, so its method has no "
            "effect: compute the loss inside `with engine.tasks(...)` and call "
            "engine.backward(loss) in place of loss.backward()"
        )

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Check that every parameter of an optimizer has a gradient or gets one from the engine.

        Raises:
            GradientError: if one gets none, or if no parameter is the engine's.
        """
        held = _parameters_of(optimizer)
        if not any(id(p) in self._known for p in held):
            raise GradientError(
                "the optimizer holds none of the engine's parameters; both must be made from the "
                "same model, and after it was moved, wrapped or given new layers"
            )
        names = {id(p): name for name, p in self._named()}
        for n, p in enumerate(held):
            if p.requires_grad and p.grad is None and id(p) not in self._known:
                what = repr(names[id(p)]) if id(p) in names else f"number {n}"
                raise GradientError(
                    f"the optimizer holds parameter {what} {list(p.shape)}, for which the engine "
                    "makes no gradient: it would never be trained. Make the engine from all that "
                    "is to be trained, or leave it out of the optimizer"
                )


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _when_stepping(guard: Guard) -> Any:
    """A hook of all optimizers that does not keep the engine alive."""
    reference = weakref.ref(guard)

    def look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        there = reference()
        if there is not None:
            there.sees(optimizer)

    return look
