"""The interface of every public engine besides its backward passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gradvac.engine.groups import ParameterGroup
from gradvac.engine.nonfinite import NonFinite
from gradvac.engine.setup import Setup
from gradvac.errors import GradientError
from gradvac.methods import Method


class TaskEngine:
    """Gives every parameter one gradient, combined by a method from the gradients of the tasks.

    With ``torch.distributed`` initialised, or a process group of several ranks given, the gradients
    of each task are summed over the ranks; see :mod:`gradvac.engine.ranks.collector`.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    @property
    def model(self) -> nn.Module | list[tuple[str, nn.Parameter]]:
        """The model, or the names and parameters given instead."""
        return self._setup.model

    @property
    def method(self) -> Method:
        """The method that turns the geometry of a step into weights."""
        return self._setup.method

    @property
    def groups(self) -> list[ParameterGroup]:
        """Parameters that get the same weights."""
        return self._setup.groups

    @property
    def nonfinite(self) -> NonFinite:
        """What is done about a loss or gradient that is not finite: "raise" or "skip"."""
        return self._setup.options.nonfinite

    @property
    def step(self) -> int:
        """Number of the next step."""
        return self._setup.next_step

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that the engine computes a gradient for every parameter of an optimizer.

        The first optimizer that steps with a parameter of the engine is checked automatically.

        Raises:
            GradientError: if a parameter gets no gradient, or none is the engine's.
        """
        self._setup.guard.check_optimizer(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the step number and the method's state.

        Raises:
            GradientError: with ``lazy``, if an earlier step was not finite (NotFiniteError), once.
        """
        self._setup.unsettled.check(wait=True)
        return {"step": self.step, "method": self.method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where the engine that returned ``state`` was."""
        self.method.load_state_dict(state["method"])
        self._setup.next_step = int(state["step"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied: a copy would still compute gradients for the old model."""
        raise GradientError(
            "an engine is neither copied nor pickled: it makes gradients for the parameters of one "
            "model; make a new engine for the copy of the model, and "
            "new.load_state_dict(old.state_dict()) hands the state over"
        )
