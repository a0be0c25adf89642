"""Information about the tensors of a forward pass, and how operations pass it on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradvac.engine.gradients.slots import Slot
from gradvac.engine.samples.calls import tensors_in
from gradvac.engine.samples.crossed import places_after
from gradvac.engine.samples.operations import Entry
from gradvac.engine.samples.places import Call, Lost, Mixed, Place
from gradvac.engine.samples.segments import Segments
from gradvac.errors import GradientError

if TYPE_CHECKING:
    from gradvac.engine.planning.recording import Recording

_MARK = "_gradvac"


class Refusal(GradientError):
    """The gradient cannot be split by tasks in one pass; one backward per task can.

    Attributes:
        reason: the operation, its module and what is wrong, without the advice.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}; the gradient cannot be split by tasks in one pass, "
            'Engine(..., engine="per_task") runs one backward per task'
        )
        self.reason = reason


class TensorInfo:
    """Information about a tensor, valid while it is not written to.

    Attributes:
        place: where its samples lie; if ``why`` is set too, only valid as owners of losses.
        why: why it may mix samples of several tasks; None if it does not.
        lost: whether its slices belong to no sample, regardless of its size.
        slot: the slot of a tensor computed only from parameters.
        base: the tensor that it is a view of, and how.
        left_to_autograd: whether its gradient is left to autograd.
    """

    __slots__ = ("base", "computed", "left_to_autograd", "lost", "place", "slot", "trace",
                 "version", "why")  # fmt: skip

    def __init__(
        self,
        trace: TensorPlaces,
        tensor: Tensor,
        place: Place | None = None,
        slot: Slot | None = None,
        base: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None,
        why: str | None = None,
        left_to_autograd: bool = False,
        lost: bool = False,
    ) -> None:
        self.trace, self.version = trace, tensor._version
        self.place, self.slot, self.base = place, slot, base
        self.why, self.left_to_autograd, self.lost = why, left_to_autograd, lost
        self.computed = tensor.grad_fn is not None
        if trace.recording is not None and tensor.requires_grad:
            trace.recording.saw(self)
        setattr(tensor, _MARK, self)


