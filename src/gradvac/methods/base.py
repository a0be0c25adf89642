"""The base class of methods: loss geometry of one step in, one weight per task and group out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradvac.errors import GradientError, NotFiniteError


@dataclass(frozen=True)
class StepGeometry:
    """The loss geometry of one optimizer step: all that a method gets to know about the gradients.

    For parameter group k with task gradients g_1..g_K, ``gram[k, i, j]`` is g_i . g_j.

    Attributes:
        gram: inner products of the task gradients, ``[groups, K, K]``, float64.
        losses: the tasks' losses, ``[K]``, float64.
        tasks: K distinct task names, in the order of the rows of ``gram``.
        groups: distinct names of the parameter groups. They may be all groups of the model or
            one of them: a method must give a group the same weights in both cases.
        step: number of the optimizer step, the same for every group and rank of that step.
        shares: what each task's mean loss was multiplied by to give its entry of ``losses``, such
            as its share of the batch's tokens, ``[K]``; None where losses are what they are.

    Raises:
        GradientError: if shapes, dtypes or names do not match.

    Example:
        >>> import torch
        >>> from gradvac import StepGeometry
        >>> gradients = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)  # one per row
        >>> gram, losses = (gradients @ gradients.T)[None], torch.ones(2, dtype=torch.float64)
        >>> step = StepGeometry(gram, losses, ("fr", "hi"), ("whole_model",), step=0)
        >>> step.gram.diagonal(dim1=1, dim2=2).sqrt()  # norms of the task gradients, [groups, K]
        tensor([[3., 4.]], dtype=torch.float64)
    """

    gram: Tensor
    losses: Tensor
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    step: int
    shares: Tensor | None = None

    def __post_init__(self) -> None:
        n_groups, n_tasks = len(self.groups), len(self.tasks)
        if self.gram.shape != (n_groups, n_tasks, n_tasks) or self.gram.dtype != torch.float64:
            raise GradientError(
                f"gram is {self.gram.dtype} {list(self.gram.shape)}; {n_groups} groups and "
                f"{n_tasks} tasks need float64 {[n_groups, n_tasks, n_tasks]}"
            )
        if self.losses.shape != (n_tasks,):
            raise GradientError(f"losses are {list(self.losses.shape)}; expected [{n_tasks}]")
        if self.shares is not None and self.shares.shape != (n_tasks,):
            raise GradientError(f"shares are {list(self.shares.shape)}; expected [{n_tasks}]")
        for kind, names in (("task", self.tasks), ("group", self.groups)):
            if len(set(names)) != len(names):
                twice = sorted(name for name in set(names) if names.count(name) > 1)
                raise GradientError(f"{kind} names must differ; found twice: {', '.join(twice)}")

    @property
    def mean_losses(self) -> Tensor:
        """Losses that can be compared between steps with different batches, ``[K]``."""
        return self.losses if self.shares is None else self.losses / self.shares.to(self.losses)

    def check_finite(self) -> None:
        """Raise NotFiniteError if an inner product or a loss is not finite.

        It names task and step, and the group of a bad gradient.
        """
        if bool(self.gram.isfinite().all()):
            bad_losses = (~self.mean_losses.isfinite()).nonzero().flatten().tolist()
            if bad_losses:
                raise NotFiniteError(
                    f"the loss of task {self.tasks[bad_losses[0]]!r} is "
                    f"{self.mean_losses[bad_losses[0]].item()} at step {self.step}; nothing was "
                    "updated",
                    self.tasks[bad_losses[0]],
                )
            return
        # A bad gradient of task i makes its whole row not finite; its own norm shows which it is.
        bad = ~self.gram.diagonal(dim1=1, dim2=2).isfinite()
        if not bool(bad.any()):
            bad = ~self.gram.isfinite().all(dim=2)
        guilty = bad & ~self.mean_losses.isfinite().to(bad.device)  # it may have caused the others
        group, task = (guilty if bool(guilty.any()) else bad).nonzero()[0].tolist()
        others = int(bad.sum()) - 1
        loss = self.mean_losses[task].item()
        too_long = bool(self.gram[group, task, task] == math.inf) and math.isfinite(loss)
        raise NotFiniteError(
            f"the gradient of task {self.tasks[task]!r} is not finite in parameter group "
            f"{self.groups[group]!r} at step {self.step}"
            + (f" (and {others} more task-group pairs)" if others else "")
            + ("" if math.isfinite(loss) else f", and its loss is {loss}")
            + (", or it is longer than 1e154 and float64 cannot hold its square" * too_long)
            + "; nothing was updated",
            self.tasks[task],
            self.groups[group],
        )


class Method(ABC):
    """A rule that turns the loss geometry of a step into weights of the task gradients.

    The update of group k is ``sum_i weights[k, i] * g_i``. State, if any, is keyed by task and
    group name, so tasks may appear and disappear, and groups may come together or one by one.

    Attributes:
        needs_all_groups: whether the weights of a group depend on other groups; an engine then
            passes all groups of a step in one call.
        on_device: whether ``_weights`` stays on the device of the Gram matrices and the host reads
            no number there, so that an engine may be ``lazy``. Its state then needs
            :meth:`snapshot`, :meth:`restore` and :meth:`keep_if`.
        seed: seed of all random choices.

    Example:
        >>> import torch
        >>> from gradvac import Method, StepGeometry
        >>> class EqualNorms(Method):  # every task gradient is scaled to length 1
        ...     def _weights(self, geometry):
        ...         return 1 / geometry.gram.diagonal(dim1=1, dim2=2).sqrt()
        >>> gram = torch.diag(torch.tensor([1.0, 4.0]).double())[None]
        >>> step = StepGeometry(gram, torch.ones(2).double(), ("fr", "hi"), ("all",), step=0)
        >>> EqualNorms().weights(step)
        tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """

    needs_all_groups: bool = False
    on_device: bool = False
    seed: int = 0

    def weights(self, geometry: StepGeometry) -> Tensor:
        """Return the weights of the task gradients, ``[groups, K]``, float64.

        Call it once per group and step: it advances the state of the groups it is given.

        Raises:
            NotFiniteError: if an inner product is not finite; the state is then unchanged.
        """
        geometry.check_finite()
        return self._weights(geometry)

    def weights_unread(self, geometry: StepGeometry) -> Tensor:
        """Return what :meth:`weights` does, without a wait, of a geometry that may not be finite.

        For methods with :attr:`on_device`. The state advances; :meth:`keep_if` must follow.
        """
        return self._weights(geometry)

    def snapshot(self) -> Any:
        """Return what :meth:`restore` and :meth:`keep_if` need, without a wait."""
        return self.state_dict()

    def restore(self, before: Any) -> None:
        """Go back to a :meth:`snapshot`."""
        self.load_state_dict(before)

    def keep_if(self, finite: Tensor, before: Any) -> None:
        """Keep the state if ``finite``, a bool on the device, is True, else go back to before.

        Here the host waits for ``finite``; a method with :attr:`on_device` must not.
        """
        if not bool(finite):
            self.restore(before)

    @abstractmethod
    def _weights(self, geometry: StepGeometry) -> Tensor:
        """Do the work of :meth:`weights` on a geometry known to be finite."""

    def report(self) -> dict[str, Tensor]:
        """Return diagnostics of the last call of :meth:`weights`.

        Every tensor has the groups as its first dimension, so that reports of one group at a
        time can be concatenated. Methods without diagnostics return an empty dictionary.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: tensors and plain values that JSON can hold."""
        return {"seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where the method that returned ``state`` was.

        Raises:
            GradientError: if the state is of another kind of method, or damaged; nothing is then
                changed.
        """
        self._check_state(state, whole=type(self).state_dict is Method.state_dict)
        self.seed = int(state["seed"])

    def _check_state(self, state: object, whole: bool = True) -> None:
        """Raise GradientError unless a state has the keys of this method's own, or a seed."""
        what = f"the state for {type(self).__name__}"
        if not isinstance(state, Mapping):
            raise GradientError(f"{what} is a {type(state).__name__}; it must be a mapping")
        if whole or "seed" not in state:
            check_keys(what, state, self.state_dict())
        if type(state["seed"]) is not int:
            raise GradientError(f"{what}: seed is {state['seed']!r}; it must be an integer")


def check_keys(what: str, state: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Raise GradientError unless a state has exactly these keys."""
    missing, foreign = sorted({*expected} - {*state}), sorted(map(str, {*state} - {*expected}))
    if missing or foreign:
        parts = [
            f"{word} {', '.join(k)}" for word, k in (("lacks", missing), ("has", foreign)) if k
        ]
        raise GradientError(f"{what} {' and '.join(parts)}: is it of another method or version?")
