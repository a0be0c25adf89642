"""What a forward pass is known to do, and its use in a step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.gradients.slots import Slot, ViewSlot
from gradvac.engine.planning.graph import Signature, ends, following
from gradvac.engine.planning.recording import Recording, Unplanned, table_of
from gradvac.engine.planning.uses import Lookup, Rule
from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Place
from gradvac.engine.tracing.parameter_use import ParameterUse
from gradvac.engine.tracing.tensor_info import TensorInfo
from gradvac.engine.tracing.trace import Trace


@dataclass(frozen=True, slots=True)
class PlannedUse:
    """A use of parameters, by its position in the graph.

    Attributes:
        node: position of the node, see :func:`gradvac.engine.planning.graph.walk`.
        rule: adds the gradients of the parameters.
        slots: where they go.
        what: the operation, for errors.
        tables: the slots of parameters among them, or which they are views of.
        ends: whether no other use lies below it, so that a backward pass must be asked for it.
    """

    node: int
    rule: Rule
    slots: tuple[Slot | None, ...]
    what: str
    tables: tuple[ParameterSlot, ...]
    ends: bool


@dataclass(frozen=True, slots=True)
class PlannedOutput:
    """What is known about an output of the model; see :class:`TensorInfo`."""

    dim: int | None
    tiling: tuple[int, int]
    why: str | None
    lost: bool


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """What a forward pass does for inputs of given sizes.

    Attributes:
        signature: hash of what its graph computes.
        structure: hash of the same without sizes: kinds of nodes, and where parameters are used.
        uses: where it uses parameters with samples; plans for other sizes may share them.
        tilings: how the owners of the rows of each use come from those of the samples, see
            `Owners.spread`.
        outputs: what is known about its outputs.
        covered: ids of the tensors whose gradients come from the uses.
        last: the last operation, as the trace names it.
    """

    signature: int
    structure: int
    uses: tuple[PlannedUse, ...]
    tilings: tuple[tuple[int, int], ...]
    outputs: tuple[PlannedOutput | None, ...]
    covered: frozenset[int]
    last: str

    @classmethod
    def of(
        cls,
        recording: Recording,
        trace: Trace,
        outputs: Sequence[Tensor],
        graph: Sequence[Any],
        signature: Signature,
    ) -> ForwardPlan:
        """Make a plan of what was recorded.

        Raises:
            Unplanned: if a parameter is used otherwise than was recorded.
        """
        through = {use.node: use.samples for use in recording.uses}
        if len(through) < len(recording.uses):
            raise Unplanned("an operation with two uses of parameters")
        position = {node: n for n, node in enumerate(graph)}
        roots = [x.grad_fn for x in outputs]
        seen = set(following(roots, through))
        for node in seen:
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in trace.heads:
                raise Unplanned("a parameter or leaf used otherwise than was recorded")
        if any(use.node not in seen for use in recording.uses):
            raise Unplanned("a part of it does not lead to its outputs")
        at_end = ends(through)
        uses = [
            PlannedUse(
                position[use.node],
                use.rule,
                tuple(use.slots),
                use.what,
                tuple(table_of(slot) for slot in use.slots if slot is not None),
                use.node in at_end,
            )
            for use in recording.uses
        ]
        tilings = tuple(_known(use.owners) for use in recording.uses)
        found = [_output(x, trace.info(x)) for x in outputs]
        covered = frozenset(id(table.leaf) for use in uses for table in use.tables)
        structure = hash(
            (
                tuple(map(type, graph)),
                tuple((use.node, use.rule, tuple(map(_part, use.slots)), use.ends) for use in uses),
            )
        )
        return cls(
            hash(signature), structure, tuple(uses), tilings, tuple(found), covered, trace.last
        )

    def like(self, other: ForwardPlan) -> ForwardPlan:
        """Return this plan, with what is equal in another one not held twice."""
        if self.uses != other.uses:
            return self
        return replace(self, uses=other.uses, covered=other.covered)


def _part(slot: Slot | None) -> tuple[Any, ...]:
    """Which parameter a slot is of, and which part of it, without how large that is."""
    if slot is None:
        return ()
    seen = slot.probe() if isinstance(slot, ViewSlot) else None
    where = () if seen is None else (seen.stride(), seen.storage_offset())
    return id(table_of(slot)), where


def _known(owners: Owners) -> tuple[int, int]:
    assert owners.tiling is not None  # else the recording has failed
    return owners.tiling


def _output(x: Tensor, info: TensorInfo | None) -> PlannedOutput | None:
    """What is known about an output; None if nothing is, and nothing need be."""
    if info is None:
        out_of_sight = PlannedOutput(None, (1, 1), "made by the model, out of sight", False)
        return out_of_sight if x.requires_grad else None
    if info.place is None:
        return PlannedOutput(None, (1, 1), info.why, info.lost) if x.requires_grad else None
    if not x.requires_grad and info.place.owners.tiling is None:
        return None  # a hint that holds for this batch only
    return PlannedOutput(info.place.dim, _known(info.place.owners), info.why, info.lost)


class PlannedPass:
    """The backward passes through the uses of a planned forward pass.

    Attributes:
        covered: ids of the tensors whose gradients come from the uses.
        edges: where a backward pass must be asked for the gradient; see :meth:`arrived`.
    """

    def __init__(
        self, plan: ForwardPlan, graph: Sequence[Any], samples: Owners, trace: Trace
    ) -> None:
        self.covered = plan.covered
        self.edges: list[GradientEdge] = []
        self._parts: list[tuple[Any, Rule, ParameterUse]] = []
        self._ends: list[int] = []  # positions of those that edges lead to
        places: dict[tuple[int, int], Place] = {}
        reference: weakref.ref[PlannedPass] = weakref.ref(self)
        for planned, tiling in zip(plan.uses, plan.tilings, strict=True):
            place = places.get(tiling)
            if place is None:
                place = places[tiling] = Place(samples.spread(*tiling), 0)
            node = graph[planned.node]
            use = ParameterUse(planned.slots, planned.what, trace.backward_state)
            use.place = place
            for table in planned.tables:
                table.expect()
                if isinstance(planned.rule, Lookup) and planned.slots[0] is table:
                    table.lookups += 1
                    if planned.rule.embedding(node)._saved_sparse:
                        table.wants_sparse = True
            self._parts.append((node, planned.rule, use))
            if planned.ends:
                self.edges.append(GradientEdge(node, 0))
                self._ends.append(len(self._parts) - 1)
            else:
                node.register_prehook(_hook(reference, len(self._parts) - 1))

    @property
    def uses(self) -> dict[Any, ParameterUse]:
        """The uses by their node, for as long as the graph is needed."""
        return {node: use for node, _, use in self._parts}

    def arrived(self, gradients: Sequence[Tensor | None]) -> None:
        """Take the gradients of :attr:`edges`."""
        for n, dy in zip(self._ends, gradients, strict=True):
            self.add(n, dy)

    def add(self, n: int, dy: Tensor | None) -> None:
        """Add the gradients of the parameters of a use, from that of its node's output."""
        if dy is None or not self._parts:
            return
        node, rule, use = self._parts[n]
        with torch._C.DisableTorchFunction():
            if use.collects(dy):
                rule(node, dy, use.slots, use.place.owners)
                use.finish()

    def release(self) -> None:
        """Let go of the graph."""
        self.edges, self._ends, self._parts = [], [], []


def _hook(planned: weakref.ref[PlannedPass], n: int) -> Callable[[Sequence[Tensor | None]], None]:
    """A hook of a node. The node holds it, so it must hold nothing that leads to the node."""

    def arrived(gradients: Sequence[Tensor | None]) -> None:
        there = planned()
        if there is not None:
            there.add(n, gradients[0])

    return arrived
