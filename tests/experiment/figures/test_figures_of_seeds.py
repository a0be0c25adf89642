"""Runs that differ in their seed alone are drawn as their mean, with each seed beside it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from gradvac.experiment.figures import write
from gradvac.experiment.figures.write import draw_all, write_picture
from gradvac.experiment.report import write_report
from gradvac.experiment.view import numbers as geometry_numbers
from gradvac.experiment.view.geometry import subjects_of
from gradvac.experiment.view.numbers import findings, in_words
from gradvac.experiment.view.run_view import load_runs
from gradvac.experiment.view.seeds import over_seeds
from gradvac.geometry.record import GramRecord
from gradvac.geometry.statistics import mantel, same
from tests.experiment.figures.test_figures import BOTH, check_pairs, gram, mean_cosine, measure
from tests.experiment.synthetic import make_run

SEEDS = (1, 2, 5)
INTO = tuple(t for t in BOTH if t.endswith("-en"))


def seeds_of(root: Path, tasks: tuple[str, ...], boost: float, method: str = "gradvac") -> list:
    """Three runs whose numbers differ, each measured at the same two steps."""
    runs = []
    for seed in SEEDS:
        run = make_run(root / f"seed-{seed}", method, tasks, boost=boost + seed)
        recipe = json.loads((run / "recipe.yaml").read_text())
        (run / "recipe.yaml").write_text(json.dumps(recipe | {"seed": seed}))
        measure(run, tasks, (40, 80), seed=seed)
        runs.append(run)
    return runs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    root = tmp_path_factory.mktemp("sweep")
    return {
        "all": seeds_of(root / "all", BOTH, 8.0),
        **{f"alone/{t}": seeds_of(root / "alone" / t, (t,), 5.0, "joint") for t in INTO[:2]},
        **{
            f"with/{t}": seeds_of(root / "with" / t, ("fr-en", f"{t}-en"), 6.0 + n)
            for n, t in enumerate(("es", "hi", "sw"))
        },
    }


@pytest.fixture(scope="module")
def drawn(sweep: dict[str, list[Path]]):
    views = load_runs(run for runs in sweep.values() for run in runs)
    return draw_all(over_seeds(subjects_of(views)))


def bleu(run: Path, task: str) -> float:
    return json.loads((run / "scores.json").read_text())["directions"][task]["bleu"]


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def columns(picture, name: str) -> list:
    return [row[picture.header.index(name)] for row in picture.rows]


def test_heat_maps_are_the_mean_and_each_seed_stands_beside_it(sweep, drawn) -> None:
    (picture,) = drawn[0]["GradVac Figure 1"]
    assert picture.name == "gradvac-fig-01-encoder-any-en-all"
    assert "2 steps (40 to 80) of 3 seeds" in picture.caption
    each = [mean_cosine(gram(run, "encoder")) for run in sweep["all"]]
    names = ["cosine", *(f"cosine_seed_{seed}" for seed in SEEDS)]
    assert list(picture.header[-4:]) == names
    for column, values in zip(names, [np.mean(each, axis=0), *each], strict=True):
        pairs = zip(picture.rows, columns(picture, column), strict=True)
        check_pairs({(row[0], row[1]): value for row, value in pairs}, values, INTO)


def test_layers_have_bars_from_the_lowest_seed_to_the_highest(sweep, drawn) -> None:
    (picture,) = drawn[0]["GradVac Figure 4b"]
    rows = [n for n, row in enumerate(picture.rows) if row[1] == "encoder.layers.0"]
    own = [picture.rows[n] for n in rows if picture.rows[n][0].startswith("Any")]
    assert len(own) == 1 and own[0][2] == pytest.approx(np.mean(own[0][3:]))
    layer = picture.header.index("mean_cosine")
    bars = [
        tuple(line.get_ydata())
        for line in picture.figure.axes[0].lines
        if len(line.get_ydata()) == 2 and line.get_linewidth() == 3
    ]
    expected = [(min(row[layer + 1 :]), max(row[layer + 1 :])) for row in picture.rows]
    assert np.allclose(sorted(bars), sorted(expected)) and len(bars) == len(picture.rows)


def test_losses_are_means_with_the_band_of_the_seeds(sweep, drawn) -> None:
    (picture,) = drawn[0]["CATS Figure 1"]
    assert "Means of 3 seeds, bands and bars from lowest to highest." in picture.caption
    logs = [[line for line in log(run) if line["kind"] == "valid"] for run in sweep["all"]]
    values = np.array([[line["nll/low"] for line in lines] for lines in logs])  # [seeds, steps]
    title, own = "low resource", {}
    for row in picture.rows:
        if row[:2] == (title, "all"):
            own[row[2]] = row[3:]
    found = np.array([own[line["step"]] for line in logs[0]])
    assert np.allclose(found, np.concatenate([values.mean(0, keepdims=True), values]).T)
    ax = next(ax for ax in picture.figure.axes if ax.get_title(loc="left") == title)
    (band,) = ax.collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((values.min(), values.max()))


def test_gains_over_bilingual_models_are_of_the_same_seeds(sweep, drawn) -> None:
    (picture,) = drawn[0]["GradVac Figure 6"]
    for task in INTO[:2]:
        gains = [
            bleu(own, task) - bleu(alone, task)
            for own, alone in zip(sweep["all"], sweep[f"alone/{task}"], strict=True)
        ]
        (row,) = [n for n, r in enumerate(picture.rows) if r[:2] == ("all", task)]
        assert columns(picture, "difference")[row] == pytest.approx(np.mean(gains))
        each = [columns(picture, f"difference_seed_{seed}")[row] for seed in SEEDS]
        assert each == pytest.approx(gains)


def test_quality_and_similarity_have_a_point_per_model(sweep, drawn) -> None:
    (picture,) = drawn[0]["GradVac Figure 2b"]
    assert [row[0] for row in picture.rows] == ["es", "hi", "sw"]
    for row, partner in zip(picture.rows, ("es", "hi", "sw"), strict=True):
        runs = sweep[f"with/{partner}"]
        cosines = [mean_cosine(gram(run, ""))[0, 1] for run in runs]
        assert row[1] == pytest.approx(np.mean(cosines))
        assert row[2] == pytest.approx(np.mean([bleu(run, "fr-en") for run in runs]))


def test_curvature_is_the_mean_over_seeds(drawn) -> None:
    (picture,) = drawn[0]["CATS Figure 5"]
    expected = {step: np.mean([step * 0.1 + seed for seed in SEEDS]) for step in (40, 80)}
    found = {row[2]: row[3] for row in picture.rows if row[1] == "high resource"}
    assert found == pytest.approx(expected)


def test_edits_are_added_up(sweep) -> None:
    (joined,) = over_seeds(subjects_of(load_runs(sweep["all"])))
    counts = [np.array([f.edits for f in GramRecord(run / "geometry")]) for run in sweep["all"]]
    assert np.array_equal(joined.run.edits.edits, np.sum(counts, axis=0))
    assert joined.run.name == "all" and len(joined.seeds) == 3


def test_only_what_differs_in_nothing_but_the_seed_is_joined(tmp_path) -> None:
    runs = seeds_of(tmp_path / "a", BOTH, 8.0)
    recipe = json.loads((runs[2] / "recipe.yaml").read_text())
    recipe["training"]["steps"] = 401
    (runs[2] / "recipe.yaml").write_text(json.dumps(recipe))
    twice = make_run(tmp_path / "twice", "gradvac", BOTH)  # the recipe and the seed of the first
    names = lambda found: [(s.run.name, len(s.seeds)) for s in found]
    assert names(over_seeds(subjects_of(load_runs(runs)))) == [("a", 2), ("seed-5", 0)]
    found = over_seeds(subjects_of(load_runs([runs[0], twice])))
    assert names(found) == [("seed-1", 0), ("twice", 0)]


def test_seeds_measured_and_not_are_not_mixed(tmp_path) -> None:
    runs = seeds_of(tmp_path / "a", BOTH, 8.0)
    (runs[0] / "geometry" / "measured" / "measured.json").unlink()
    (joined,) = over_seeds(subjects_of(load_runs(runs)))
    assert joined.geometry.measured is None and len(joined.geometry.seeds) == 3
    for file in ("gram.bin", "frames.jsonl"):  # as a joint run: no record, so the other two count
        (runs[0] / "geometry" / file).unlink()
    (joined,) = over_seeds(subjects_of(load_runs(runs)))
    assert joined.geometry.measured is not None and len(joined.geometry.seeds) == 2
    found = joined.mean_of("whole_model", "whole_model", joined.tasks)
    assert np.allclose(found, np.mean([mean_cosine(gram(r, "")) for r in runs[1:]], axis=0))


def test_the_file_has_the_numbers_of_the_seeds(drawn, tmp_path) -> None:
    file = write_picture(drawn[0]["GradVac Figure 10"][0], tmp_path)
    with file.with_suffix(".csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert all(float(row[f"cosine_seed_{seed}"]) <= 1 for row in rows for seed in SEEDS)


@pytest.fixture
def quick_numbers(monkeypatch) -> None:
    """What takes seconds has tests of its own."""
    monkeypatch.setattr(geometry_numbers, "typological_distances", lambda codes: "no typology here")
    monkeypatch.setattr(geometry_numbers, "cophenetic_test", lambda values: (0.5, 0.5))


def test_the_tests_ask_the_mean_and_show_each_seed(sweep, quick_numbers) -> None:
    subjects = subjects_of(load_runs(sweep["all"]))
    (joined,) = over_seeds(subjects)
    found, _ = findings(joined)
    kin = same([t.family for t in joined.tasks if t.name in INTO])
    order = [BOTH.index(t.name) for t in joined.tasks if t.name in INTO]
    each = [mean_cosine(gram(run, "encoder"))[np.ix_(order, order)] for run in sweep["all"]]
    (f,) = [f for f in found if f.side.startswith("Any") and f.part == "encoder"][:1]
    assert f.question == "same family" and f.r == pytest.approx(mantel(np.mean(each, 0), kin).r)
    assert f.seeds == pytest.approx([mantel(values, kin).r for values in each])
    assert f"{min(f.seeds):.2f} to".replace("-", "\N{MINUS SIGN}") in in_words(f)


def test_the_report_tests_seeds_once_and_figures_keep_the_tests(
    sweep, tmp_path, quick_numbers, monkeypatch
) -> None:
    file = write_report(tmp_path / "report.html", sweep["all"], title="Seeds")
    page = file.read_text(encoding="utf-8")
    assert page.count("What the similarity is about") == 1
    assert (
        "What the similarity is about (mean of 3 seeds of all, measured on the same sentences)"
        in page
    )
    monkeypatch.setattr(write, "draw_all", lambda subjects: ({}, {}))
    write.write_figures(sweep["all"], tmp_path / "out", lambda line: None)
    with (tmp_path / "out" / "numbers.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["run"] for row in rows} == {"all"}
    assert all(len(row["r_of_seeds"].split()) == 3 for row in rows)
