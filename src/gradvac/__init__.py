"""gradvac: train one model on many languages and manage the tension between them.

Importing this package needs PyTorch alone; the toolkit (text, translation, reports) lives in
subpackages with their own dependencies.
"""

from gradvac.engine import (
    ParameterGroup,
    PerTaskEngine,
    SinglePassEngine,
    StepReport,
    parameter_groups,
)
from gradvac.errors import CorpusError, GradientError, GradvacError, RecipeError, RunError
from gradvac.methods import GradVac, Joint, Method, PCGrad, StaticWeights, StepGeometry

__all__ = [
    "CorpusError",
    "GradVac",
    "GradientError",
    "GradvacError",
    "Joint",
    "Method",
    "PCGrad",
    "ParameterGroup",
    "PerTaskEngine",
    "RecipeError",
    "RunError",
    "SinglePassEngine",
    "StaticWeights",
    "StepGeometry",
    "StepReport",
    "parameter_groups",
]
