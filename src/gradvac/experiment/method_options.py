"""``method.options``: the arguments of a method's constructor, checked before anything runs."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from gradvac.errors import GradientError
from gradvac.methods import METHODS, Method

OWN_KEYS = ("joint", "gradvac", "pcgrad", "static")
"""Methods that a recipe configures by keys of the method section, not by options."""


def check_name(name: str) -> str:
    """Return the name of a registered method; ValueError with the nearest one otherwise."""
    if name in METHODS:
        return name
    near = difflib.get_close_matches(name, METHODS, 1)
    raise ValueError(
        f"found {name!r}, must be {', '.join(repr(m) for m in METHODS)}"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def make_method(name: str, options: dict[str, Any], seed: int = 0) -> Method:
    """Make a registered method from options; the seed goes to those that take one.

    Raises:
        ValueError: in the words of a recipe, if an option is unknown or out of range.
    """
    kind = METHODS[name]
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
