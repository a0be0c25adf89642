"""Engines: the gradients of every task of a step, grouped, measured and combined."""

from gradvac.engine.engine import Engine, SinglePassEngine
from gradvac.engine.groups import (
    GRANULARITIES,
    Grouping,
    Heads,
    ParameterGroup,
    parameter_groups,
)
from gradvac.engine.lazy import LazyReport
from gradvac.engine.nonfinite import NonFinite
from gradvac.engine.per_task import PerTaskEngine
from gradvac.engine.report import StepReport
from gradvac.engine.samples.declared import register_operation

__all__ = [
    "GRANULARITIES",
    "Engine",
    "Grouping",
    "Heads",
    "LazyReport",
    "NonFinite",
    "ParameterGroup",
    "PerTaskEngine",
    "SinglePassEngine",
    "StepReport",
    "parameter_groups",
    "register_operation",
]
