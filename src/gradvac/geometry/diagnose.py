"""Measuring a model's task gradients once: how well they agree, and what each method would do.

Everything is computed from the Gram matrices ``G`` of the parameter groups. With weights ``w`` of a
group, the update ``u = sum_i w_i g_i`` and the plain sum ``s = sum_i g_i``::

    |u|^2 = w^T G w        u . s = w^T G 1        u . g_j = (G w)_j

added up over the groups for the whole model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradvac.engine.groups import Grouping
from gradvac.engine.per_task import PerTaskEngine
from gradvac.engine.report import cosines
from gradvac.errors import GradientError
from gradvac.geometry.diagnosis import Diagnosis, Effect
from gradvac.methods import METHODS, Joint, Method, StaticWeights, StepGeometry

__all__ = ["diagnose"]

Losses = Callable[[], Mapping[str, Tensor]]
"""Returns a scalar loss for each task; called once per step."""

LossOf = Callable[[nn.Module, Any], Tensor]
"""The scalar mean loss of a model on some rows of a batch."""


def diagnose(
    model: nn.Module,
    batch: Any,
    tasks: Sequence[str] | None = None,
    loss: LossOf | None = None,
    *,
    methods: Mapping[str, Method] | None = None,
    granularity: Grouping = "all_layer",
    steps: int = 1,
) -> Diagnosis:
    """Measure how well the gradients of tasks agree and what each method would do.

    It takes one backward pass for each task, with any model, and holds K x P numbers. The model is
    left as it was: parameters, ``p.grad``, buffers, modes, and torch's random numbers.

    Args:
        model: the model, in the mode to be measured (usually training).
        batch: what the model takes, samples first: a tensor, or a mapping or sequence of tensors;
            or a function that returns ``{task: loss}``, called again for each step.
        tasks: the task of each of the B samples of the batch.
        loss: mean loss of a model on rows of the batch; by default ``model(**rows).loss``, as
            Hugging Face models have it. A task's loss is counted by its share of the samples.
        methods: by name, the methods to try; they are copied with their state. By default
            every registered method that needs no arguments.
        granularity: how parameters are grouped; see :mod:`gradvac.engine.groups`.
        steps: how often the function is called, or the batch is passed through; methods that
            have a state have then seen all steps before the last.

    Raises:
        GradientError: if tasks and samples do not match, a task has no loss, or a loss or gradient
            is not finite.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> batch = torch.tensor([[1.0, 0.0], [-3.0, 4.0]])  # also the gradients
        >>> found = gradvac.diagnose(model, batch, ["fr", "hi"], lambda model, x: model(x).mean())
        >>> round(float(found.whole_model[0, 1]), 2)  # their cosine, -3 / (1 * 5)
        -0.6
        >>> float(found.conflicts.sum())
        1.0
    """
    shares: Mapping[str, float] | None = None
    if not callable(batch):
        losses, shares = _by_rows(model, batch, tasks, loss)
    elif tasks is not None or loss is not None:
        raise GradientError("a function returns {task: loss}: leave out tasks and loss")
    else:
        losses = cast(Losses, batch)
    if steps < 1:
        raise GradientError(f"steps is {steps}; it must be at least 1")
    with undisturbed(model):
        seen = _measured(PerTaskEngine(model, Joint(), granularity), losses, shares, steps)
    gram = torch.stack([geometry.gram for geometry in seen])
    pairs = torch.triu(torch.ones_like(gram[0, 0]), 1).bool()
    effects, refused = _effects(_copies(methods), seen)
    return Diagnosis(
        tasks=seen[0].tasks,
        groups=seen[0].groups,
        gram=gram,
        losses=torch.stack([geometry.losses for geometry in seen]),
        cosine=cosines(gram).nanmean(0),
        whole_model=cosines(gram.sum(1)).nanmean(0),
        norms=gram.diagonal(dim1=2, dim2=3).sqrt().mean(0),
        conflicts=(gram < 0)[..., pairs].sum(2).double().mean(0),
        effects=effects,
        refused=refused,
    )


def _measured(
    engine: PerTaskEngine, losses: Losses, shares: Mapping[str, float] | None, steps: int
) -> list[StepGeometry]:
    """The geometry of each step, all of the same tasks."""
    seen: list[StepGeometry] = []
    for step in range(steps):
        report = engine.backward(losses(), step=step, shares=shares)
        seen.append(report.geometry)
        if report.tasks != seen[0].tasks:
            raise GradientError(
                f"step {step} has losses of {', '.join(report.tasks)} and step 0 of "
                f"{', '.join(seen[0].tasks)}; every step needs the same, in the same order"
            )
    return seen


# -- losses -------------------------------------------------------------------------------------


def _by_rows(
    model: nn.Module, batch: Any, tasks: Sequence[str] | None, loss: LossOf | None
) -> tuple[Losses, dict[str, float]]:
    """Return the losses of the rows of each task, and each task's share of the samples."""
    if tasks is None:
        raise GradientError("diagnose() needs the task of each sample, or a function of losses")
    if loss is None and not isinstance(batch, Mapping):
        raise GradientError(
            f"a batch that is a {type(batch).__name__} needs loss=, a function of the model and "
            "rows of the batch that returns their mean loss"
        )
    rows: dict[str, list[int]] = {}
    for n, task in enumerate(tasks):
        rows.setdefault(str(task), []).append(n)
    sizes = [len(x) for x in _tensors(batch) if x.dim()]
    if len(tasks) not in sizes:
        raise GradientError(
            f"tasks names {len(tasks)} samples, and the tensors of the batch have "
            f"{', '.join(map(str, sizes)) or 'none'}"
        )
    shares = {task: len(own) / len(tasks) for task, own in rows.items()}
    mean = loss or _own_loss
    return (
        lambda: {
            task: mean(model, _select(batch, own, len(tasks))) * shares[task]
            for task, own in rows.items()
        }
    ), shares


