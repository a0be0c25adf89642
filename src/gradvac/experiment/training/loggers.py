"""Loggers beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow, Trackio.

`training.loggers` names them; each is an extra. A logger gets the numbers of every line of the log.
Another one is a class with the methods of `RunLogger`, put into `LOGGERS` by the module that
``method.module`` names.
"""

from __future__ import annotations

import importlib
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.run.files import LOGGED
from gradvac.reading import read_json
from gradvac.writing import write_json

Say = Callable[[str], None]


class RunLogger(Protocol):
    """Gets the numbers of one run while it trains.

    ``package`` is the module that the logger needs, ``extra`` the extra of gradvac that brings it.
    The constructor gets the run's folder, its recipe, and ``kept``: the id that an earlier process
    of the same run was given, or "". ``id`` is the one to keep.
    """

    package: ClassVar[str]
    extra: ClassVar[str]
    id: str

    def __init__(self, folder: Path, recipe: BaseRecipe, kept: str) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Get numbers of a step by name, such as ``train/task_nll/fr-en``."""
        ...

    def close(self) -> None:
        """Write what is left; the run ends, or is stopped."""
        ...


class TensorBoardLogger:
    """Event files in ``tensorboard`` of the run's folder."""

    package: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "tensorboard"

    def __init__(self, folder: Path, recipe: BaseRecipe, kept: str) -> None:
        self.id = ""
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer: Any = writer(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases, in the project named as the recipe; files in the run's folder.

    WANDB_PROJECT, WANDB_MODE=offline and the other variables of wandb work.
    """

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"

    def __init__(self, folder: Path, recipe: BaseRecipe, kept: str) -> None:
        self.id = kept or secrets.token_hex(4)
        wandb = importlib.import_module("wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or recipe.name,
            name=_name(recipe),
            id=self.id,
            dir=str(folder),
            config=recipe.model_dump(mode="json"),
            resume="allow",
        )
        # Its own step may not go back, and that of a resumed run does.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MlflowLogger:
    """A run of MLflow, in the experiment named as the recipe.

    MLFLOW_TRACKING_URI names the server or database, MLFLOW_EXPERIMENT_NAME another experiment.
    """

    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"
    most, most_params = 1000, 100  # metrics and parameters that MLflow takes in one request

    def __init__(self, folder: Path, recipe: BaseRecipe, kept: str) -> None:
        mlflow = importlib.import_module("mlflow")
        entities = importlib.import_module("mlflow.entities")
        self._metric: Any = entities.Metric
        self._client: Any = mlflow.MlflowClient()
        if not kept:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or recipe.name
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            kept = self._client.create_run(experiment, run_name=_name(recipe)).info.run_id
            tree = flat(recipe.model_dump(mode="json"), ".")
            params = [entities.Param(key, str(value)) for key, value in tree]
            for start in range(0, len(params), self.most_params):
                self._client.log_batch(kept, params=params[start : start + self.most_params])
        self.id = kept
        self._client.set_terminated(kept, "RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send one batch of metrics."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), self.most):
            self._client.log_batch(self.id, metrics[start : start + self.most])

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.id)


class TrackioLogger:
    """A run of Trackio, in the project named as the recipe; TRACKIO_SPACE_ID names a Space."""

    package: ClassVar[str] = "trackio"
    extra: ClassVar[str] = "trackio"

    def __init__(self, folder: Path, recipe: BaseRecipe, kept: str) -> None:
        self.id = kept or f"{_name(recipe)}-{secrets.token_hex(4)}"
        trackio = importlib.import_module("trackio")
        config = recipe.model_dump(mode="json")
        self._run: Any = trackio.init(
            project=recipe.name, name=self.id, config=config, resume="allow", embed=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


LOGGERS: dict[str, type[RunLogger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
    "trackio": TrackioLogger,
}


def check_loggers(names: Sequence[str]) -> None:
    """RecipeError for a logger that is unknown, or whose package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise RecipeError(
                f"training.loggers: found {name!r}, must be among: {', '.join(LOGGERS)}"
            )
        kind = LOGGERS[name]
        if find_spec(kind.package) is None:
            raise RecipeError(
                f"training.loggers: {name} needs the extra: pip install 'gradvac[{kind.extra}]'"
            )


class Loggers:
    """The loggers of a run, none before `start`. ``say`` prints warnings.

    One that fails gets nothing more, with a warning, and training goes on.
    """

    def __init__(self, say: Say) -> None:
        self.say = say
        self.open: dict[str, RunLogger] = {}

    def start(self, folder: Path, recipe: BaseRecipe) -> None:
        """Open the loggers of the recipe; RecipeError if one does not start.

        Their ids are kept in ``loggers.json``: a run that is resumed goes on in the same place.
        """
        check_loggers(recipe.training.loggers)
        file = folder / LOGGED
        ids = read_json(file, dict[str, str]) if file.exists() else {}
        for name in recipe.training.loggers:
            try:
                self.open[name] = LOGGERS[name](folder, recipe, ids.get(name, ""))
            except Exception as e:  # a server may be away, an account missing
                text = f"training.loggers: {name} did not start: {type(e).__name__}: {e}"
                raise RecipeError(text) from e
        found = {name: logger.id for name, logger in self.open.items() if logger.id}
        if found.items() - ids.items():
            write_json(file, ids | found)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Pass on the finite numbers of a line of the log, named ``kind/key/task``."""
        if not self.open:
            return
        numbers = {
            f"{kind}/{key}": float(value)
            for key, value in flat(values)
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        }
        self._each(lambda logger: logger.log(step, numbers))

    def close(self) -> None:
        """Close all."""
        self._each(lambda logger: logger.close())
        self.open = {}

    def _each(self, act: Callable[[RunLogger], None]) -> None:
        for name, logger in list(self.open.items()):
            try:
                act(logger)
            except Exception as e:  # of other people's code and servers
                del self.open[name]
                self.say(
                    f"warning: training.loggers: {name} gets nothing from here on: "
                    f"{type(e).__name__}: {e}; training goes on, and metrics.jsonl has everything"
                )


def flat(values: Mapping[str, Any], between: str = "/") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings, their keys joined.

    >>> dict(flat({"nll": 2.0, "task_nll": {"fr-en": 1.5}}))
    {'nll': 2.0, 'task_nll/fr-en': 1.5}
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}{between}{below}", v) for below, v in flat(value, between))
        else:
            yield key, value


def _name(recipe: BaseRecipe) -> str:
    """A name for people: that of the recipe, its size and variant, the method, the seed."""
    parts = [recipe.name, recipe.size, recipe.variant or recipe.method.name, f"seed-{recipe.seed}"]
    return "-".join(part for part in parts if part).replace("/", "-")
