"""gradvac: train one model on many languages and manage the tension between them.

Importing this package needs PyTorch alone; the toolkit (text, translation, reports) lives in
subpackages with their own dependencies.
"""

from gradvac.engine import (
    Engine,
    ParameterGroup,
    StepReport,
    parameter_groups,
)
from gradvac.errors import (
    CorpusError,
    GradientError,
    GradvacError,
    NotFiniteError,
    RecipeError,
    RunError,
)
from gradvac.geometry.diagnose import Diagnosis, diagnose
from gradvac.methods import (
    CATS,
    FAMO,
    MGDA,
    GradNorm,
    GradVac,
    Joint,
    Method,
    PCGrad,
    StaticWeights,
    StepGeometry,
    TorchJD,
)

__all__ = [
    "CATS",
    "FAMO",
    "MGDA",
    "CorpusError",
    "Diagnosis",
    "Engine",
    "GradNorm",
    "GradVac",
    "GradientError",
    "GradvacError",
    "Joint",
    "Method",
    "NotFiniteError",
    "PCGrad",
    "ParameterGroup",
    "RecipeError",
    "RunError",
    "StaticWeights",
    "StepGeometry",
    "StepReport",
    "TorchJD",
    "diagnose",
    "parameter_groups",
]
