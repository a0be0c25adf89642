"""Records where a forward pass that runs as written uses parameters with samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.gradients.slots import Slot, ViewSlot
from gradvac.engine.planning.uses import (
    Factor,
    Lookup,
    Projection,
    Rule,
    Sum,
    TermLookedUp,
    normalisation,
)
from gradvac.engine.samples.calls import writes
from gradvac.engine.samples.operations import Entry
from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Call, Mixed, Place
from gradvac.engine.tracing.layer_functions import flat_rows
from gradvac.engine.tracing.tensor_info import Refusal, TensorInfo, because, fits, refuse

if TYPE_CHECKING:
    from gradvac.engine.tracing.trace import Trace


@dataclass(slots=True)
class RecordedUse:
    """A use of parameters in the graph of a forward pass.

    Attributes:
        node: the node of autograd's graph.
        rule: adds the gradients of the parameters.
        slots: where they go, None for one that needs none.
        samples: position of the node's input that has samples; None if it has no gradient.
        what: the operation, for errors.
        owners: of the rows of the node's output.
    """

    node: Any
    rule: Rule
    slots: list[Slot | None]
    samples: int | None
    what: str
    owners: Owners


class Unplanned(Exception):
    """A forward pass does something that cannot be planned."""


class Recording:
    """The uses of parameters in a forward pass whose operations run as written.

    Attributes:
        uses: those seen so far.
        failed: why the forward pass cannot be planned; empty if it can.
    """

    def __init__(self) -> None:
        self.uses: list[RecordedUse] = []
        self.failed = ""

    def fail(self, reason: str) -> None:
        """Record that the forward pass cannot be planned."""
        self.failed = self.failed or reason

    def saw(self, info: TensorInfo) -> None:
        """Look at the information about a new tensor with a gradient."""
        if info.place is not None and info.place.owners.tiling is None:
            self.fail("the samples of a tensor depend on the numbers in the batch")

    def check_composed(self, name: str) -> None:
        """Fail for an operation that is traced in another form than it runs."""
        if name != "multi_head_attention_forward":
            self.fail(f"{name!r} with parameters")

    def use(self, trace: Trace, call: Call, entry: Entry | None, parameters: list[Tensor]) -> Any:
        """Run an operation on samples and parameters as it is written, and record the use."""
        out = call.out = call.func(*call.args, **call.kwargs)
        try:
            if entry is None or writes(call.func):
                raise Unplanned(f"{call.name!r} is not planned")
            refuse(call)
            place = entry.rule(call)
            if not isinstance(place, Place) or not fits(out, place):
                raise Unplanned(f"the output of {call.name!r}")
            if place.owners.tiling is None:
                raise Unplanned(f"the samples of {call.name!r} depend on numbers in the batch")
            finder = FINDERS.get(call.name)
            if finder is None:
                raise Unplanned(f"{call.name!r} is not planned")
            for node, rule, tensors, samples, kept in finder(call, parameters):
                if place.dim >= out.ndim - kept or len(call.inputs) > 1:
                    raise Unplanned(f"{call.name!r} with the samples elsewhere")
                slots = [self._slot(trace, x, rule, parameters) for x in tensors]
                owners = flat_rows(place, out.shape, kept)
                use = RecordedUse(node, rule, slots, samples, repr(call.name), owners)
                self.uses.append(use)
        except (Unplanned, Mixed, Refusal) as error:
            self.fail(str(error))
            return out
        except Exception as error:  # of a rule or finder not made for such arguments
            self.fail(because(error))
            return out
        TensorInfo(trace, out, place)
        return out

    def _slot(
        self, trace: Trace, x: Tensor | None, rule: Rule, parameters: Sequence[Tensor]
    ) -> Slot | None:
        if x is None or not any(x is p for p in parameters):
            return None
        if isinstance(rule, TermLookedUp) or rule in (Lookup(0), Lookup(1)):
            lookup_node: Any = x.grad_fn
            return trace.slots[id(lookup_node.next_functions[0][0].variable)]
        slot = trace.slot(x)
        table_of(slot)
        return slot


def table_of(slot: Slot) -> ParameterSlot:
    """Return the slot of the parameter that a slot's tensor is, or is a view of.

    Raises:
        Unplanned: if it is computed from parameters otherwise.
    """
    while isinstance(slot, ViewSlot):
        slot = slot.base
    if not isinstance(slot, ParameterSlot):
        raise Unplanned("a tensor computed from parameters")
    return slot


Found = tuple[Any, Rule, list[Tensor | None], int | None, int]
"""A node, its rule, the tensors that have slots, which of its inputs has samples, and how many last
dimensions of its output are not rows."""

Finder = Callable[[Call, list[Tensor]], Iterator[Found]]


def _nodes(call: Call, *inputs: Tensor | None) -> dict[str, Any]:
    """The nodes that an operation has added to the graph, by their kind; each kind once."""
    ends = {x.grad_fn for x in inputs if x is not None}
    found: dict[str, Any] = {}
    waiting = [call.out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in ends or type(node).__name__ == "AccumulateGrad":
            continue
        name = node.name()
        if name in found and found[name] is not node and not name.startswith(_MOVES):
            raise Unplanned(f"{call.name!r} in a form of its own")
        if name not in found:
            found[name] = node
        waiting += [following for following, _ in node.next_functions]
        if len(found) > 12:
            raise Unplanned(f"{call.name!r} in a form of its own")
    return found


_MOVES = "View", "UnsafeView", "T", "ToCopy", "Transpose", "Clone", "Reshape", "Alias", "Unsqueeze"


def _affine(
    call: Call, x: Tensor, w: Tensor, b: Tensor | None, transposed: bool
) -> Iterator[Found]:
    nodes = _nodes(call, x, w, b)
    full, bare = nodes.get("AddmmBackward0"), nodes.get("MmBackward0")
    if w.ndim != 2 or (full is None) == (bare is None) or "BmmBackward0" in nodes:
        raise Unplanned(f"{call.name!r} in a form of its own")
    if full is not None:
        yield full, Projection(transposed, biased=True), [w, b], 1, 1
        return
    yield bare, Projection(transposed, biased=False), [w, None], 0, 1
    if b is not None and b.requires_grad:
        yield nodes["AddBackward0"], Sum(1), [b], 0, 1


def _linear(call: Call, parameters: list[Tensor]) -> Iterator[Found]:
    x, w, b = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    return _affine(call, x, w, b, False)


def _addmm(call: Call, parameters: list[Tensor]) -> Iterator[Found]:
    b, x, w = call.args
    if call.kwargs or b.ndim != 1:
        raise Unplanned("addmm of other than a bias")
    return _affine(call, x, w, b, True)


def _matmul(call: Call, parameters: list[Tensor]) -> Iterator[Found]:
    x, w = call.args
    if any(x is p for p in parameters) or call.name == "rmatmul":
        raise Unplanned(f"{call.name!r} with a parameter first")
    return _affine(call, x, w, None, True)


def _embedding(call: Call, parameters: list[Tensor]) -> Iterator[Found]:
    table = call.argument(1, "weight")
    if call.argument(3, "max_norm") is not None or call.argument(5, "scale_grad_by_freq", False):
        raise Unplanned("max_norm and scale_grad_by_freq depend on all samples")
    yield _nodes(call, table)["EmbeddingBackward0"], Lookup(), [table], None, 1


def _layer_norm(call: Call, parameters: list[Tensor]) -> Iterator[Found]:
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    w, b = call.argument(2, "weight"), call.argument(3, "bias")
    node = _nodes(call, x, w, b)["NativeLayerNormBackward0"]
    yield node, normalisation, [w, b], 0, len(shape)


def _pointwise(call: Call, parameters: list[Tensor], kind: str) -> Iterator[Found]:
    """A sum or product of samples and one term or factor with the last dimensions alone."""
    one, other = call.args
    (parameter,) = parameters
    operand = 0 if one is parameter else 1
    if call.kwargs or call.name.startswith("r"):
        raise Unplanned(f"{call.name!r} with options")
    own = list(parameter.shape)
    while own and own[0] == 1:
        own = own[1:]
    kept = len(own)
    samples = (other, one)[operand]
    if not own or own != list(call.out.shape[-kept:]) or samples.shape != call.out.shape:
        raise Unplanned(f"{call.name!r} that broadcasts otherwise than over rows")
    node = call.out.grad_fn
    if node.name() != kind:
        raise Unplanned(f"{call.name!r} in a form of its own")
    if kind == "MulBackward0":
        yield node, Factor(kept, operand == 0), [parameter], 1 - operand, kept
    elif parameter.grad_fn is None or parameter.grad_fn.name() != "EmbeddingBackward0":
        yield node, Sum(kept), [parameter], 1 - operand, kept
    elif type(parameter.grad_fn.next_functions[0][0]).__name__ != "AccumulateGrad":
        raise Unplanned("a term looked up in a table computed from parameters")
    elif parameter.shape == call.out.shape:
        yield node, Lookup(operand), [parameter], 1 - operand, 1
    else:
        yield node, TermLookedUp(kept, operand), [parameter], 1 - operand, kept


FINDERS: dict[str, Finder] = {
    "linear": _linear,
    "addmm": _addmm,
    "matmul": _matmul,
    "mm": _matmul,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "add": lambda call, parameters: _pointwise(call, parameters, "AddBackward0"),
    "mul": lambda call, parameters: _pointwise(call, parameters, "MulBackward0"),
}
"""How to find the nodes of an operation, by its name."""
