"""Sweeps: shared text, starts and batches; failures stay alone; finished runs are not run again."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RecipeError, RunError
from gradvac.experiment.recipe.load import load_recipe, read_recipe_file
from gradvac.experiment.sweep.sweep import plan
from gradvac.experiment.training.prepare import text_key

VARIANTS = {
    "joint": {},
    "broken": {"training.metric": "nll/nowhere"},
    "static": {"method.name": "static"},  # weights of 1: joint training by another road
}


@pytest.fixture
def many(toy: Path) -> Path:
    tree = yaml.safe_load((toy / "recipe.yaml").read_text())
    sizes = {"smoke": {"training": {"steps": 4, "validate_every": 2, "log_every": 2}}}
    tree |= {"sizes": sizes, "variants": VARIANTS, "seeds": [3]}
    (toy / "many.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return toy


def valid(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["nll"] for line in lines if line["kind"] == "valid"]


def test_a_sweep_shares_what_it_can_isolates_failures_and_goes_on(many, monkeypatch):
    monkeypatch.chdir(many)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = "sweep many.yaml --size smoke".split()
    first = CliRunner().invoke(app, command, catch_exceptions=False)
    root = Path("runs/toy-smoke")
    runs = {name: root / name / "seed-3" for name in VARIANTS}

    assert first.exit_code == 1  # one failed, after which others ran
    assert "training.metric: 'nll/nowhere' is not among" in first.output
    assert not (runs["broken"] / "done.json").exists()
    for name in ("joint", "static"):
        assert (runs[name] / "done.json").exists() and (runs[name] / "scores.json").exists()

    # Same text, same start, same batches: weights of 1 give what joint training gives.
    train = "train many.yaml --size smoke --variant static --seed 9".split()
    assert CliRunner().invoke(app, train, catch_exceptions=False).exit_code == 0
    alone = root / "static" / "seed-9"
    assert (alone / "done.json").exists()
    ids = {(run / "data/train/fr-en/00000000.ids").stat().st_ino for run in (*runs.values(), alone)}
    assert len(ids) == 1
    assert valid(runs["static"]) == pytest.approx(valid(runs["joint"]), rel=1e-4)

    written = {f: f.stat().st_mtime_ns for name in ("joint", "static") for f in files(runs[name])}
    tree = yaml.safe_load(Path("many.yaml").read_text())
    del tree["variants"]["broken"]["training.metric"]
    Path("many.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    again = CliRunner().invoke(app, [*command, "--only", "joint", "--only", "static"])
    assert again.exit_code == 0 and "2 runs, 2 of them finished before" in again.output
    assert written == {f: f.stat().st_mtime_ns for f in written}

    # More steps, or another search: no result of this sweep any more.
    more = [*command, "--only", "joint", "--set", "training.steps=6", "--set", "search.beam=1"]
    longer = CliRunner().invoke(app, more, catch_exceptions=False)
    assert longer.exit_code == 0 and "1 runs, 0 of them finished before" in longer.output
    assert json.loads((runs["joint"] / "done.json").read_text())["step"] == 6
    assert (runs["joint"] / "scores.json").exists()
    other = CliRunner().invoke(app, [*more, "--set", "training.clip=2"])
    assert isinstance(other.exception, RunError)
    assert "these keys differ: training.clip" in str(other.exception)


def files(run: Path) -> list[Path]:
    return [f for f in run.rglob("*") if f.is_file()]


def test_the_plan_has_all_of_a_seed_before_the_next(many):
    file = read_recipe_file(many / "many.yaml")
    jobs = plan(file, None, size="smoke", seeds=[7, 8], changes=["training.steps=1"])
    assert [(job.variant, job.recipe.seed) for job in jobs] == [
        (name, seed) for seed in (7, 8) for name in VARIANTS
    ]
    assert jobs[0].folder == Path("runs/toy-smoke/joint/seed-7")
    assert {job.recipe.training.steps for job in jobs} == {1}
    with pytest.raises(RecipeError, match=r"no variant 'jiont'.*did you mean 'joint'\?"):
        plan(file, None, size="smoke", only=["jiont"])


def test_text_is_shared_by_methods_and_seeds_and_not_by_corpora(many):
    recipe = lambda *changes: load_recipe(many / "recipe.yaml", list(changes))
    same = text_key(recipe())
    assert text_key(recipe("method.name=mgda", "seed=9", "model.preset=small")) == same
    assert text_key(recipe("data.directions=[fr-en]")) != same
    assert text_key(recipe("vocabulary.size=340")) != same
