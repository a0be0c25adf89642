"""gradvac: train one model on many languages and control how their gradients interact.

Importing this package needs PyTorch alone. The toolkit (text, translation, reports) is in
subpackages with their own dependencies.

Public are the names in ``__all__`` here, in ``gradvac.methods``, in ``gradvac.engine`` and in the
modules of ``gradvac.geometry`` and ``gradvac.integrations``. Everything else may change.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from gradvac.errors import (
    CorpusError,
    GradientError,
    GradvacError,
    NotFiniteError,
    RankError,
    RecipeError,
    RunError,
)

if TYPE_CHECKING:
    from gradvac.engine import (
        Engine,
        Grouping,
        Heads,
        NonFinite,
        ParameterGroup,
        StepReport,
        parameter_groups,
    )
    from gradvac.geometry.diagnose import Diagnosis, diagnose
    from gradvac.geometry.preflight import Preflight, preflight
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
    "Preflight",
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
    "preflight",
    "register",
]

# Imported at their first use: PyTorch takes seconds, which `gradvac --help` does not need.
_ROOMS = ("engine", "methods", "geometry")
_HOMES = ("methods", "engine", "geometry.diagnose", "geometry.preflight")


def __getattr__(name: str) -> Any:
    """A public name that needs PyTorch, or the room of that name."""
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        homes = (import_module(f"{__name__}.{home}") for home in _HOMES)
        return globals().setdefault(name, next(getattr(h, name) for h in homes if hasattr(h, name)))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
