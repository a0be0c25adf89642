"""The base class of collectors of task gradients in a single pass."""

from __future__ import annotations

from collections.abc import Sequence

from gradvac.engine.gradients.pool import Pool
from gradvac.engine.gradients.stores import GroupStore
from gradvac.engine.groups import ParameterGroup
from gradvac.engine.setup import Setup
from gradvac.engine.step import Step


class Collector:
    """Collects task gradients, and processes parameters whose gradients are complete.

    Args:
        setup: the parameters, and the method that gives the weights.
        pieces: parameters whose gradients are held together; each parameter is in one piece.
        budget: bytes; a parameter whose K gradients are larger is treated in chunks of rows.

    Attributes:
        stores: one per piece.
        ready: the complete ones, in order of completion.
        slots: where the gradients of a parameter go, by the id of the tensor used in the forward
            pass.
    """

    def __init__(self, setup: Setup, pieces: Sequence[ParameterGroup], budget: int) -> None:
        self.setup = setup
        self.pool = Pool()
        self.ready: list[GroupStore] = []
        self.stores = [
            GroupStore(piece, self.pool, self.ready, budget, setup.options.storage)
            for piece in pieces
        ]
        leaf_of = dict(zip(setup.parameters, setup.leaves, strict=True))
        slots = [slot for store in self.stores for slot in store.slots]
        for slot in slots:
            slot.leaf = leaf_of[slot.parameter]
        self.slots = {id(slot.leaf): slot for slot in slots}
        self.device = self.stores[0].device

    def stream(self, streams: bool) -> None:
        """Set whether the next backward pass is the only one of the step."""
        for store in self.stores:
            store.streams = streams

    def may_stream(self) -> bool:
        """Whether gradients can be processed before the backward pass has ended."""
        raise NotImplementedError

    def begin(self, step: Step) -> None:
        """Begin the backward pass that ends the step, or the end of the step after the last one."""

    def release(self, step: Step) -> None:
        """During the backward pass, process the parameters that are complete."""
        raise NotImplementedError

    def finish(self, step: Step) -> None:
        """Put the combined gradients of all parameters into ``step.gradients``."""
        raise NotImplementedError

    def clear(self) -> None:
        """Drop what was collected since the last step."""
        for store in self.stores:
            store.close()
        self.ready.clear()
