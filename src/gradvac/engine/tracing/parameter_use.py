"""Uses of parameters together with samples in a forward pass, and the backward passes through them.

In a pass that splits, uses return no parameter gradient to autograd: the K gradients go to the
slots of the parameters. In a plain pass they return the gradient of plain training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.gradients.slots import Slot
from gradvac.engine.samples.places import Place
from gradvac.errors import GradientError


class PassKind(Enum):
    """What a backward pass computes at the uses of parameters."""

    FOREIGN = auto()  # a backward pass not run by the engine: an error
    PLAIN = auto()  # the gradients of plain training, passed to the parameters
    SPLIT = auto()  # gradients of parameters are split by tasks and go to their slots
    JOINT = auto()  # they go to their slots as one sum
    IDLE = auto()  # nothing: the pass is run because other ranks run one


class BackwardState:
    """The current backward pass, shared by all uses of parameters in a batch.

    Attributes:
        kind: what it computes at the uses.
        use_done: called whenever a use has added its gradients.
        coarsest: the largest relative rounding error of the gradients seen so far.
    """

    def __init__(self, use_done: Callable[[], None]) -> None:
        self.kind = PassKind.FOREIGN
        self.use_done = use_done
        self.coarsest = 0.0
        self._seen: set[torch.dtype] = set()

    def saw(self, dtype: torch.dtype) -> None:
        """Note the dtype of a gradient."""
        if dtype not in self._seen:  # finfo takes a while
            self._seen.add(dtype)
            self.coarsest = max(self.coarsest, torch.finfo(dtype).eps)

    @contextmanager
    def running(self, kind: PassKind) -> Iterator[None]:
        """Set what the backward pass inside computes."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before


class ParameterUse:
    """One use of parameters in the forward pass.

    Attributes:
        slots: where the gradients of the parameters go, None for one that needs none.
        what: the operation, for error messages.
    """

    _place: Place

    def __init__(
        self, slots: Sequence[Slot | None], what: str, backward_state: BackwardState
    ) -> None:
        self.slots, self.what, self.backward_state = slots, what, backward_state

    @property
    def place(self) -> Place:
        """Where the samples lie in the output; known once the output exists."""
        return self._place.sole() if self.backward_state.kind is PassKind.JOINT else self._place

    @place.setter
    def place(self, place: Place) -> None:
        self._place = place

    @property
    def masked(self) -> bool:
        """Whether other tasks' samples are set to zero, not left out."""
        return self.backward_state.kind is PassKind.JOINT or not self._place.separable

    def collects(self, dy: Tensor) -> bool:
        """Whether to collect gradients.

        Raises:
            GradientError: if the engine does not run this backward pass.
        """
        kind = self.backward_state.kind
        if kind is PassKind.FOREIGN:
            raise GradientError(
                "a backward pass that engine.backward() does not run goes through what was "
                "computed inside `with engine.tasks(...)`; call engine.backward(loss) in place of "
                "loss.backward(), once for each forward pass"
            )
        self.backward_state.saw(dy.dtype)
        return kind is PassKind.SPLIT or kind is PassKind.JOINT

    def plain(self, wanted: bool) -> bool:
        """Whether to return a parameter's own gradient, if it is ``wanted``."""
        return wanted and self.backward_state.kind is PassKind.PLAIN

    def finish(self) -> None:
        """Count the use as done."""
        if self.backward_state.kind is PassKind.JOINT:
            return  # the first pass has counted it
        for slot in self.slots:
            if slot is not None:
                slot.arrived()
        self.backward_state.use_done()


def use_of(node: Any) -> ParameterUse | None:
    """Return the use that a node of autograd's graph computes, None if it is no use."""
    use = getattr(node, "use", None)
    return use if isinstance(use, ParameterUse) else None
