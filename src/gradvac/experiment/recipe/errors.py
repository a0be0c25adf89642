"""Messages of validation errors: the dotted key, the value found, what to write instead."""

from __future__ import annotations

import difflib
from typing import Any, cast, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from gradvac.experiment.recipe.method_options import OLD_KEYS, OptionError


def _keys(section: type[BaseModel], at: str = "") -> dict[str, list[str]]:
    """The keys of each dotted section; '' is the top level."""
    keys = {at: list(section.model_fields)}
    for name, field in section.model_fields.items():
        for kind in _inner(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= _keys(kind, f"{at}.{name}".strip("."))
    return keys


def _inner(annotation: Any) -> list[Any]:
    """An annotation and all that are inside it."""
    return [annotation, *(one for arg in get_args(annotation) for one in _inner(arg))]


def _known_keys(recipe: type[BaseModel]) -> dict[str, list[str]]:
    keys = _keys(recipe)
    return keys | {"method": [*keys["method"], *OLD_KEYS]}


def explain(error: ErrorDetails, tree: dict[str, Any], recipe: type[BaseModel]) -> str:
    """The message of one validation error."""
    parts = [str(p) for p in error["loc"]]
    steps: list[str] = []
    at: Any = tree
    # pydantic adds the tried branch of a union to the path; a recipe has no such key
    for part in error["loc"]:
        if isinstance(at, dict):
            known = part in at
        else:  # a list may be shorter than it should be
            known = isinstance(at, list) and type(part) is int and part < len(at)
        if known:
            at = cast(Any, at)[part]
            steps.append(str(part))
    context = error.get("ctx", {})
    key = ".".join(steps) or ".".join(parts)
    if error["type"] == "missing":
        return f"{'.'.join(parts)}: required, and not there"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: unknown key{_hint(steps or parts, _known_keys(recipe))}"
    if isinstance(problem := context.get("error"), OptionError):
        old = problem.option in tree["method"]
        return f"method.{'' if old else 'options.'}{problem.option}: {problem}"
    if error["type"] == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])  # it names the key
    allowed = error["msg"].replace("Input should be", "must be")
    allowed = allowed.replace("String should match pattern", "must match")
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        options = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(error["input"], options, 1)
        allowed += f"; did you mean {near[0]!r}?" if near else ""
    found = repr(error["input"])
    return f"{key}: found {found if len(found) < 300 else found[:300] + '...'}, {allowed}"


def _hint(parts: list[str], keys: dict[str, list[str]]) -> str:
    """The most similar known key of an unknown one, or the section that has it."""
    above, name = [p for p in parts[:-1] if not p.isdigit()], parts[-1]
    while above and ".".join(above) not in keys:  # a name inside the section, as of a test set
        above.pop()
    section = ".".join(above)
    near = difflib.get_close_matches(name, keys.get(section, []), 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    homes = [s for s, names in keys.items() if name in names and s != section]
    if homes:
        return f"; it belongs to {'the top level' if homes[0] == '' else f'section {homes[0]!r}'}"
    return f"; allowed here: {', '.join(keys.get(section, keys['']))}"
