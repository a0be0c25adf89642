"""Methods by the name a recipe gives them: ours, registered ones, and those of installed packages.

A package offers a method under the entry-point group ``gradvac.methods``::

    [project.entry-points."gradvac.methods"]
    equal_norms = "my_package.my_method:EqualNorms"

Only the entry point that is asked for is loaded: installing a package never runs its code here.
"""

from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
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

ENTRY_POINTS = "gradvac.methods"

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
"""Name -> class; ``register`` and ``find_method`` add to it."""

_M = TypeVar("_M", bound=type[Method])


def register(name: str) -> Callable[[_M], _M]:
    """Return a class decorator that registers a method for recipes as ``name``.

    The annotated arguments of its constructor become keys of ``method.options``; one called
    ``seed`` gets the recipe's seed.

    Raises:
        GradientError: if another class has the name (running a notebook cell again is allowed).

    Example:
        >>> from gradvac import Joint, register
        >>> from gradvac.methods import METHODS, find_method
        >>> @register("my-sum")
        ... class MySum(Joint):
        ...     pass
        >>> find_method("my-sum") is MySum
        True
        >>> del METHODS["my-sum"]
    """

    def add(kind: _M) -> _M:
        known = METHODS.get(name, kind)
        if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise GradientError(f"a method named {name!r} exists: {known.__name__}")
        METHODS[name] = kind
        return kind

    return add


def find_method(name: str) -> type[Method]:
    """Return the class of a method: ours or registered, else from an entry point of that name.

    Raises:
        GradientError: if no method has the name, or the entry point is broken, is no method or
            exists twice; it names the entry point and the package it came with.

    Example:
        >>> from gradvac.methods import find_method
        >>> find_method("pcgrad").__name__
        'PCGrad'
    """
    if name in METHODS:
        return METHODS[name]
    offered = entry_points(group=ENTRY_POINTS)
    points = sorted(offered, key=lambda point: point.value)
    found = {point.value: point for point in points if point.name == name}
    if not found:
        names = [*METHODS, *sorted({point.name for point in offered})]
        near = get_close_matches(name, names, 1)
        raise GradientError(
            f"found {name!r}, must be {', '.join(repr(known) for known in names)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if len(found) > 1:
        raise GradientError(
            f"{name!r} is an entry point of several packages: "
            + ", ".join(_in_words(point) for point in found.values())
        )
    (point,) = found.values()
    try:
        kind = point.load()
    except Exception as e:  # whatever importing somebody's package may raise
        raise GradientError(
            f"the method {_in_words(point)} cannot be loaded: {type(e).__name__}: {e}"
        ) from e
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise GradientError(f"{_in_words(point)} is {kind!r}, no subclass of gradvac.Method")
    return register(name)(kind)


def _in_words(point: EntryPoint) -> str:
    package = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
    return f"entry point '{point.name} = {point.value}'{package}"
