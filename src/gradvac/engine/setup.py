"""What the strategies of an engine share: model, method, parameters and ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn

from gradvac.engine.groups import parameter_groups, task_heads
from gradvac.engine.guards import Guard, refuse_wrapped
from gradvac.engine.heads import HeadGradients
from gradvac.engine.lazy import Unsettled
from gradvac.engine.options import EngineOptions
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.shards import shards_of
from gradvac.errors import GradientError
from gradvac.methods import Method


class Setup:
    """The configuration of an engine, and the number of its next step.

    Attributes:
        model: the model, or the names and parameters given instead.
        module: the model, to name modules in errors; empty if there is no model.
        method: turns the geometry of a step into weights.
        options: the arguments of the engine.
        groups: parameters that get the same weights.
        heads: parameters of single tasks, and their gradients.
        parameters: those of the groups, then those of the heads.
        leaves: for each of them, the tensor a forward pass uses: the gathered one if it is sharded.
        n_shared: how many of them are in groups.
        shards: of a model sharded by ``fully_shard``.
        ranks: the ranks to train with; None for a single process.
        guard: checks that model, engine and optimizer keep using the same parameters.
        lazy: whether the host waits for no step.
        unsettled: with ``lazy``, the steps that may not have been finite.
        next_step: number of the next step.

    Raises:
        GradientError: if the model is wrapped for data parallelism or has nothing to train.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, nn.Parameter]],
        method: Method,
        options: EngineOptions,
    ) -> None:
        check_method(method)
        self.model = model if isinstance(model, nn.Module) else list(model)
        self.module = self.model if isinstance(self.model, nn.Module) else nn.Module()
        refuse_wrapped(self.module)
        self.method, self.options = method, options
        self.shards = shards_of(self.model)
        self.heads = HeadGradients(task_heads(self.model, options.heads), self.shards)
        self.groups = parameter_groups(self.model, options.granularity, self.heads.heads)
        shared = [p for group in self.groups for p in group.parameters]
        self.n_shared = len(shared)
        self.parameters = [*shared, *self.heads.parameters]
        self.leaves = [self.shards.whole(p) if self.shards else p for p in self.parameters]
        self.guard = Guard(self.model, [*self.parameters, *self.leaves], options.task_names)
        self.ranks = Ranks.of(options.process_group, alone=self.shards is not None)
        if self.shards is not None and self.ranks is not None:
            self.shards.check_ranks(dist.get_process_group_ranks(self.ranks.group))
        self.lazy = options.lazy and self._may_be_lazy()
        self.unsettled = Unsettled()
        self.next_step = 0

    def _may_be_lazy(self) -> bool:
        """Whether a step needs no wait of the host; if only the method needs one, say so.

        Raises:
            GradientError: with several ranks, which exchange what the host must read.
        """
        if self.ranks is not None:
            raise GradientError(
                "lazy=True on several ranks or with sharded parameters: ranks exchange messages "
                "that the host reads in every step; leave lazy out"
            )
        if not self.method.on_device:
            logging.getLogger("gradvac").warning(
                "lazy=True has no effect: %s computes on the host, so every step waits once; "
                "GradVac, PCGrad and fixed weights compute on the device",
                type(self.method).__name__,
            )
        return self.method.on_device

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(group.name for group in self.groups)

    def name(self, leaf: Tensor) -> str:
        """Return the name of a parameter, or of the sharded one that a gathered one comes from."""
        names = [name for g in (*self.groups, *self.heads.heads) for name in g.names]
        return next(
            name
            for name, p, whole in zip(names, self.parameters, self.leaves, strict=True)
            if p is leaf or whole is leaf
        )


def check_method(method: object) -> None:
    """Raise GradientError for anything but a method, such as its name or its class."""
    if isinstance(method, Method):
        return
    shown = method.__name__ if isinstance(method, type) else repr(method)
    raise GradientError(
        f"method is {shown}; it must be an instance of a method, such as gradvac.GradVac(beta=1e-2)"
    )
