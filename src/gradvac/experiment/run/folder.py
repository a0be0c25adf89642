"""The parts of run folders of every kind: recipe, tasks, parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gradvac.errors import RunError
from gradvac.experiment.recipe.kinds import recipe_type
from gradvac.experiment.recipe.load import R, of_kind, parse_recipe
from gradvac.experiment.recipe.paths import RECIPE, TASKS
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.recipe.yaml_text import parse_yaml
from gradvac.experiment.run.checkpoint import list_checkpoints, saved_models
from gradvac.experiment.run.tensor_file import save_tensors
from gradvac.reading import read_json, read_text
from gradvac.writing import replacing


@dataclass(frozen=True)
class TaskInfo:
    """The data of a task: training pairs, resource level, language family."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    pairs: Annotated[int, Field(ge=0)]
    level: Literal["high", "medium", "low", ""]
    family: str


def any_recipe(folder: Path) -> BaseRecipe:
    """The recipe of a run of any kind; reading it runs no code."""
    file = folder / RECIPE
    if not file.exists():
        raise RunError(f"{folder}: not a run folder: no readable recipe.yaml")
    try:
        tree = parse_yaml(read_text(file))
    except ValueError as e:
        raise RunError(f"{file}{e}") from e
    if not isinstance(tree, dict):
        raise RunError(f"{file}: not the recipe of a run: found {type(tree).__name__}")
    tree = recipe_type(tree.get("job")).of_run(tree)
    return parse_recipe(tree, str(file), run_code=False)


def run_recipe(folder: Path, kind: type[R]) -> R:
    """The recipe of a run of this kind, like `any_recipe`; RecipeError for another kind."""
    return of_kind(any_recipe(folder), kind, str(folder / RECIPE))


def task_infos(folder: Path) -> dict[str, TaskInfo]:
    """The tasks of a run, in its order; RunError if there are none or the file is invalid."""
    file = folder / TASKS
    if not (found := read_json(file, dict[str, TaskInfo])):
        raise RunError(f"{file}: names no task")
    return found


def parameters_of_run(folder: Path, checkpoint: str) -> Path:
    """The parameter file of a run; ``checkpoint`` as in `find_model`. Raises RunError."""
    saved = list_checkpoints(folder / "checkpoints")
    best = folder / "best" / "model.safetensors"
    if checkpoint == "best" and best.exists():
        return best
    if checkpoint in ("best", "last") and saved:
        return saved[-1] / "model.safetensors"
    models = saved_models(folder)
    named = {str(step): file for step, file in models.items()}
    if (number := checkpoint.lstrip("0")) in named:
        return named[number]
    names = ", ".join(f"step-{step:08d}" for step in models) or "none yet"
    raise RunError(f"{folder}: no checkpoint {checkpoint!r}; there: {names}")


def save_parameters(file: Path, tensors: dict[str, Tensor], *, half: bool = False) -> None:
    """Write parameters atomically; ``half`` stores them in 16 bits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = torch.float16 if half else torch.float32
    with replacing(file) as new:
        save_tensors({k: v.detach().to("cpu", kind).contiguous() for k, v in tensors.items()}, new)


def fill(model: torch.nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """Load parameters by name; RunError lists missing, unknown and wrongly shaped ones."""
    check_fits(model, tensors, origin)
    model.load_state_dict(tensors)  # converts half precision to the model's precision


def check_fits(model: torch.nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """RunError lists parameters that are missing, unknown or have a wrong shape."""
    own = model.state_dict()
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & tensors.keys()
        if own[k].shape != tensors[k].shape
    ]
    if missing or foreign or shapes:
        raise RunError(
            f"{origin}: parameters of another model; missing: {missing[:3]}, "
            f"not of this model: {foreign[:3]}, shapes: {shapes[:3]}"
        )
