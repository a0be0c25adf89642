"""Methods by the name a recipe gives them."""

from collections.abc import Callable
from typing import TypeVar

from gradvac.errors import GradientError
from gradvac.methods.base import Method
from gradvac.methods.cats import CATS
from gradvac.methods.famo import FAMO
from gradvac.methods.gradnorm import GradNorm
from gradvac.methods.gradvac import GradVac
from gradvac.methods.mgda import MGDA
from gradvac.methods.pcgrad import PCGrad
from gradvac.methods.static import Joint, StaticWeights
from gradvac.methods.torchjd import TorchJD

METHODS: dict[str, type[Method]] = {
    "joint": Joint,
    "gradvac": GradVac,
    "pcgrad": PCGrad,
    "static": StaticWeights,
    "mgda": MGDA,
    "gradnorm": GradNorm,
    "cats": CATS,
    "famo": FAMO,
    "torchjd": TorchJD,
}
"""Name -> class; ``register`` adds to it."""

_M = TypeVar("_M", bound=type[Method])


def register(name: str) -> Callable[[_M], _M]:
    """Return a class decorator that makes a method known to recipes as ``name``.

    The annotated arguments of its constructor become keys of ``method.options``; one called
    ``seed`` is given the recipe's.

    Raises:
        GradientError: if another class has the name; a notebook cell may be run again.
    """

    def add(kind: _M) -> _M:
        known = METHODS.get(name, kind)
        if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise GradientError(f"a method named {name!r} exists: {known.__name__}")
        METHODS[name] = kind
        return kind

    return add
