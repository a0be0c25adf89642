"""Every differentiable operator of torch, in small models around its sample inputs."""

from __future__ import annotations

import random
import sys
import types
import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .around import MOST, Role, case_of, tensors_of
from .compare import BEST_FIRST, Found, Way, examine, weighted, worst
from .reference import Case, Unfit
from .report import Row

WAYS = (
    Way("default", weighted, "all_matrix"),
    Way("second step", weighted, "all_matrix", "same"),
    Way("after a batch of one task", weighted, "all_matrix", "one"),
    Way("budget=1", weighted, "all_matrix", "", {"budget": 1}),
    Way("passes=2", weighted, "whole_model", "", {"passes": 2}),
)
SAMPLES, ROLES = (2, 1), (1000, 12)  # of each operator at most, in full and quick
LARGEST = 3000  # numbers in the arguments of a sample; larger ones take long and show no more


def operators() -> list[Any]:
    """Return torch's list of its operators with sample inputs."""
    if (
        "expecttest" not in sys.modules and find_spec("expecttest") is None
    ):  # imported there for tests of torch itself
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stub
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def title(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def roles(tensors: Sequence[Tensor]) -> Iterator[Role]:
    """Yield what the arguments of a sample may be."""
    usable = [
        n for n, t in enumerate(tensors) if t.is_floating_point() and t.layout == torch.strided
    ]
    for dim in (0, 1):
        fits = [n for n in usable if tensors[n].ndim > dim and 2 <= tensors[n].shape[dim] <= MOST]
        if dim == 1:  # a middle dimension
            fits = [n for n in fits if tensors[n].ndim > 2] or fits[:1]
        for n in fits[:3]:
            yield Role((n,), dim)
            yield Role((n,), dim, pick=1)
            for other in usable[:4]:
                if other == n:
                    continue
                yield Role((n,), dim, parameter=other)
                yield Role((n,), dim, carries=False, parameter=other)
                alike = (
                    tensors[other].ndim > dim and tensors[other].shape[dim] == tensors[n].shape[dim]
                )
                if alike:
                    yield Role((n,), dim, parameter=other, expanded=True)
        same = [n for n in fits if tensors[n].shape[dim] == tensors[fits[0]].shape[dim]]
        if len(same) > 1:
            yield Role(tuple(same), dim)
    for n in usable[:3]:
        yield Role((), parameter=n)


def samples_of(op: Any, count: int) -> list[Any]:
    """Return sample inputs of an operator, first ``count`` spread evenly, then the others."""
    torch.manual_seed(0)
    random.seed(0)
    found = [
        s
        for s in op.sample_inputs("cpu", torch.float64, requires_grad=False)
        if sum(t.numel() for t in tensors_of([s.input, s.args, s.kwargs])) <= LARGEST
    ]
    good = [s for s in found if any(map(_fits, tensors_of([s.input, s.args, s.kwargs])))] or found
    step = max(1, len(good) // count)
    chosen = range(0, len(good), step)
    return [good[n] for n in (*chosen, *sorted(set(range(len(good))) - set(chosen)))]


def _fits(x: Tensor) -> bool:
    """Whether a tensor may hold samples that are more than a number each."""
    return x.is_floating_point() and x.ndim > 1 and 2 <= x.shape[0] <= MOST and x.numel() > len(x)


def variants(op: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the operator and, where there is one, its form that writes to its argument."""
    yield "", op.op
    if (write := op.inplace_variant) is not None:

        def inplace(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            y = x + 0
            write(y, *args, **kwargs)
            return y

        yield "in place: ", inplace


def row(op: Any, quick: bool) -> Row:
    """Try an operator in all roles; if ``quick``, in some of them."""
    name = title(op)
    if not op.supports_autograd or torch.float64 not in op.dtypes:
        return Row(name, "operator", "not tested", "it has no gradient")
    try:
        samples = samples_of(op, SAMPLES[quick])
    except Exception as e:
        return Row(name, "operator", "not tested", f"no sample inputs: {e}"[:150])
    found = Row(name, "operator", "not tested", "no sample input has two samples")
    done = 0
    for n, sample in enumerate(samples[: 4 * SAMPLES[quick]]):
        before = sum(found.counts.values())
        arguments = ([sample.input, *sample.args], sample.kwargs)
        for prefix, func in variants(op):
            tried = list(roles(tensors_of(arguments)))
            for role in tried[:: -(-len(tried) // ROLES[quick]) or 1]:
                if prefix and (n % 2 or not role.carries or role.pick or not role.samples):
                    continue
                try:
                    each = attempt(func, arguments, role)
                except Unfit as e:
                    if found.outcome == "not tested":
                        found.reason = str(e)
                    continue
                _add(found, each, f"{prefix}sample {n}: {role}")
        done += sum(found.counts.values()) > before
        if done == SAMPLES[quick]:  # a sample from which no model could be made does not count
            break
    return found


def _add(row: Row, each: dict[str, Found], text: str) -> None:
    """Count what came of one model of an operator; keep the worst."""
    for way, found in each.items():
        counts = row.ways.setdefault(way, {})
        counts[found.outcome] = counts.get(found.outcome, 0) + 1
    way, found = worst(each)
    row.counts[found.outcome] = row.counts.get(found.outcome, 0) + 1
    row.error = max(row.error, found.error)
    before = -1 if row.outcome == "not tested" else BEST_FIRST.index(row.outcome)
    if BEST_FIRST.index(found.outcome) > before:
        row.outcome, row.reason, row.where = found.outcome, found.reason, f"{text}, {way}"


def attempt(func: Callable[..., Any], arguments: Any, role: Role) -> dict[str, Found]:
    """Try a role; with one number in place of a parameter where the operator needs symmetry."""
    try:
        return examine(make(func, arguments, role), WAYS)[0]
    except Unfit:
        if not role.carries or role.whole:
            raise
        return examine(make(func, arguments, replace(role, whole=True)), WAYS)[0]


def make(func: Callable[..., Any], arguments: Any, role: Role) -> Case:
    """Build the case of a role.

    Raises:
        Unfit: if the operator does not take such arguments.
    """
    try:
        return case_of(func, arguments, role)
    except Unfit:
        raise
    except Exception as e:
        raise Unfit(f"{type(e).__name__}: {e}"[:150]) from e
