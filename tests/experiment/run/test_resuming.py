"""What may change when a run is resumed, what more steps do, and who may prepare a folder."""

import io
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file

from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.recipe.schedule import learning_rate
from gradvac.experiment.run.folder import run_recipe
from gradvac.experiment.run.lock import alone
from gradvac.experiment.sweep.sweep import Job
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.kind import job_of
from gradvac.experiment.training.prepare import prepare
from gradvac.experiment.training.train import Trainer
from gradvac.experiment.translation.evaluate import evaluate_run
from gradvac.experiment.translation.recipe import Recipe
from tests.build import make_toy, toy_recipe


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


def run(toy: Path, folder: Path, sets: list[str] | None = None) -> tuple[int, str]:
    """Train as `gradvac train` does; its exit code and what it said."""
    console = Console(record=True, file=io.StringIO(), width=1000)
    said: list[str] = []
    prepare(load_recipe(toy / "recipe.yaml", sets), folder, said.append)
    code = Trainer(job_of(folder), Display(console)).train()
    return code, "\n".join(said) + console.export_text()


def lines(folder: Path, kind: str) -> list[dict]:
    found = [json.loads(t) for t in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_keys_that_cannot_change_what_was_trained_may_change(toy, tmp_path):
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    run(toy, whole, ["training.steps=8"])
    shutil.copytree(whole, changed)
    evaluate_run(changed, say=lambda text: None)
    free = ["search.beam=3", "training.keep=1", "training.log_every=1", "method.record_every=5"]
    code, said = run(toy, changed, ["training.steps=8", *free])
    assert code == 0 and "search.beam: 2 becomes 3" in said and "scores.json: removed" in said
    assert not (changed / "scores.json").exists()
    recipe = run_recipe(changed, Recipe)
    assert (recipe.search.beam, recipe.training.keep) == (3, 1)
    assert (recipe.training.log_every, recipe.method.record_every) == (1, 5)
    assert (changed / "done.json").read_text() == (whole / "done.json").read_text()
    run(toy, changed, ["training.steps=8", *free])  # nothing is said twice
    assert "becomes" not in run(toy, changed, ["training.steps=8", *free])[1]
    with pytest.raises(RunError, match=r"these keys differ: training\.warmup\."):
        run(toy, changed, ["training.steps=8", "training.warmup=5"])


def test_more_steps_are_those_of_a_run_that_had_them_from_the_beginning(toy, tmp_path):
    """The inverse square root of the step does not know the end."""
    run(toy, tmp_path / "once", ["training.steps=12"])
    run(toy, tmp_path / "twice", ["training.steps=8"])
    code, said = run(toy, tmp_path / "twice", ["training.steps=12"])
    assert code == 0 and "goes on from step" not in said
    assert "more steps go on from step 8; the learning rate goes on as it was" in said
    for file in ("metrics.jsonl", "done.json", "best/model.safetensors"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()
    assert not (tmp_path / "twice" / "ended.json").exists()
    with pytest.raises(RunError, match=r"training\.steps: found 8, and the run has 12: more steps"):
        run(toy, tmp_path / "twice", ["training.steps=8"])


def test_a_schedule_that_knows_the_end_is_told(toy, tmp_path):
    linear = ["training.schedule=linear", "training.log_every=1"]
    run(toy, tmp_path / "run", [*linear, "training.steps=8"])
    _, said = run(toy, tmp_path / "run", [*linear, "training.steps=12"])
    before, after = 0.01 * 0 / 5, 0.01 * (12 - 9 + 1) / (12 - 4 + 1)  # a ramp to 0 after the end
    assert f"step 9 is {after:.3g}, where 8 steps made it {before:.3g}" in said
    rates = [line["learning_rate"] for line in lines(tmp_path / "run", "train")]
    own = run_recipe(tmp_path / "run", Recipe).training
    assert rates[8:] == [learning_rate(own, step) for step in range(9, 13)]
    assert rates[8] == pytest.approx(after)


def test_the_best_of_a_run_that_goes_on_may_be_its_average(toy, tmp_path):
    """Which no checkpoint knows of; it stays the best until a better one comes."""
    sets = ["training.average=2", "training.learning_rate=1.0e-3"]
    run(toy, tmp_path / "run", [*sets, "training.steps=8"])
    file = tmp_path / "run" / "done.json"
    done = json.loads(file.read_text())
    done["best"] |= {"value": 0.5}  # as if the average had been so good
    file.write_text(json.dumps(done))
    kept = load_file(tmp_path / "run" / "best" / "model.safetensors")
    run(toy, tmp_path / "run", [*sets, "training.steps=12"])
    assert json.loads(file.read_text())["best"]["value"] == 0.5
    now = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert all((kept[name] == now[name]).all() for name in kept)


@pytest.mark.parametrize("name", ["done.json", "scores.json"])
def test_a_file_that_is_not_whole_is_no_sign_that_a_run_is_done(toy, tmp_path, name):
    """A full disk left `scores.json` empty in earlier versions."""
    folder = tmp_path / "run"
    sets = ["training.steps=4", "training.average=2"]
    run(toy, folder, sets)
    evaluate_run(folder, say=lambda text: None)
    job = Job("joint", run_recipe(folder, Recipe), folder)
    assert job.done
    before = (folder / "done.json").read_bytes()
    (folder / name).write_text("")
    assert not job.done
    code, said = run(toy, folder, sets)
    assert code == 0 and ("done.json: Invalid JSON" in said) == (name == "done.json")
    assert (folder / "done.json").read_bytes() == before
    evaluate_run(folder, say=lambda text: None)
    assert job.done


def test_a_run_says_why_it_stopped_early(toy, tmp_path):
    sets = ["training.learning_rate=1.0e-9", "training.patience=1", "training.steps=100"]
    code, said = run(toy, tmp_path / "run", sets)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    best = done["best"]
    words = f"nll was not below {best['value']:.4f}, that of step {best['step']}"
    assert code == 0 and "early: training.patience 1: " + words in said
    assert words in done["stopped_early"] and done["step"] < 100
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "nothing to do" in run(toy, tmp_path / "run", sets)[1]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert "early" not in run(toy, tmp_path / "whole", ["training.steps=4"])[1]


@pytest.mark.parametrize("change", ["training.patience=3", "training.metric=nll/low"])
def test_what_needs_validation_text_is_refused_without(toy, tmp_path, change):
    tree = toy_recipe()
    tree["data"] = {**tree["data"], "train": [{"path": str(toy / "train.tsv")}], "valid": []}
    tree["data"]["test"] = [{"path": str(toy / "test.tsv")}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match=f"{change.partition('=')[0]}: .*no validation text"):
        run(tmp_path, tmp_path / "run", [change])


def hold(folder: Path, ready, go) -> None:
    with alone(folder, "preparing this folder"):
        ready.set()
        go.wait(60)


def test_a_folder_that_another_process_prepares_is_refused_and_shared_text_waited_for(
    toy, tmp_path, monkeypatch
):
    recipe = load_recipe(toy / "recipe.yaml", ["training.steps=4"])
    context = multiprocessing.get_context("fork")
    for name, store in (("own", None), ("shared", tmp_path)):
        prepare(recipe, tmp_path / "model", lambda text: None, tmp_path)
        (text,) = tmp_path.glob("text-*")
        (text / "tasks.json").unlink()
        held = tmp_path / name if store is None else text
        held.mkdir(exist_ok=True)
        ready, go = context.Event(), context.Event()
        other = context.Process(target=hold, args=(held, ready, go))
        other.start()
        assert ready.wait(60)
        said: list[str] = []

        def say(line: str, go=go, said=said) -> None:
            said.append(line)
            go.set()

        if store is None:
            with pytest.raises(RunError, match="own: another process is preparing this folder"):
                prepare(recipe, tmp_path / name, say, store)
            go.set()
        else:
            prepare(recipe, tmp_path / name, say, store)
            assert said[0] == f"{text}: another process is preparing this folder; waiting for it"
            assert Trainer(job_of(tmp_path / name), Display(Console(quiet=True))).train() == 0
        other.join()
        shutil.rmtree(tmp_path / "model")


def prepare_quietly(toy: Path, folder: Path, store: Path | None, codes) -> None:
    try:
        prepare(load_recipe(toy / "recipe.yaml"), folder, lambda text: None, store)
        codes.put(0)
    except RunError as e:
        codes.put(str(e))
    except BaseException as e:
        codes.put(repr(e))


@pytest.mark.parametrize("shares", [True, False])
def test_processes_that_prepare_at_once_break_nothing(toy, tmp_path, shares):
    context = multiprocessing.get_context("fork")
    codes = context.Queue()
    folders = [tmp_path / (f"run-{n}" if shares else "run") for n in range(3)]
    store = tmp_path / "store" if shares else None
    processes = [
        context.Process(target=prepare_quietly, args=(toy, folder, store, codes))
        for folder in folders
    ]
    for process in processes:
        process.start()
    found = [codes.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    if shares:
        assert found == [0, 0, 0]
    refused = f"{folders[0]}: another process is preparing this folder"
    assert set(found) <= {0, refused} and 0 in found
    for folder in folders:
        assert job_of(folder).batch(0).tokens
    left = [f for f in tmp_path.rglob(".gradvac-*")]
    assert not left
