"""Loggers beside metrics.jsonl: real ones offline, and stand-ins for those not installed here."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.training.loggers import LOGGERS, check_loggers
from tests.build import trainer


class Row(dict[str, float]):
    """What a stand-in was given at a step."""


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def tensorboard(monkeypatch) -> dict[int, Row]:
    """A stand-in for the writer of event files."""
    rows: dict[int, Row] = {}

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            self.folder = log_dir

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            rows.setdefault(global_step, Row())[tag] = scalar_value

        def close(self) -> None:
            rows[-1] = Row({Path(self.folder).name: 0})

    module(monkeypatch, "tensorboard")
    module(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    return rows


@pytest.fixture
def trackio(monkeypatch) -> list[tuple[str, Any]]:
    """A stand-in with the signatures of Trackio 0.30."""
    calls: list[tuple[str, Any]] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int | None = None) -> None:
            calls.append(("log", (step, metrics)))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(project, name=None, *, config=None, resume="never", embed=True) -> Run:
        calls.append(("init", (project, name, resume, embed, config["seed"])))
        return Run()

    module(monkeypatch, "trackio", init=init)
    return calls


def lines(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in found if line["kind"] == kind}


def test_every_number_of_the_log_arrives_by_name(toy, tmp_path, tensorboard):
    run = tmp_path / "run"
    trainer(toy, run, ["training.loggers=[tensorboard]", "method.name=gradvac"]).train()
    for step, line in lines(run, "train").items():
        seen = tensorboard[step]
        assert seen["train/nll"] == line["nll"] and seen["train/tokens_per_s"] > 0
        assert seen["train/task_nll/ne-en"] == line["task_nll"]["ne-en"]
        assert seen["train/task_weights/fr-en"] == line["task_weights"]["fr-en"]
    for step, line in lines(run, "valid").items():
        assert tensorboard[step]["valid/nll/low"] == line["nll/low"]
    assert tensorboard[-1] == {"tensorboard": 0}  # closed


def test_a_resumed_run_goes_on_in_the_same_place(toy, tmp_path, trackio):
    run, few = tmp_path / "run", ["training.loggers=[trackio]"]
    first = trainer(toy, run, few)
    train_step = first.train_step
    first.train_step = lambda: (train_step(), setattr(first.stop, "number", 2))[0]
    assert first.train() == 130
    assert trainer(toy, run, few).train() == 0
    assert trainer(toy, run, few).train() == 0  # finished before: nothing is opened
    opened = [said for what, said in trackio if what == "init"]
    assert opened[0] == opened[1] and len(opened) == 2
    project, name, *rest = opened[0]
    assert project == "toy" and name.startswith("toy-joint-seed-3-")
    assert rest == ["allow", False, 3]
    assert [what for what, _ in trackio].count("finish") == 2
    assert json.loads((run / "loggers.json").read_text()) == {"trackio": name}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own database
def test_mlflow_keeps_the_numbers_and_the_recipe(toy, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = tmp_path / "run"
    trainer(toy, run, ["training.loggers=[mlflow]"]).train()
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["method.name"] == "joint"
    history = client.get_metric_history(found.info.run_id, "train/task_nll/fr-en")
    expected = {step: line["task_nll"]["fr-en"] for step, line in lines(run, "train").items()}
    assert {point.step: point.value for point in history} == expected


def test_wandb_works_offline(toy, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    kept = []
    log = wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda self, row: (kept.append((self.id, row)), log(self, row))
    )
    run = tmp_path / "run"
    trainer(toy, run, ["training.loggers=[wandb]"]).train()
    train = {row["step"]: row for _, row in kept if "train/nll" in row}
    assert {step: row["train/nll"] for step, row in train.items()} == {
        step: line["nll"] for step, line in lines(run, "train").items()
    }
    (identity,) = {own for own, _ in kept}
    assert json.loads((run / "loggers.json").read_text()) == {"wandb": identity}
    assert list((run / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))


def test_one_that_fails_is_dropped_and_training_goes_on(toy, tmp_path, trackio, capsys):
    class Run:
        def log(self, metrics, step=None):
            raise ConnectionError("the server is away")

        def finish(self):
            raise AssertionError("it was dropped")

    sys.modules["trackio"].init = lambda **options: Run()
    run = tmp_path / "run"
    made = trainer(toy, run, ["training.loggers=[trackio]"])
    said: list[str] = []
    made.loggers.say = said.append
    assert made.train() == 0
    (warning,) = said
    assert "trackio gets nothing from here on: ConnectionError: the server is away" in warning


def test_a_missing_extra_is_an_error_before_any_text_is_read(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    (toy / "train.tsv").unlink()
    run = tmp_path / "run"
    with pytest.raises(RecipeError, match=r"needs the extra: pip install 'gradvac\[tensorboard\]'"):
        trainer(toy, run, ["training.loggers=[tensorboard]"])
    assert not run.exists()


def test_an_unknown_one_is_an_error_that_lists_all():
    with pytest.raises(RecipeError, match="found 'wandv', must be among: tensorboard, wandb, "):
        check_loggers(["wandv"])
    assert {kind.extra for kind in LOGGERS.values()} == set(LOGGERS)


@pytest.mark.parametrize(("old", "new"), [(True, ["tensorboard"]), (False, [])])
def test_the_key_of_earlier_versions_is_read(toy, old, new):
    tree = yaml.safe_load((toy / "recipe.yaml").read_text())
    tree["training"]["tensorboard"] = old
    (toy / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert load_recipe(toy / "recipe.yaml").training.loggers == new
