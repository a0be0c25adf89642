"""An engine of gradvac against separate backward passes in plain PyTorch, on copies of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import gradvac
from gradvac import GradientError, Method, PCGrad, StaticWeights, StepGeometry

from .reference import Case, Reference, line_of, seed, separate

WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5}
BEST_FIRST = ("exact", "falls back", "refused", "WRONG", "CRASH")


@dataclass(frozen=True)
class Way:
    """One way to use the engine.

    Attributes:
        first: tasks of a step before; "one" for a batch of one task, "same" for the same batch.
    """

    name: str
    method: Callable[[], Method]
    granularity: str
    first: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def weighted() -> Method:
    return StaticWeights(WEIGHTS)


WAYS = (
    Way("default", weighted, "all_matrix"),
    Way("PCGrad", PCGrad, "whole_model"),
    Way("second step", weighted, "all_layer", "same"),
    Way("after a batch of one task", weighted, "all_matrix", "one"),
    Way("budget=1000", PCGrad, "all_matrix", "", {"budget": 1000}),
    Way("passes=2", PCGrad, "whole_model", "", {"passes": 2}),
)
CHANGED = "exact if told by `rows` whose losses they are: samples change their order"
QUICK = (WAYS[3], WAYS[4])
FALLBACK = Way("a pass per task", weighted, "all_matrix", "", {"engine": "per_task"})
"""Beside the others, for adapters: one backward pass for each task is exact too."""


@dataclass
class Found:
    """What came of one way: the outcome, why, and the largest relative error."""

    outcome: str
    reason: str = ""
    error: float = 0.0


def run(case: Case, way: Way, reference: Reference, rows: Tensor | None = None) -> Found:
    """Take a step, or two, with the engine; say whether the last was right."""
    model = copy.deepcopy(case.model)
    try:
        engine = gradvac.Engine(model, way.method(), way.granularity, **way.options)
    except GradientError as e:
        return Found("refused", line_of(e))
    try:
        if way.first:
            tasks = ["a"] * len(case.tasks) if way.first == "one" else case.tasks
            _step(engine, model, case, tasks, rows)
            model.load_state_dict(case.model.state_dict())
        report = _step(engine, model, case, case.tasks, rows)
    except GradientError as e:
        if rows is None and "`rows`" in str(e):  # samples were lost before the loss: say it
            return run(case, way, reference, torch.arange(len(case.tasks)))
        return Found("refused", line_of(e))
    except Exception as e:
        return Found("CRASH", line_of(e))
    error, where = _errors(engine, model, report, way, reference)
    if not error <= reference.limits[0]:
        if rows is None and case.permutes:
            found = run(case, way, reference, torch.arange(len(case.tasks)))
            if found.outcome != "WRONG":
                return Found(found.outcome, found.reason or CHANGED, found.error)
        after = f", although it fell back: {engine.refused}" if engine.refused else ""
        return Found("WRONG", where + after, error)
    return Found("falls back" if engine.refused else "exact", engine.refused, error)


def _step(
    engine: gradvac.Engine, model: nn.Module, case: Case, tasks: Sequence[str], rows: Tensor | None
) -> gradvac.StepReport:
    model.zero_grad()
    seed()
    with engine.tasks(tasks, **case.options):
        loss = case.losses(model)
        if rows is None:
            return engine.backward(loss)
        per_sample = loss if loss.ndim == 1 else loss.flatten(1).sum(1)
        return engine.backward(per_sample, rows)


def _errors(
    engine: gradvac.Engine,
    model: nn.Module,
    report: gradvac.StepReport,
    way: Way,
    reference: Reference,
) -> tuple[float, str]:
    """Return the largest relative error of the Gram matrix or of a gradient, and where it is."""
    place = {name: n for n, name in enumerate(reference.names)}
    floor = reference.limits[1]
    exact = []
    for group in engine.groups:
        flat = [
            torch.cat([reference.of[task][place[name]].double().flatten() for name in group.names])
            for task in report.tasks
        ]
        exact.append(torch.stack(flat) @ torch.stack(flat).T)
    gram = torch.stack(exact)
    whole = float(gram.diagonal(dim1=1, dim2=2).sum(0).max())
    worst, where = 0.0, ""
    for n, group in enumerate(engine.groups):
        scale = max(float(gram[n].diagonal().max()), floor**2 * whole)
        error = float((report.gram[n] - gram[n]).abs().max()) / scale
        if not error <= worst:
            worst, where = error, f"Gram matrix of {group.name}"
    losses = torch.tensor([reference.losses[t] for t in report.tasks], dtype=torch.float64)
    groups = tuple(group.name for group in engine.groups)
    geometry = StepGeometry(gram, losses, report.tasks, groups, report.step, None)
    weights = way.method().weights(geometry)
    found = dict(model.named_parameters())
    for n, group in enumerate(engine.groups):
        for name in group.names:
            each = [reference.of[t][place[name]].double() for t in report.tasks]
            pairs = list(zip(weights[n].tolist(), each, strict=True))
            right = sum((w * g for w, g in pairs), torch.zeros_like(each[0]))
            size = max(sum(abs(w) * float(g.norm()) for w, g in pairs), floor * whole**0.5)
            given = found[name].grad
            given = torch.zeros_like(right) if given is None else given.to_dense().double()
            error = float((given - right).norm()) / size
            if not error <= worst:
                worst, where = error, f"gradient of {name}"
    return worst, where


def examine(case: Case, ways: Sequence[Way] = WAYS) -> tuple[dict[str, Found], bool]:
    """Return what came of each way, and whether numbers of float32 took part.

    What falls back does so whatever the budget and the number of passes: of these cases only
    further ways with a batch of one task before are tried.

    Raises:
        Unfit: if plain PyTorch does not run the case.
    """
    reference = separate(case)
    each: dict[str, Found] = {}
    for way in ways:
        falls = bool(each) and next(iter(each.values())).outcome == "falls back"
        if not falls or way.first == "one":
            each[way.name] = run(case, way, reference)
    return each, reference.narrow < 8


def worst(each: dict[str, Found]) -> tuple[str, Found]:
    """Return the worst outcome and its way."""
    return max(each.items(), key=lambda item: (BEST_FIRST.index(item[1].outcome), item[1].error))
