"""Engines: the gradients of every task of a step, grouped, measured and combined."""

from gradvac.engine.combine import StepReport
from gradvac.engine.groups import GRANULARITIES, ParameterGroup, parameter_groups
from gradvac.engine.per_task import PerTaskEngine

__all__ = ["GRANULARITIES", "ParameterGroup", "PerTaskEngine", "StepReport", "parameter_groups"]
