"""A report of several seeds: means with intervals first, seeds on demand, what came out first."""

import json
import math
import statistics
from pathlib import Path

import pytest
from scipy.stats import t as student_t

from gradvac.experiment.report import write_report
from gradvac.experiment.report.scores import Row
from gradvac.experiment.report.summary import summary
from gradvac.experiment.view import numbers as geometry_numbers
from gradvac.experiment.view.run_view import load_runs
from tests.build import write_json
from tests.experiment.report.test_report import Page, cells
from tests.experiment.synthetic import make_run

TASKS = ("fr-en", "de-en", "sw-en", "ar-en")
BOOST = {"joint": (8.0, 8.4, 8.1), "gradvac": (9.3, 9.9, 9.5)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    for method, boosts in BOOST.items():
        for seed, boost in enumerate(boosts, 1):
            run = make_run(root / method / f"seed-{seed}", method, TASKS, boost=boost, steps=80)
            tree = json.loads((run / "recipe.yaml").read_text())
            write_json(run / "recipe.yaml", {**tree, "seed": seed})
    write_json(root / "sweep.json", {"variants": list(BOOST), "baseline": "joint", "front": None})
    return root


@pytest.fixture(scope="module")
def page(sweep: Path, tmp_path_factory) -> Page:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry_numbers, "typological_distances", lambda codes: "no typology here")
        patch.setattr(geometry_numbers, "cophenetic_test", lambda values: (0.5, 0.5))
        return Page(write_report(tmp_path_factory.mktemp("out") / "r.html", [sweep], title="t"))


def chrf(sweep: Path, method: str) -> list[float]:
    files = sorted((sweep / method).glob("seed-*/scores.json"))
    each = [json.loads(f.read_text())["directions"].values() for f in files]
    return [statistics.fmean(d["chrf"] for d in own) for own in each]


def interval(values: list[float]) -> float:
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return float(student_t.ppf(0.975, len(values) - 1)) * spread


def test_a_sweep_has_a_row_for_each_method_with_mean_and_interval(page: Page, sweep: Path) -> None:
    own = chrf(sweep, "gradvac")
    assert cells(page, "gradvac", 1)[0] == f"{statistics.fmean(own):.1f}"
    half = f"\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}{interval(own):.1f}"
    assert half in [text for _, text in page.of("span", class_="spread")]
    assert cells(page, "gradvac, seed 2", 5)[0] == f"{own[1]:.1f}"  # after two tables by family
    assert "Seeds" in page.text and "1, 2, 3" in page.text


def test_what_came_out_is_said_first_with_its_interval(page: Page, sweep: Path) -> None:
    ((_, said),) = page.of("p", class_="summary")
    gaps = [b - a for a, b in zip(chrf(sweep, "joint"), chrf(sweep, "gradvac"), strict=True)]
    mean, half = statistics.fmean(gaps), interval(gaps)
    assert said == (
        "chrF++ compared with joint, mean of 4 directions and 3 seeds: gradvac "
        f"+{mean:.1f} (95 %: +{mean - half:.1f} to +{mean + half:.1f}, better)."
    )
    assert page.text.index(said) < page.text.index("Scores")


def test_conflicts_and_samples_say_of_how_many_seeds(page: Page) -> None:
    assert "gradvac, recorded while training, 3 seeds together: in" in page.text
    assert "gradvac, seed 1" in page.text
    assert len(page.of("div", class_="explorer")) == 1  # of the mean, not of each seed


def rows(**values: list[float]) -> list[Row]:
    return [
        Row(name, n, {s: {"fr-en": {"chrf": v}} for s, v in enumerate(own, 1)})
        for n, (name, own) in enumerate(values.items())
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"joint": [20.0], "gradvac": [20.5]}, "gradvac +0.5. One seed has no interval"),
        ({"joint": [20.0, 21.0], "gradvac": [20.5, 20.9]}, "gradvac +0.2. Two seeds are too few"),
        # 1.0, 0.9, 1.1 less: standard deviation 0.1, times 4.302653 / sqrt(3), is 0.248
        (
            {"joint": [20.0] * 3, "gradvac": [19.0, 19.1, 18.9]},
            "gradvac \N{MINUS SIGN}1.0 (95 %: \N{MINUS SIGN}1.2 to \N{MINUS SIGN}0.8, worse).",
        ),
        ({"joint": [20.0] * 3, "gradvac": [19.0, 20.1, 20.9]}, "not told from chance"),
    ],
)
def test_a_difference_is_called_one_only_if_its_interval_says_so(sweep, values, words) -> None:
    views = load_runs([sweep / name / "seed-1" for name in values])
    assert words in summary(rows(**values), views)


def test_one_run_is_compared_with_nothing(sweep: Path) -> None:
    views = load_runs([sweep / "gradvac" / "seed-1"])
    said = summary(rows(gradvac=[20.0]), views)
    assert (
        said == "gradvac alone, compared with nothing: chrF++ 20.0, mean of 1 direction, one seed."
    )
    assert "Nothing is scored yet" in summary([Row("gradvac", 0, {})], views)
