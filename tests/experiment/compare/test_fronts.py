"""`gradvac compare --front` on runs whose scores are written by hand."""

import csv
import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import GradvacError, RecipeError, RunError
from gradvac.experiment.compare.compare import compare
from gradvac.experiment.compare.fronts import fronts
from tests.experiment.scored_runs import LEVELS, REFERENCES, write_run

# BLEU of high- and of low-resource directions by row, seed 1 and 2; two rows sweep, one is a method
SCORES = {
    ("t1", "joint"): [(30, 10), (30, 10)],
    ("t5", "joint"): [(20, 20), (20, 20)],
    ("weights", "static"): [(12, 21), (16, 23)],
    ("gradvac", "gradvac"): [(26, 16), (28, 18)],
    ("pcgrad", "pcgrad"): [(22, 12), (22, 12)],
}


def write_sweep(root: Path, **description) -> Path:
    root.mkdir(exist_ok=True)
    tree = {"size": None, "variants": [name for name, _ in SCORES], "baseline": "t1", **description}
    (root / "sweep.json").write_text(json.dumps(tree))
    for (name, method), points in SCORES.items():
        for seed, (high, low) in enumerate(points, 1):
            run = write_run(root / name / f"seed-{seed}", REFERENCES, seed, 2.0, method)
            scores = json.loads((run / "scores.json").read_text())
            for direction, found in scores["directions"].items():
                found["bleu"] = {"high": high, "low": low}[LEVELS[direction]]
            (run / "scores.json").write_text(json.dumps(scores))
    return root


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("front"))


def found_in(folder: Path):
    return compare([folder], baseline=None, test=None)


def test_the_front_of_joint_and_static_rows(sweep):
    bleu, _, nll = fronts(found_in(sweep))
    assert bleu.swept == ("t1", "t5", "weights") and bleu.seeds == (1, 2)
    assert bleu.vertices == [(14, 22), (20, 20), (30, 10)]
    assert bleu.hypervolume.value == 14 * 22 + 6 * 20 + 10 * 10 and bleu.reference == (0, 0)
    rows = {place.name: place for place in bleu.places}
    # The line from t5 to t1 is x + y = 40; gradvac's seeds lie at 42 and 46.
    assert rows["gradvac"].distance.value == pytest.approx(4 / math.sqrt(2))
    t_of_one = 12.7062047
    assert rows["gradvac"].distance.half == pytest.approx(t_of_one * 2 / math.sqrt(2))
    assert rows["gradvac"].verdict == "not told apart"  # two seeds say little
    assert rows["pcgrad"].distance.value == pytest.approx(-6 / math.sqrt(2))
    assert rows["pcgrad"].verdict == "inside" and rows["pcgrad"].dominated_by == ()
    # NLL counts down from that of a uniform guess among 1,000 pieces.
    guess = math.log(1000)
    assert nll.shown(nll.reference) == (guess, guess)
    high, low = (2.0 + 3.0) / 2, 4.0
    assert nll.hypervolume.value == pytest.approx((guess - high) * (guess - low))


def test_recipe_and_options_say_which_rows_sweep_and_which_columns(sweep, tmp_path):
    named = found_in(write_sweep(tmp_path / "s", front=["t5", "weights"]))
    assert fronts(named)[0].swept == ("t5", "weights")
    bleu = fronts(named, ["t1", "pcgrad"], "fr-en,ne-en", (20, 5))[0]
    assert bleu.swept == ("t1", "pcgrad") and bleu.axes == ("fr-en", "ne-en")
    assert bleu.hypervolume.value == (30 - 20) * (10 - 5) + (22 - 20) * (12 - 10)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"sweep": ["t2"]}, RecipeError, "--sweep: 't2' is no row; rows: t1, t5"),
        ({"sweep": ["t1"]}, RunError, "a front takes two or more"),
        ({"axes": "high"}, RecipeError, "must be two columns"),
        ({"axes": "high,medium"}, RecipeError, "of: fr-en, de-en, ne-en, avg, high, low"),
    ],
)
def test_refusals(sweep, arguments, kind: type[GradvacError], words):
    with pytest.raises(kind, match=words):
        fronts(found_in(sweep), **arguments)


def test_the_command_prints_draws_and_writes(sweep, tmp_path):
    out = {end: tmp_path / f"table.{end}" for end in ("md", "tex", "csv", "json")}
    flags = [word for file in out.values() for word in ("--out", str(file))]
    command = ["compare", str(sweep), "--test", "none", "--front", "--pictures", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, *flags], catch_exceptions=False)
    assert done.exit_code == 0 and "not told apart" in done.output
    tree = json.loads(out["json"].read_text())["fronts"][0]
    assert tree["front"] == [[14, 22], [20, 20], [30, 10]] and tree["metric"] == "bleu"
    assert "| gradvac | 27.0 | 17.0 | +2.83 ±17.97 | not told apart | 49.0 ±" in (
        out["md"].read_text()
    )
    assert r"$\pm$17.97 & not told apart" in out["tex"].read_text()
    with (tmp_path / "table-front.csv").open() as lines:
        (line,) = [
            r for r in csv.DictReader(lines) if (r["metric"], r["row"]) == ("bleu", "pcgrad")
        ]
    assert float(line["distance"]) == pytest.approx(-6 / math.sqrt(2))
    for end in ("svg", "pdf", "png", "csv"):
        assert (tmp_path / f"front-bleu-high-low.{end}").stat().st_size > 300
    with (tmp_path / "front-nll-high-low.csv").open() as lines:
        means = {r["row"]: r for r in csv.DictReader(lines) if r["seed"] == "mean"}
    assert float(means["t1"]["low"]) == 4.0
