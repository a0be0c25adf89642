"""Decides whether a forward pass is traced, recorded or planned.

The first steps are traced, see :mod:`gradvac.engine.tracing`, and checked. Then a call of the model
is *recorded*: its operations run as written, while its samples are followed and its uses of
parameters are noted. What autograd's graph of its outputs says about it is kept with the uses, as
the :class:`~gradvac.engine.planning.plan.ForwardPlan` for inputs of these sizes. Later calls with
inputs of these sizes run as written and unseen; then their graph is compared with the plan. If it
is another, the model is called once more, with the same random numbers, and traced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from gradvac.engine.planning.graph import walk
from gradvac.engine.planning.plan import ForwardPlan, PlannedPass
from gradvac.engine.planning.recording import Recording, Unplanned
from gradvac.engine.samples.calls import tensors_within
from gradvac.engine.samples.owners import Owners
from gradvac.engine.samples.places import Place
from gradvac.engine.setup import Setup
from gradvac.engine.tracing.batch import TracedBatch
from gradvac.engine.tracing.tensor_info import TensorInfo

_KEPT = 512
"""Plans kept, each for inputs of other sizes; chosen here. Those of one structure share most."""
_STRUCTURES = 8
"""Plans that differ by more than sizes, each of which is checked, before they must pay; chosen."""


class Planner:
    """The plans of a model, and whether planning is worth while.

    Attributes:
        off: why no forward pass is planned any more; empty while they are.
        planned: how many were.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.off = "" if setup.options.plan else "plan=False"
        if setup.shards is not None:
            self.off = "a model sharded over ranks"
        self.planned = 0
        self._failed = self._structures = 0
        self._plans: dict[Any, ForwardPlan] = {}
        self._modules = list(setup.module.modules())
        self._training = b""
        self._buffers = list(setup.module.buffers())

    @contextmanager
    def around(self, batch: TracedBatch) -> Iterator[None]:
        """Plan the first call of the model inside, if it can be."""
        if self.off or not batch.trace.splits:
            yield
            return
        call = ModelCall(self, batch)
        module = self.setup.module
        hooks = [
            module.register_forward_pre_hook(call.begin, with_kwargs=True),
            module.register_forward_hook(call.end, with_kwargs=True),
        ]
        try:
            yield
        finally:
            call.stop()
            for hook in hooks:
                hook.remove()

    def stop(self, reason: str) -> None:
        """Plan no more."""
        self.off = reason
        self._plans.clear()
        logging.getLogger("gradvac").debug("forward passes are traced, not planned: %s", reason)

    def failed(self, reason: str) -> None:
        """Count a call that was recorded or planned and had to be made once more."""
        self._failed += 1
        if self._failed > 1 + self.planned // 8:
            self.stop(reason)

    def checked(self) -> None:
        """Count a plan that is checked, since none has its structure."""
        self._structures += 1
        if self._structures > _STRUCTURES + self.planned // 8:
            self.stop("its forward passes differ by more than the sizes of their inputs")

    def plan(self, key: Any) -> ForwardPlan | None:
        """Return the plan for inputs, if there is one."""
        return self._plans.get(key)

    def keep(self, key: Any, plan: ForwardPlan) -> None:
        """Keep a plan for inputs."""
        if len(self._plans) >= _KEPT:
            self._plans.pop(next(iter(self._plans)))
        last = next(reversed(self._plans.values()), None)
        self._plans[key] = plan if last is None else plan.like(last)

    def drop(self, key: Any) -> None:
        """Forget the plan for inputs."""
        self._plans.pop(key, None)

    def key(self, batch: TracedBatch, values: Any) -> Any:
        """Return what a plan depends on; None for inputs that are not understood."""
        described = _described(batch, values)
        if described is None:
            return None
        device = self.setup.parameters[0].device.type
        training = bytes(module.training for module in self._modules)
        if training != self._training:  # else keys share it
            self._training = training
        return (
            described,
            self._training,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
        )

    def written(self) -> tuple[int, ...]:
        """Return how often each buffer of the model has been written to."""
        return tuple(buffer._version for buffer in self._buffers)


def _described(batch: TracedBatch, x: Any) -> Any:
    """Describe an input of the model without its numbers; None if it is not understood."""
    if isinstance(x, Tensor):
        place = batch.trace.place(x)
        if x.grad_fn is not None or (place is not None and place.owners.tiling is None):
            return None
        where = None if place is None else (place.dim, place.owners.tiling)
        return tuple(x.shape), x.dtype, x.device, x.requires_grad, where
    if x is None or isinstance(x, bool | int | float | str):
        return type(x), x
    if isinstance(x, Mapping):
        x = [*x.keys(), *x.values()]
    if not isinstance(x, list | tuple):
        return None
    found = tuple(_described(batch, y) for y in x)
    return None if None in found else found


