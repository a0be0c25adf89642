"""gradvac: train one model on many languages and control how their gradients interact.

Importing this package needs PyTorch alone. The toolkit (text, translation, reports) is in
subpackages with their own dependencies.

Public are the names in ``__all__`` here, in ``gradvac.methods``, in ``gradvac.engine`` and in the
modules of ``gradvac.geometry`` and ``gradvac.integrations``. Everything else may change.
"""

from importlib.metadata import PackageNotFoundError, version

from gradvac.engine import (
    Engine,
    Grouping,
    Heads,
    NonFinite,
    ParameterGroup,
    StepReport,
    parameter_groups,
)
from gradvac.errors import (
    CorpusError,
    GradientError,
    GradvacError,
    NotFiniteError,
    RankError,
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
    register,
)

try:
    __version__ = version("gradvac")
except PackageNotFoundError:  # run from its source folder
    __version__ = "source"

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
    "Grouping",
    "Heads",
    "Joint",
    "Method",
    "NonFinite",
    "NotFiniteError",
    "PCGrad",
    "ParameterGroup",
    "RankError",
    "RecipeError",
    "RunError",
    "StaticWeights",
    "StepGeometry",
    "StepReport",
    "TorchJD",
    "__version__",
    "diagnose",
    "parameter_groups",
    "register",
]
