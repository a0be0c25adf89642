"""The comparison against numbers worked by hand and sacreBLEU's own tests, in every format."""

import csv
import io
import json
import math
import shutil
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RunError
from gradvac.experiment.compare.compare import _groups, compare
from gradvac.experiment.compare.comparison_view import latex, markdown, terminal
from gradvac.experiment.compare.files import as_csv, as_json
from gradvac.geometry.statistics import half_width
from gradvac.terminal import Terminal
from tests.experiment import scored_runs
from tests.experiment.scored_runs import LEVELS, REFERENCES, outputs, write_run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two seeds of a baseline, a better method, and bilingual models; one run is missing."""
    root = tmp_path_factory.mktemp("sweep")
    variants = ["joint", "better", *(f"bilingual/{d}" for d in LEVELS)]
    description = {"size": None, "variants": variants, "baseline": "joint"}
    (root / "sweep.json").write_text(json.dumps(description))
    for seed in (1, 2):
        write_run(root / f"joint/seed-{seed}", outputs(0.4, seed), seed, 3.0)
        write_run(root / f"better/seed-{seed}", outputs(0.25, 10 + seed), seed, 2.0 + seed)
        for k, d in enumerate(LEVELS):
            own = outputs(0.05, 20 + seed + 5 * k, (d,))
            write_run(root / f"bilingual/{d}/seed-{seed}", own, seed, 1.0)
    (root / "better/seed-3").mkdir()
    return root


@pytest.fixture(scope="module")
def found(sweep):
    return compare([sweep], baseline=None, test="randomization", samples=200)


def row(found, name):
    return next(r for r in found.rows if r.name == name)


def test_intervals_by_hand():
    # Standard deviation 2, three values, t(0.975, 2) = 4.302653
    assert half_width([10, 12, 14]) == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
    assert math.isnan(half_width([10]))


def test_means_over_seeds_and_averages_over_directions(found):
    bleu = {
        (seed, d): BLEU(force=True).corpus_score(lines, [REFERENCES[d]]).score
        for seed in (1, 2)
        for d, lines in outputs(0.25, 10 + seed).items()
    }
    cells = row(found, "better").cells["bleu"]
    assert cells["fr-en"].mean == pytest.approx((bleu[1, "fr-en"] + bleu[2, "fr-en"]) / 2)
    high = [(bleu[s, "fr-en"] + bleu[s, "de-en"]) / 2 for s in (1, 2)]
    assert cells["high"].values == pytest.approx(tuple(high))
    assert cells["low"].mean == cells["ne-en"].mean == cells["Indo-Iranian"].mean
    # The best validation, not the last; per direction nll, nll + 1, nll + 2.
    assert row(found, "better").cells["nll"]["ne-en"].values == (5.0, 6.0)
    assert row(found, "better").cells["nll"]["avg"].mean == 4.5
    assert set(found.averages) == {"avg", "high", "low", "Indo-Iranian", "Western European"}


def test_differences_are_of_the_same_seeds(found):
    """NLL of "better" at seed s is 2 + s, of the baseline 3: differences 0 and 1."""
    cell = found.difference(row(found, "better"), "nll", "fr-en")
    assert cell is not None and cell.values == (0.0, 1.0) and cell.seeds == (1, 2)
    # Standard deviation 1 / sqrt(2), two values, t(0.975, 1) = 12.706205
    assert cell.half == pytest.approx(12.706205 / 2, rel=1e-6)
    assert found.difference(row(found, "joint"), "nll", "fr-en") is None
    assert "| better |" in markdown(found).split("validation NLL minus joint")[1]
    assert "| +0.500 |" in markdown(found)  # of NLL: two seeds are too few for an interval


def test_differences_are_in_every_format(found):
    (one,) = [
        r
        for r in json.loads(as_json(found))["records"]
        if (r["row"], r["metric"], r["column"]) == ("better", "nll", "fr-en")
    ]
    assert (one["minus"], one["minus_seeds"]) == (0.5, 2)
    assert one["minus_half_width"] == pytest.approx(12.706205 / 2, rel=1e-6)
    (line,) = [
        r
        for r in csv.DictReader(io.StringIO(as_csv(found)))
        if (r["row"], r["metric"], r["column"]) == ("better", "nll", "fr-en")
    ]
    assert (line["minus"], line["minus_seeds"]) == ("0.5", "2")
    assert "validation NLL minus joint, on the same seeds" in latex(found)
    assert not any(
        "minus" in r for r in json.loads(as_json(found))["records"] if r["row"] == "joint"
    )


def test_two_seeds_are_said_to_be_too_few(found, tmp_path):
    assert "±" not in markdown(found).split("- Means over")[0]
    assert "Two seeds are too few for an interval" in markdown(found)
    runs = [write_run(tmp_path / f"s{n}", outputs(0.4, n), n, 3.0 + n) for n in (1, 2, 3)]
    for run in runs:
        tree = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(f"variant: joint\n{tree}")
    three = markdown(compare(runs, baseline=None, test=None))
    # 4, 5, 6: standard deviation 1, t(0.975, 2) = 4.302653, so 2.484
    assert "| 5.000 ±2.484 |" in three and "too few" not in three


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("every", [False, True])
def test_row_names_stay_whole_in_a_narrow_terminal(found, width, every):
    out = io.StringIO()
    console = Terminal(file=out, width=width)
    for table in terminal(found, every, width):
        console.print(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "\N{HORIZONTAL ELLIPSIS}" not in out.getvalue()
    tables = sum("joint" in line and "minus" not in line for line in lines)
    assert tables == sum(line.startswith("│ bilingual") for line in lines) - sum(
        "minus" in line for line in lines
    )
    assert any("BLEU minus joint" in line for line in lines)


def test_a_family_of_one_direction_each_is_no_average():
    low = dict.fromkeys(("fr-en", "tr-en"), "low")
    assert set(_groups(["fr-en", "tr-en"], low)) == {"avg", "low"}
    assert "Western European" in _groups(["fr-en", "de-en"], {})


def sacrebleu_p(d: str, seed: int) -> float:
    systems = [("a", outputs(0.4, seed)[d]), ("b", outputs(0.25, 10 + seed)[d])]
    made = PairedTest(systems, {"bleu": BLEU(force=True)}, [REFERENCES[d]], "ar", 200)
    return made()[1]["BLEU"][1].p_value


def test_stars_are_sacrebleus_p_values_corrected_by_hand(found):
    raw = {d: max(sacrebleu_p(d, 1), sacrebleu_p(d, 2)) for d in LEVELS}  # a majority of 2 is 2
    first, second, third = sorted(raw, key=raw.__getitem__)
    expected = {first: min(1, 3 * raw[first])}
    expected[second] = min(1, max(expected[first], 2 * raw[second]))
    expected[third] = max(expected[second], raw[third])
    cells = row(found, "better").cells["bleu"]
    assert {d: cells[d].p for d in LEVELS} == pytest.approx(expected)
    assert any(p < 0.05 for p in expected.values())
    assert {d: cells[d].star for d in LEVELS} == {d: p < 0.05 for d, p in expected.items()}
    assert not any(c.star for c in row(found, "joint").cells["bleu"].values())


def test_too_few_sentences_that_differ_are_said(tmp_path):
    base, own = outputs(0.4, 1), outputs(0.25, 11)
    own["fr-en"] = [*own["fr-en"][:19], *base["fr-en"][19:]]
    own["ne-en"] = [*own["ne-en"][:20], *base["ne-en"][20:]]
    differ = {d: sum(a != b for a, b in zip(own[d], base[d], strict=True)) for d in own}
    assert differ["fr-en"] < 20 <= differ["ne-en"]
    runs = [
        write_run(tmp_path / "joint", base, 1, 3.0),
        write_run(tmp_path / "other", own, 1, 3.0),
    ]
    found = compare(runs, baseline=None, test="randomization", samples=50)
    note = f"too few for a test to say much: other fr-en ({differ['fr-en']})."
    assert note in markdown(found) and "ne-en (" not in markdown(found)
    (one,) = [
        r
        for r in json.loads(as_json(found))["records"]
        if r.get("differing") is not None and r["metric"] == "bleu"
    ]
    assert (one["column"], one["differing"]) == ("fr-en", differ["fr-en"])
    assert f",{differ['fr-en']}\n" in as_csv(found)


def test_a_row_of_several_models_adds_up_and_is_not_bold(found):
    bilingual = row(found, "bilingual")
    assert bilingual.several_models and set(LEVELS) <= set(bilingual.cells["bleu"])
    # Per run 20 s and 9 s after resuming, and 4,000 tokens; three runs make the row.
    assert (bilingual.tokens, bilingual.seconds) == (12_000, 87.0)
    assert bilingual.parameters == 3 * 12  # three models of 3 x 4
    assert row(found, "better").cost == pytest.approx(1.0)
    best = found.best("bleu", "avg", several_models=False)
    assert best == row(found, "better").cells["bleu"]["avg"].mean
    assert found.best("bleu", "avg", several_models=True) == bilingual.cells["bleu"]["avg"].mean
    assert found.best("nll", "avg", several_models=False) == 4.0  # the smaller of 4.0 and 4.5
    assert [path.name for path in found.missing] == ["seed-3"]


def test_every_format_says_the_same(found):
    mean = row(found, "better").cells["bleu"]["fr-en"].mean
    records = [r for r in json.loads(as_json(found))["records"] if r["row"] == "better"]
    (one,) = [r for r in records if (r["metric"], r["column"]) == ("bleu", "fr-en")]
    assert one["mean"] == mean and one["seeds"] == 2
    (line,) = [
        r
        for r in csv.DictReader(io.StringIO(as_csv(found)))
        if (r["row"], r["metric"], r["column"]) == ("better", "bleu", "fr-en")
    ]
    assert float(line["mean"]) == mean and line["p"] == str(one["p"])
    star = row(found, "better").cells["bleu"]["fr-en"].star
    assert f"**{mean:.1f}**" in markdown(found) and (r"**\*" in markdown(found)) == star
    assert rf"\textbf{{{mean:.1f}}}" in latex(found)
    top = row(found, "bilingual").cells["bleu"]["avg"].mean
    assert rf"\underline{{{top:.1f}}}" in latex(found)


def test_the_command_prints_and_writes(sweep, tmp_path):
    out = [tmp_path / f"t{end}" for end in (".md", ".tex", ".csv", ".json")]
    flags = [word for file in out for word in ("--out", str(file))]
    command = ["compare", str(sweep), "--test", "none", *flags]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and "bilingual" in result.output
    assert all(file.stat().st_size > 300 for file in out)


def test_refusals(sweep, tmp_path):
    with pytest.raises(RunError, match="baseline: 'jiont' has no scored run; rows: joint, better"):
        compare([sweep], baseline="jiont", test=None)
    with pytest.raises(RunError, match="not a run folder"):
        compare([sweep / "better" / "seed-3"], baseline=None, test=None)
    run = write_run(tmp_path / "one", outputs(0.1, 1), 1, 2.0)
    other = write_run(tmp_path / "two", outputs(0.1, 1), 1, 2.0)
    lines = (other / "translations.jsonl").read_text().splitlines()
    (other / "translations.jsonl").write_text("\n".join(lines[1:]) + "\n")
    words = "fr-en: the runs were scored on different sentences: 40 in .*one, 39 in .*two; "
    with pytest.raises(RunError, match=words):  # whatever the test: their means do not compare
        compare([run, other], baseline=None, test=None)


def test_two_runs_of_one_row_and_seed_are_refused(sweep, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(sweep, again)
    with pytest.raises(RunError, match=r"seed 1: two runs of .*; a row is one method"):
        compare([sweep, again], baseline=None, test=None)


def test_sides_levels_cost_and_bold_by_hand(tmp_path, monkeypatch):
    bleu = {"fr-en": (30, 32), "ne-en": (10, 9), "en-fr": (20, 20), "en-ne": (4, 7)}
    levels = {d: "low" if "ne" in d else "high" for d in bleu}
    monkeypatch.setattr(scored_runs, "LEVELS", levels)
    texts = {d: ["a b c d e"] for d in bleu}
    monkeypatch.setattr(scored_runs, "REFERENCES", texts)
    for n, name in enumerate(("joint", "slow")):
        run = write_run(tmp_path / name, texts, 1, 2.0)
        scores = json.loads((run / "scores.json").read_text())
        for d, values in bleu.items():
            scores["directions"][d]["bleu"] = values[n]
        (run / "scores.json").write_text(json.dumps(scores))
    # 29 s for 4,000 tokens; the other one takes 58 s for 2,000: four times the seconds per token.
    scored_runs.write_lines(tmp_path / "slow" / "speed.jsonl", [{"seconds": 58.0}])
    metrics = (tmp_path / "slow" / "metrics.jsonl").read_text()
    metrics = metrics.replace('"tokens": 3000', '"tokens": 1500').replace("1000", "500")
    (tmp_path / "slow" / "metrics.jsonl").write_text(metrics)
    found = compare([tmp_path / "joint", tmp_path / "slow"], baseline="joint", test=None)
    means = {c: cell.mean for c, cell in row(found, "slow").cells["bleu"].items()}
    expected = {
        "avg": 17,
        "Any->En": 20.5,
        "Any->En high": 32,
        "Any->En low": 9,
        "En->Any": 13.5,
        "En->Any high": 20,
        "En->Any low": 7,
    }
    assert {c: means[c] for c in found.averages} == expected
    assert (row(found, "joint").cost, row(found, "slow").cost) == (1, 4)
    bold = {
        name: [
            "**" in cell
            for cell in next(x for x in markdown(found).splitlines() if name in x).split(" | ")[1:5]
        ]
        for name in ("| joint", "| slow")
    }  # of fr-en, ne-en, en-fr, en-ne; where all are equal none is the best
    assert bold == {"| joint": [False, True, False, False], "| slow": [True, False, False, True]}


def test_cost_is_cpu_time_where_every_row_has_it(tmp_path):
    """Resumed at step 10, then at 12: 6 + 4 + 8 CPU seconds; the other run took 9 in one go."""
    runs = [write_run(tmp_path / name, outputs(0.1, 1), 1, 2.0) for name in ("joint", "other")]
    line = {"seconds": 0.0, "began": 0, "device": "cpu", "processes": 1}
    three = [(0, 3.0), (0, 6.0), (10, 4.0), (12, 7.0), (12, 8.0)]
    own = [{**line, "seconds": 9.0, "began": b, "cpu_seconds": c} for b, c in three]
    write_lines = scored_runs.write_lines
    write_lines(runs[0] / "speed.jsonl", own)
    write_lines(runs[1] / "speed.jsonl", [{**line, "seconds": 99.0, "cpu_seconds": 9.0}])
    found = compare(runs, baseline="joint", test=None)
    assert [row.cpu_seconds for row in found.rows] == [18, 9]
    assert [row.seconds for row in found.rows] == [27, 99]  # 9 three times: a clock each
    assert [row.cost for row in found.rows] == [1, 0.5] and found.cost_of == "cpu_seconds"
    assert "Cost: CPU seconds of training" in markdown(found)
    assert json.loads(as_json(found))["costs"]["other"]["cpu_seconds"] == 9
    last = {**line, "seconds": 54.0, "cpu_seconds": 9.0}
    earlier_version = {"seconds": 54.0}
    for wall_alone in ({**last, "device": "cuda"}, {**last, "processes": 2}, earlier_version):
        write_lines(runs[1] / "speed.jsonl", [wall_alone])
        found = compare(runs, baseline="joint", test=None)
        assert [row.cost for row in found.rows] == [1, 2] and found.cost_of == "seconds"
        assert "Cost: wall-clock seconds" in markdown(found)
        tree = json.loads(as_json(found))
        assert tree["costs"]["other"]["cpu_seconds"] is None and tree["cost_of"] == "seconds"
