"""Parameters that belong to one task each: their gradient is plain and not changed by methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from gradvac.engine.gradients.precision import at_least_float32
from gradvac.engine.groups import ParameterGroup
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.shards import Shards, shard_of
from gradvac.errors import GradientError, NotFiniteError
from gradvac.sending import to_device


class HeadGradients:
    """Plain gradients of the heads of a model, summed over the losses of a step.

    They are kept in float32 (float64 for float64 parameters), like those of the tasks.

    Attributes:
        heads: the parameters, one group per task, named by the task.
        parameters: all of them.
        leaves: the tensors a forward pass uses: gathered parameters for sharded ones.
    """

    def __init__(self, heads: Sequence[ParameterGroup], shards: Shards | None = None) -> None:
        self.heads = heads
        self.parameters: list[nn.Parameter] = list(chain(*(head.parameters for head in heads)))
        self.leaves = [shards.whole(p) if shards else p for p in self.parameters]
        self._gradients: dict[int, Tensor] = {}
        self._used: Tensor | None = None  # by parameter: how many ranks used it
        self._rank = 0

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients, one per parameter, None for a parameter that was not used."""
        for n, (p, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            if gradient is None:
                continue
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            dense = dense.to(at_least_float32(p.dtype))
            self._gradients[n] = self._gradients[n] + dense if n in self._gradients else dense

    def from_own_task(
        self,
        joint: Sequence[Tensor | None],
        weighted: Sequence[Tensor | None],
        factor: Mapping[str, float],
    ) -> bool:
        """Whether each head has a gradient only from its own task.

        Args:
            joint: gradients of the sum of all losses, one per parameter.
            weighted: those of the losses times the factor of their task.
            factor: by task in the batch; all different.
        """
        names = [head.name for head in self.heads for _ in head.parameters]
        for name, one, other in zip(names, joint, weighted, strict=True):
            if one is None or other is None:
                continue
            expected = one.to_dense() * factor.get(name, 0.0)
            error = (other.to_dense() - expected).nan_to_num(0.0, 0.0, 0.0).abs().amax()
            eps = torch.finfo(one.dtype).eps
            if bool(error > 1e3 * eps * other.to_dense().nan_to_num(0.0, 0.0, 0.0).abs().amax()):
                return False
        return True

    def check(self, task: str, gradients: Sequence[Tensor | None]) -> None:
        """Check that the gradient of a task's loss reaches no other task's head.

        Raises:
            GradientError: if it does.
        """
        found = iter(gradients)
        for head in self.heads:
            for name in head.names:
                gradient = next(found)
                if gradient is None or head.name == task:
                    continue
                if bool(gradient.nan_to_num(0.0, 0.0, 0.0).any()):  # NaN may be another task's
                    raise GradientError(
                        f"parameter {name!r} is in the head of task {head.name!r} and has a "
                        f"gradient from the loss of task {task!r}; a head belongs to one task, "
                        "leave out of `heads` what tasks share"
                    )

    def add_ranks(self, ranks: Ranks, tasks: Collection[str]) -> None:
        """Sum the gradients over the ranks, without a wait of the host.

        Args:
            ranks: all of them call this.
            tasks: those of the step; the heads of others have no gradient on any rank.
        """
        names = [head.name for head in self.heads for _ in head.names]
        here = [n for n, name in enumerate(names) if name in tasks]
        if not here:
            return
        used = torch.tensor([float(n in self._gradients) for n in range(len(names))])
        self._used = to_device(used, self.parameters[0].device)
        waits = [ranks.sum(self._used)]
        for n in here:
            if n not in self._gradients:
                p = self.parameters[n]
                dtype = at_least_float32(p.dtype)
                self._gradients[n] = torch.zeros(p.shape, dtype=dtype, device=p.device)
            self._gradients[n] = self._gradients[n].contiguous()
            waits.append(ranks.sum(self._gradients[n]))
        for wait in waits:
            wait()
        self._rank = ranks.rank

    def state(self) -> Tensor | None:
        """Return for each gradient, float64: 1 if it is finite, 0 if not, -1 if no rank has it."""
        if not self._gradients:
            return None
        first = next(iter(self._gradients.values())).device
        found = [gradient.isfinite().all().to(first) for gradient in self._gradients.values()]
        state = torch.stack(found).double()
        if self._used is None:
            return state
        index = torch.tensor(list(self._gradients)).to(self._used.device)
        return state.where(self._used[index].to(first) > 0, -1.0)

    @property
    def with_gradient(self) -> list[tuple[str, str]]:
        """Task and name of each parameter that has a gradient, in the order of :meth:`state`."""
        names = [(head.name, name) for head in self.heads for name in head.names]
        return [names[n] for n in self._gradients]

    def unread(self, loss_scale: float) -> list[Tensor | None]:
        """Return the gradients of the parameters, whatever their :meth:`state`, on one process."""
        return self.finished(loss_scale, torch.ones(len(self._gradients)))

    def finished(self, loss_scale: float, state: Tensor | None) -> list[Tensor | None]:
        """Return the gradients of the parameters with the loss scale divided out.

        Args:
            loss_scale: the factor of the losses.
            state: as :meth:`state` returned it; the host waits for it here unless it was read.

        Raises:
            NotFiniteError: if a gradient is not finite.
        """
        result: list[Tensor | None] = []
        numbers = [] if state is None else state.tolist()
        check_heads(self.with_gradient, numbers)
        states = dict(zip(self._gradients, numbers, strict=True))
        for n, p in enumerate(self.parameters):
            gradient = self._gradients[n] if states.get(n, -1) >= 0 else None
            if gradient is not None:
                gradient = shard_of((gradient / loss_scale).to(p.dtype), p, self._rank)
            result.append(gradient)
        return result

    def clear(self) -> None:
        """Forget the step."""
        self._gradients.clear()
        self._used = None


def check_heads(names: Sequence[tuple[str, str]], states: Sequence[float]) -> None:
    """Raise NotFiniteError if a gradient of a head is not finite.

    Args:
        names: task and name of each parameter.
        states: see :meth:`HeadGradients.state`.
    """
    for (task, name), state in zip(names, states, strict=True):
        if not state:
            raise NotFiniteError(
                f"the gradient of parameter {name!r}, in the head of task {task!r}, is "
                "not finite; nothing was updated",
                task,
            )