class TensorPlaces(TorchFunctionMode):
    """Where the samples lie in each tensor of a forward pass, or why this is unknown.

    Args:
        model: the model, to name modules in errors.

    Attributes:
        recording: what is recorded for the plan of later steps, None if nothing is.
        segments: what checks attention if samples are tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.recording: Recording | None = None
        self.segments: Segments | None = None

    def set_place(self, tensor: Tensor, place: Place) -> None:
        """Declare where the samples lie in a tensor."""
        TensorInfo(self, tensor, place)

    def place(self, tensor: Tensor) -> Place | None:
        """Return where the samples lie in a tensor, None if not certain."""
        info = self.info(tensor)
        return info.place if info is not None and info.why is None else None

    def info(self, tensor: Tensor) -> TensorInfo | None:
        """Return the information about a tensor, None if none or if it was written to since."""
        info: TensorInfo | None = getattr(tensor, _MARK, None)
        if info is None or info.trace is not self or info.version != tensor._version:
            return None
        if tensor.grad_fn is not None and not info.computed:
            # A custom autograd function made it of constants and gave it a gradient.
            return TensorInfo(self, tensor, info.place, why=_out_of_sight(tensor))
        return info

    def follow(self, call: Call, entry: Entry | None) -> None:
        """Record where the samples lie in the output of an operation without parameters."""
        written = call.args[0] if call.name == "setitem" else call.out
        try:
            if entry is None:
                raise Mixed("gradvac does not know whether it keeps samples apart")
            refuse(call)
            self.set_places(written, places_after(entry.rule, call))
        except Exception as error:  # also errors of rules not made for such arguments
            self.mark_unknown(call, entry, f"made by {call.name!r}: {because(error)}")

    def mark_unknown(self, call: Call, entry: Entry | None, why: str, lost: bool = False) -> None:
        """Mark the results of an operation as unknown, and record their owners as losses.

        Tensors without gradient stay unmarked: they are constants.
        """
        written = call.args[0] if call.name == "setitem" else call.out
        outs = [x for x in tensors_in((written,), {}) if x.requires_grad]
        places, lost = self._whose(call, entry, lost) if outs else (None, False)
        for x in outs:
            place = places if isinstance(places, Place) else None
            if place is not None and not fits(x, place):
                place = None
            TensorInfo(self, x, place, why=why, lost=lost and place is None)

    def _whose(self, call: Call, entry: Entry | None, lost: bool) -> tuple[Any, bool]:
        """Return the sample of each slice of an output as a loss, if that is clear."""
        if not call.inputs:
            return None, lost
        place = call.inputs[0][1]
        try:
            if entry is not None:
                return places_after(entry.rule, call), lost
        except Lost:
            return None, True
        except Exception:
            pass  # optional: the user can give the owners of losses
        if self._are_ambiguous(call.inputs):
            return None, True
        return (place if fits(call.out, place) else None), lost

    def _are_ambiguous(self, inputs: Sequence[tuple[Tensor, Place]]) -> bool:
        """Whether samples are in several orders, or only labels show them, which may be shifted."""
        (x, first), *others = inputs
        if not x.requires_grad:
            return self.segments is not None
        order = first.along()
        return any(x.requires_grad and not place.along().same(order) for x, place in others)

    def set_places(self, out: Any, places: Any) -> None:
        """Record the places of the results of an operation: one for each tensor, or one for all."""
        if isinstance(out, Tensor):
            if places is not None:
                if not fits(out, places):
                    raise Mixed("its output has another size than its samples")
                TensorInfo(self, out, places)
        elif isinstance(out, tuple | list):
            each = [places] * len(out) if isinstance(places, Place) or places is None else places
            for piece, place in zip(out, each, strict=True):
                self.set_places(piece, place)

    def origin(self, x: Tensor) -> str:
        """Describe the origin of a tensor whose samples are unknown."""
        info = self.info(x)
        if info is not None and info.why is not None:
            return info.why
        return _out_of_sight(x)

    def module(self) -> str:
        """Return the name of the running module."""
        names = {id(module): name for name, module in self.model.named_modules()}
        frame = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in names:
                return f"module {names[id(owner)] or 'the model'!r} ({type(owner).__name__})"
            frame = frame.f_back
        return "no module"

    def error(self, name: str, reason: str) -> Refusal:
        """Return the refusal of the operation ``name``, naming its module."""
        return Refusal(f"{name!r} in {self.module()}: {reason}")


def _out_of_sight(x: Tensor) -> str:
    return (
        f"made by {type(x.grad_fn).__name__}, out of sight (by a custom autograd function, which "
        "gradvac.engine.register_operation makes known, in place through a view, or before `with "
        "engine.tasks`; of activation checkpointing, use_reentrant=False works)"
    )


def fits(x: Any, place: Place) -> bool:
    """Whether a tensor has as many slices as a place."""
    return isinstance(x, Tensor) and place.fits(x.shape)


def because(error: Exception) -> str:
    """Return why an operation could not be followed."""
    if isinstance(error, Mixed):
        return str(error)
    return f"gradvac does not know how it keeps samples apart ({type(error).__name__}: {error})"


def refuse(call: Call) -> None:
    """Refuse operations that mix samples for all shapes."""
    if call.name == "batch_norm" and call.argument(5, "training", False):
        raise Mixed(
            "batch normalisation in training mode mixes samples; put it in eval mode or use "
            "GroupNorm or LayerNorm"
        )
    if call.name == "instance_norm" and call.argument(1, "running_mean") is not None:
        raise Mixed("it keeps running statistics over samples; set track_running_stats=False")
    if call.kwargs.get("out") is not None:
        raise Mixed("it writes to out=")