class ModelCall:
    """The first call of the model for a batch.

    Args:
        planner: keeps the plans.
        batch: the batch; its ``planned`` is set if the call went as planned.
    """

    def __init__(self, planner: Planner, batch: TracedBatch) -> None:
        self.planner, self.batch = planner, batch
        self._begun = self._asleep = False
        self._plan: ForwardPlan | None = None
        self._recording: Recording | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Stop tracing if there is a plan, else begin to record; a forward pre-hook."""
        trace = self.batch.trace
        modes = _get_current_function_mode_stack()
        if self._begun or not modes or modes[-1] is not trace:
            return
        self._begun = True
        self._key = self.planner.key(self.batch, (args, kwargs))
        if self._key is None:
            return
        self._inputs = args, kwargs
        self._state = _State(self.batch)
        self._plan = self.planner.plan(self._key)
        if self._plan is not None:
            trace.__exit__(None, None, None)
            self._asleep = True
            return
        self._written = self.planner.written()
        self._recording = trace.recording = Recording()
        self._samples.for_any(True)

    @property
    def _samples(self) -> Owners:
        return self.batch.owners

    def stop(self) -> None:
        """Trace again, whatever happened."""
        trace = self.batch.trace
        if self._asleep:
            trace.__enter__()
            self._asleep = False
        trace.recording = None
        self._samples.for_any(False)

    def end(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Any:
        """Compare the call with its plan, or make one; a forward hook."""
        plan, recording = self._plan, self._recording
        self._plan = self._recording = None
        self.stop()
        if plan is not None:
            return self._compare(plan, module, out)
        if recording is not None:
            return self._make(recording, module, out)
        return None

    def _compare(self, plan: ForwardPlan, module: nn.Module, out: Any) -> Any:
        outputs = _outputs(out)
        graph, signature = walk(outputs)
        if hash(signature) != plan.signature or len(outputs) != len(plan.outputs):
            self.planner.drop(self._key)
            return self._again(module, "the model does not always do the same")
        trace, samples = self.batch.trace, self._samples
        for x, known in zip(outputs, plan.outputs, strict=True):
            if known is None:
                continue
            place = None if known.dim is None else Place(samples.spread(*known.tiling), known.dim)
            TensorInfo(trace, x, place, why=known.why, lost=known.lost)
        trace.last = plan.last
        self.batch.planned = PlannedPass(plan, graph, samples, trace)
        self.planner.planned += 1
        return None

    def _make(self, recording: Recording, module: nn.Module, out: Any) -> Any:
        outputs = _outputs(out)
        trace = self.batch.trace
        graph, signature = walk(outputs)
        try:
            if recording.failed:
                raise Unplanned(recording.failed)
            plan = ForwardPlan.of(recording, trace, outputs, graph, signature)
        except Unplanned as error:
            return self._again(module, str(error))
        if trace.proved is not None and (known := ("plan", plan.structure)) not in trace.proved:
            trace.new.add(known)
            self.planner.checked()
        if self.planner.written() != self._written:
            self.planner.stop("the model writes to its buffers")
        elif not self.planner.off:
            self.planner.keep(self._key, plan)
        self.batch.planned = PlannedPass(plan, graph, self._samples, trace)
        return None

    def _again(self, module: nn.Module, reason: str) -> Any:
        """Call the model once more, traced, with the same random numbers."""
        self.planner.failed(reason)
        self._state.restore()
        args, kwargs = self._inputs
        return module(*args, **kwargs)


def _outputs(out: Any) -> Sequence[Tensor]:
    """The tensors that a model returns."""
    return list(tensors_within(out))


class _State:
    """What a call of the model changes: random numbers, and what the trace has recorded."""

    def __init__(self, batch: TracedBatch) -> None:
        trace = batch.trace
        self.trace, self.last, self.new = trace, trace.last, set(trace.new)
        self.device = trace.anchor.device
        self.here = torch.get_rng_state()
        self.there: Tensor | None = None
        if self.device.type == "cuda":
            self.there = torch.cuda.get_rng_state(self.device)

    def restore(self) -> None:
        """Put it back."""
        self.trace.last, self.trace.new = self.last, self.new
        self.trace.derived.clear()
        torch.set_rng_state(self.here)
        if self.there is not None:
            torch.cuda.set_rng_state(self.there, self.device)
