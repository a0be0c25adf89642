"""Methods: the Gram matrix of a step's task gradients in, weights of the tasks out."""

from gradvac.methods.base import Method, StepGeometry
from gradvac.methods.gradvac import GradVac
from gradvac.methods.orders import visiting_order
from gradvac.methods.pcgrad import PCGrad
from gradvac.methods.static import Joint, StaticWeights

__all__ = [
    "GradVac",
    "Joint",
    "Method",
    "PCGrad",
    "StaticWeights",
    "StepGeometry",
    "visiting_order",
]
