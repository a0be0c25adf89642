"""``method.options``: the arguments of a method's constructor, checked before anything runs."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from gradvac.errors import GradientError
from gradvac.methods import Method, find_method

OWN_KEYS = ("joint", "gradvac", "pcgrad", "static")
"""Methods that a recipe configures by keys of the method section, not by options."""


def import_methods(module: str) -> None:
    """Import a module that registers methods; ValueError in the words of a recipe if it fails."""
    try:
        importlib.import_module(module)
    except Exception as e:  # whatever somebody's module may raise
        absent = isinstance(e, ModuleNotFoundError) and module.startswith(e.name or "?")
        raise ValueError(
            f"found {module!r}, which cannot be imported: {type(e).__name__}: {e}"
            + ("; install its package, or name its folder in PYTHONPATH" if absent else "")
        ) from e


def check_name(name: str) -> str:
    """Return the name of a known or installed method; ValueError with the nearest otherwise."""
    try:
        find_method(name)
    except GradientError as e:
        raise ValueError(str(e)) from e
    return name


def make_method(name: str, options: dict[str, Any], seed: int = 0) -> Method:
    """Make a known method from options; the seed goes to those that take one.

    Raises:
        ValueError: in the words of a recipe, if an option is unknown or out of range.
    """
    kind = find_method(name)
    parameters = dict(inspect.signature(kind, eval_str=True).parameters)
    seeded = parameters.pop("seed", None) is not None
    for key in options:
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, 1)
            known = ", ".join(parameters) or "none"
            raise ValueError(
                f"{key}: unknown option of {name}; "
                + (f"did you mean {near[0]!r}?" if near else f"allowed here: {known}")
            )
    fields: Any = {
        key: (
            Any if p.annotation is p.empty else p.annotation,
            ... if p.default is p.empty else p.default,
        )
        for key, p in parameters.items()
    }
    strict = ConfigDict(strict=True, arbitrary_types_allowed=True)
    try:
        create_model(name, __config__=strict, **fields).model_validate(options)
        return kind(**options, **({"seed": seed} if seeded else {}))
    except ValidationError as e:
        raise ValueError("; ".join(dict.fromkeys(_words(error) for error in e.errors()))) from e
    except GradientError as e:
        raise ValueError(str(e)) from e


def _words(error: Any) -> str:
    key = error["loc"][0]
    if error["type"] == "missing":
        return f"options.{key}: required, and not there"
    return f"{key}: found {error['input']!r}, {error['msg'].replace('Input should be', 'must be')}"
