"""Methods: the Gram matrix of a step's task gradients in, weights of the tasks out."""

from gradvac.methods.base import Method, StepGeometry
from gradvac.methods.cats import CATS
from gradvac.methods.famo import FAMO
from gradvac.methods.gradnorm import GradNorm
from gradvac.methods.gradvac import GradVac
from gradvac.methods.mgda import MGDA
from gradvac.methods.orders import visiting_order
from gradvac.methods.pcgrad import PCGrad
from gradvac.methods.registry import METHODS, find_method, register
from gradvac.methods.static import Joint, StaticWeights
from gradvac.methods.torchjd import TorchJD

__all__ = [
    "CATS",
    "FAMO",
    "METHODS",
    "MGDA",
    "GradNorm",
    "GradVac",
    "Joint",
    "Method",
    "PCGrad",
    "StaticWeights",
    "StepGeometry",
    "TorchJD",
    "find_method",
    "register",
    "visiting_order",
]
