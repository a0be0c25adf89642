"""``method.options``: the arguments of a method's constructor, checked before anything runs."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model

from gradvac.errors import GradientError
from gradvac.methods import GradVac, Method, find_method

OLD_KEYS: dict[str, Any] = {
    key: inspect.signature(GradVac).parameters[key].default
    for key in ("tasks", "beta", "target", "max_target", "rescale")
} | {"weights": {}}
"""Options also allowed directly in the method section, as in old recipes, and their defaults."""

READERS: dict[str, tuple[str, ...]] = {
    "joint": (),
    "gradvac": ("tasks", "beta", "target", "max_target", "rescale"),
    "pcgrad": ("tasks",),
    "static": ("weights",),
}
"""The methods that `OLD_KEYS` are for, and the keys that each reads."""

_TYPES: dict[str, Any] = {  # in recipes: a resource level may be named, weights of 1 left out
    "tasks": Literal["all", "high", "medium", "low"] | Annotated[list[str], Field(min_length=1)],
    "weights": dict[str, float],
}
_LEVELS = ("high", "medium", "low")


class OptionError(ValueError):
    """An error in one option of a method; ``option`` is its name."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(text)
        self.option = option


def import_methods(module: str) -> None:
    """Import a module that registers methods; ValueError if it fails."""
    try:
        importlib.import_module(module)
    except Exception as e:  # the module of a user may raise anything
        absent = isinstance(e, ModuleNotFoundError) and module.startswith(e.name or "?")
        raise ValueError(
            f"found {module!r}, which cannot be imported: {type(e).__name__}: {e}"
            + ("; install its package, or name its folder in PYTHONPATH" if absent else "")
        ) from e


def check_name(name: str) -> str:
    """Return the name of a known or installed method; ValueError with a similar one otherwise."""
    try:
        find_method(name)
    except GradientError as e:
        raise ValueError(str(e)) from e
    return name


def with_old_keys(section: dict[str, Any]) -> dict[str, Any]:
    """A method section with its `OLD_KEYS` moved to the options, and defaults for those missing.

    An old key that the method does not read also becomes an option, and is then rejected, unless
    it has its default: complete recipes of earlier versions contain all old keys.

    Raises:
        OptionError: if an option is given twice.
    """
    read = _read_by(section)
    options = section.get("options", {})
    rest = {key: value for key, value in section.items() if key not in OLD_KEYS}
    if not isinstance(options, dict):
        return rest
    old = {
        key: value
        for key, value in section.items()
        if key in OLD_KEYS and (key in read or value != OLD_KEYS[key])
    }
    for key in old:
        if key in options:
            raise OptionError(key, f"given twice; keep method.options.{key}")
    return rest | {"options": {key: OLD_KEYS[key] for key in read} | options | old}


def of_a_run(section: dict[str, Any]) -> dict[str, Any]:
    """The method section of the recipe of a run, without old keys that its method did not read.

    Old keys with their default are left out too, so that ``--set`` may choose another method.
    """
    read = _read_by(section)
    kept = {k: v for k, v in section.items() if k not in OLD_KEYS or k in read}
    if isinstance(options := kept.get("options"), dict):
        plain = {k: v for k, v in options.items() if k not in read or v != OLD_KEYS[k]}
        kept["options"] = plain
    return kept


def drop_other_spelling(tree: dict[str, Any], key: str) -> None:
    """Delete ``method.beta`` from a recipe before ``method.options.beta`` is set, or vice versa."""
    section: Any = tree.get("method")
    options: Any = section.get("options") if isinstance(section, dict) else None
    match key.split("."):
        case ["method", option] if option in OLD_KEYS and isinstance(options, dict):
            options.pop(option, None)
        case ["method", "options", option] if option in OLD_KEYS and isinstance(section, dict):
            section.pop(option, None)
        case _:
            pass


def _read_by(section: dict[str, Any]) -> tuple[str, ...]:
    name = section.get("name", "joint")
    return READERS.get(name, ()) if isinstance(name, str) else ()


def make_method(
    name: str,
    options: dict[str, Any],
    levels: dict[str, str] | None = None,
    **given: Any,
) -> Method:
    """Make a known method from options.

    Args:
        name: name of the method.
        options: as in a recipe.
        levels: the tasks and their resource levels; None before they are known.
        given: arguments that do not come from the recipe; passed if the constructor has them.

    Raises:
        OptionError: if an option is unknown or out of range, or names an unknown task or level.
        ValueError: if the options contradict each other.
    """
    kind = find_method(name)
    parameters = dict(inspect.signature(kind, eval_str=True).parameters)
    ours = {key: value for key, value in given.items() if parameters.pop(key, None)}
    for key, value in options.items():
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, 1)
            known = ", ".join(parameters) or "none"
            hint = f"did you mean {near[0]!r}?" if near else f"allowed here: {known}"
            raise OptionError(key, f"found {value!r}, unknown option of {name}; {hint}")
    types = _TYPES if name in READERS else {}
    fields: Any = {
        key: (
            types.get(key, Any if p.annotation is p.empty else p.annotation),
            ... if p.default is p.empty else p.default,
        )
        for key, p in parameters.items()
    }
    strict = ConfigDict(strict=True, arbitrary_types_allowed=True)
    try:
        create_model(name, __config__=strict, **fields).model_validate(options)
        return kind(**(_of_tasks(options, levels) if types else options), **ours)
    except ValidationError as e:
        raise _in_words(e) from e
    except GradientError as e:
        key, _, rest = str(e).partition(" is ")
        raise OptionError(key, f"found {rest}") if key in parameters else ValueError(str(e)) from e


def _of_tasks(options: dict[str, Any], levels: dict[str, str] | None) -> dict[str, Any]:
    """Options of a built-in method for these tasks: levels become task names, all weights set."""
    made = dict(options)
    wanted, weights = made.get("tasks", "all"), made.get("weights", {})
    if levels is None:
        return made | ({"tasks": "all"} if wanted in _LEVELS else {})
    named = {"tasks": [] if isinstance(wanted, str) else wanted, "weights": weights}
    for key, names in named.items():
        if unknown := sorted(set(names) - set(levels)):
            raise OptionError(key, f"{unknown} are no tasks; tasks: {', '.join(levels)}")
    if wanted in _LEVELS:
        made["tasks"] = [task for task, level in levels.items() if level == wanted]
        if not made["tasks"]:
            there = ", ".join(f"{task} {level}" for task, level in levels.items())
            raise OptionError("tasks", f"no task is {wanted!r}; levels: {there}")
    if "weights" in made:
        made["weights"] = {task: weights.get(task, 1.0) for task in levels}
    return made


def _in_words(problem: ValidationError) -> OptionError:
    texts: dict[str, list[str]] = {}
    for error in problem.errors():
        allowed = error["msg"].replace("Input should be", "must be")
        missing = error["type"] == "missing"
        text = "required, and not there" if missing else f"found {error['input']!r}, {allowed}"
        texts.setdefault(str(error["loc"][0]), []).append(text)
    (first, own), *others = texts.items()
    more = [f"{key}: {text}" for key, found in others for text in found]
    return OptionError(first, "; ".join(dict.fromkeys([*own, *more])))