def _own_loss(model: nn.Module, rows: Any) -> Tensor:
    output = model(**rows)
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(found, Tensor):
        raise GradientError(
            f"the model returned a {type(output).__name__} without a loss; give it labels, or "
            "loss=, a function of the model and rows of the batch that returns their mean loss"
        )
    return found


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, Mapping) else batch
    return [x for x in values if isinstance(x, Tensor)]


def _select(batch: Any, rows: list[int], n_samples: int) -> Any:
    """Return the rows of every tensor that holds the samples; everything else is unchanged."""
    if isinstance(batch, Tensor):
        holds = batch.dim() > 0 and len(batch) == n_samples
        return batch[torch.tensor(rows, device=batch.device)] if holds else batch
    if isinstance(batch, Mapping):
        return {key: _select(x, rows, n_samples) for key, x in batch.items()}
    if isinstance(batch, list | tuple):
        return [_select(x, rows, n_samples) for x in batch]
    return batch


# -- methods ------------------------------------------------------------------------------------


def _copies(methods: Mapping[str, Method] | None) -> dict[str, Method]:
    """Methods to try, the plain sum first."""
    if methods is None:
        methods = {
            name: kind()
            for name, kind in METHODS.items()
            if kind is not StaticWeights  # without weights, the plain sum again
            and all(p.default is not p.empty for p in inspect.signature(kind).parameters.values())
        }
    return {"joint": Joint()} | copy.deepcopy(dict(methods))


def _effects(
    methods: Mapping[str, Method], seen: Sequence[StepGeometry]
) -> tuple[dict[str, Effect], dict[str, str]]:
    plain = torch.ones_like(seen[-1].gram[:, 0])
    effects: dict[str, Effect] = {}
    refused: dict[str, str] = {}
    for name, method in methods.items():
        try:
            weights = [method.weights(geometry) for geometry in seen][-1]
        except GradientError as e:
            refused[name] = str(e)
        else:
            effects[name] = _effect(seen[-1].gram, weights.cpu(), plain)
    return effects, refused


def _effect(gram: Tensor, weights: Tensor, plain: Tensor) -> Effect:
    """Compare the update of weights ``[groups, K]`` with the plain sum."""

    def squares(w: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("gi,gij,gj->g", w, gram, v)

    def alignment(w: Tensor) -> Tensor:
        along = torch.einsum("gij,gj->gi", gram, w).sum(0)
        norms = gram.diagonal(dim1=1, dim2=2).sum(0).sqrt()
        return along / norms / squares(w, w).sum().clamp_min(0).sqrt()

    uu, us, ss = squares(weights, weights), squares(weights, plain), squares(plain, plain)
    uu = uu.clamp_min(0)  # rounding may leave less if an update cancels
    return Effect(
        weights=weights,
        cosine=float(us.sum() / (uu.sum() * ss.sum()).sqrt()),
        norm_ratio=float((uu.sum() / ss.sum()).sqrt()),
        alignment=alignment(weights),
        change=alignment(weights) - alignment(plain),
        group_cosine=us / (uu * ss).sqrt(),
        group_norm_ratio=(uu / ss).sqrt(),
    )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore gradients, buffers, modes and random numbers afterwards, also after an error."""
    gradients = [(p, p.grad) for p in model.parameters()]
    for p, _ in gradients:
        p.grad = None  # gradients would be added to it
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus), torch.enable_grad():
        try:
            yield
        finally:
            for p, gradient in gradients:
                p.grad = gradient
            for module, mode in modes:
                module.training = mode
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer
                with torch.no_grad():
                    buffer.copy_(before)
