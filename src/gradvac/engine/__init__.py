"""Engines: the gradients of every task of a step, grouped, measured and combined."""

from gradvac.engine.engine import Engine, SinglePassEngine
from gradvac.engine.groups import (
    GRANULARITIES,
    Grouping,
    Heads,
    ParameterGroup,
    parameter_groups,
)
from gradvac.engine.nonfinite import NonFinite
from gradvac.engine.per_task import PerTaskEngine
from gradvac.engine.report import StepReport
from gradvac.engine.samples.declared import keeps_samples_apart

__all__ = [
    "GRANULARITIES",
    "Engine",
    "Grouping",
    "Heads",
    "NonFinite",
    "ParameterGroup",
    "PerTaskEngine",
    "SinglePassEngine",
    "StepReport",
    "keeps_samples_apart",
    "parameter_groups",
]
