"""The laboratory's endpoint, from curves whose numbers are written here."""

import json
import math
import statistics
from dataclasses import replace

import pytest

from tools.evidence import tables
from tools.evidence.claim import Claim
from tools.evidence.curves import gain, hours, outside, pilot, reached
from tools.evidence.figures import Absent, Figure
from tools.evidence.files import Evidence
from tools.evidence.laboratory import TABLE1, WEIGHTS, laboratory
from tools.evidence.mechanism import constraint
from tools.evidence.numbers import number
from tools.evidence.page import page
from tools.evidence.pictures import curve_gains
from tools.evidence.together import DIFFERS, answers, summary, table
from tools.evidence.verdicts import ABSENT, FAILS, HOLDS, SAME, UNKNOWN, Verdict

HIGH, LOW = "en-de", "en-nl"


def run(variant, seed, high, low, exact=(0.5, 0.25), tokens=100, rate=0.01):
    """A run of two checkpoints in each direction that is given."""
    nll = {name: own for name, own in ((HIGH, high), (LOW, low)) if own}
    levels = {name: level for name, level in ((HIGH, "high"), (LOW, "low")) if name in nll}
    share = dict(zip((HIGH, LOW), exact, strict=True))
    return {
        "variant": variant,
        "seed": seed,
        "learning_rate": rate,
        "steps": [10, 20],
        "nll": nll,
        "levels": levels,
        "exact": {name: share[name] for name in nll},
        "tokens": tokens,
        "cpu_seconds": 1800.0,
        "best": min(map(min, nll.values())),
    }


RUNS = [
    run("joint", 1, [2.0, 1.0], [4.0, 3.0]),
    run("joint", 2, [2.2, 1.1], [4.2, 3.3]),
    run("own", 1, [1.0, 0.5], [2.0, 1.5], exact=(1.0, 0.5)),
    run("own", 2, [2.2, 1.1], [4.2, 3.3]),
    run("two/en-de", 1, [1.0, 0.5], None, tokens=500),
    run("two/en-nl", 1, None, [2.0, 1.5], tokens=500),
    run("two/en-de", 2, [1.0, 0.4], None, tokens=500),
    run("two/en-nl", 2, None, [2.0, 1.0], tokens=500),
    run("two/en-de", 3, [1.0, 0.5], None, tokens=500),  # its other model is not there yet
]


@pytest.fixture
def e(tmp_path):
    for name in ("lab-x", "lab-table1-from-en", "lab-x-rates"):
        file = tmp_path / f"{name}-small.json"
        file.write_text(json.dumps({"study": "curves", "runs": RUNS}), encoding="utf-8")
    return Evidence(tmp_path, "small")


def test_the_endpoint_is_the_mean_logarithm_of_the_mean_over_directions(e):
    found = reached(e, "lab-x", "joint")
    assert found[1].endpoint == pytest.approx((math.log(3.0) + math.log(2.0)) / 2)
    assert found[1].last == 2.0 and found[1].exact == 37.5
    assert reached(e, "lab-x", "joint", "low")[2].endpoint == pytest.approx(
        (math.log(4.2) + math.log(3.3)) / 2
    )
    with pytest.raises(Absent):
        reached(e, "lab-x", "joint", "medium")


def test_a_row_of_several_models_has_the_seeds_that_all_of_them_have(e):
    found = reached(e, "lab-x", "two")
    assert set(found) == {1, 2} and found[1].tokens == 1000
    assert found[1].endpoint == pytest.approx((math.log(1.5) + math.log(1.0)) / 2)
    assert e.rows("lab-x") == ["joint", "own", "two"]
    assert hours(e, "lab-x") == pytest.approx(0.5 * len(RUNS))


def test_a_gain_is_paired_by_seed_with_exact_matches_beside_it(e):
    figure = gain(e, "lab-x", "own", "joint")
    gains = [math.log(2.0), 0.0]  # half of both curves; the same curves
    assert figure.value == pytest.approx(statistics.fmean(gains)) and figure.n == 2
    assert figure.error == pytest.approx(statistics.stdev(gains) / math.sqrt(2))
    assert figure.beside.value == pytest.approx(37.5 / 2) and not figure.flaws
    assert gain(e, "lab-x", "joint", "own").value == pytest.approx(-figure.value)


def test_a_row_of_another_study_is_paired_by_seed_and_named_without_it(e):
    file = e.folder / "lab-y-small.json"
    other = [run("joint", seed, [9.0, 9.0], [9.0, 9.0], tokens=50) for seed in (1, 2)]
    file.write_text(json.dumps({"runs": other}), encoding="utf-8")
    own = gain(e, "lab-y", "lab-x:own", "lab-x:joint")
    assert own.value == gain(e, "lab-x", "own", "joint").value and not own.flaws
    (flaw,) = gain(e, "lab-x", "two", "lab-y:joint").flaws
    assert flaw.words == "two had 20.0 times the tokens: give both as much"


def test_a_row_outside_the_front_has_its_distance_in_log_nll(e, tmp_path):
    """The front is the line from (0, -2) to (-2, 0) in minus log NLL; high is x, low is y."""
    at = lambda name, x, y: [
        run(name, seed, [math.exp(-x - d)] * 2, [math.exp(-y - d)] * 2)
        for seed, d in ((1, 0.0), (2, 0.2))
    ]
    runs = at("left", 0.0, -2.0) + at("right", -2.0, 0.0)
    runs += at("better", 0.0, 0.0) + at("worse", -2.0, -2.0) + at("further", 1.0, -3.0)
    (tmp_path / "lab-f-small.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    swept = ("left", "right")
    better, worse = (outside(e, "lab-f", row, swept) for row in ("better", "worse"))
    assert better.value == pytest.approx(math.sqrt(2)) and better.n == 2
    assert worse.value == pytest.approx(-math.sqrt(2)) and not better.flaws
    assert better.error == pytest.approx(0, abs=1e-9)  # seeds move front and row alike
    (flaw,) = outside(e, "lab-f", "further", swept).flaws
    assert "beyond the last point" in flaw.words
    with pytest.raises(Absent):
        outside(e, "lab-x", "two", ("joint", "none"))


def test_a_gain_within_a_sentence_is_in_per_cent_of_the_nll(e):
    half = 100 * (1 - math.exp(-math.log(2.0) / 2))
    assert number("lower: lab-x own joint", e, []) == f"{half:.0f}"
    with pytest.raises(ValueError, match="other way round"):
        number("lower: lab-x joint own low", e, [])


def test_a_weight_is_the_mean_over_tasks_and_seeds(tmp_path):
    runs = [
        run("cats", seed, [1.0, 1.0], [1.0, 1.0]) | {"weights": {HIGH: 2.0 * seed, LOW: 0.25}}
        for seed in (1, 2)
    ]
    file = tmp_path / "lab-w-small.json"
    file.write_text(json.dumps({"runs": [*runs, RUNS[0]]}), encoding="utf-8")
    e = Evidence(tmp_path, "small")
    assert number("weight: lab-w cats high", e, []) == "3.00"
    assert number("weight: lab-w cats low", e, []) == "0.25"
    with pytest.raises(Absent):
        number("weight: lab-w joint low", e, [])


def test_more_tokens_are_a_flaw(e):
    (flaw,) = gain(e, "lab-x", "two", "joint").flaws
    assert flaw.words == "two had 10.0 times the tokens: give both as much" and not flaw.larger
    (flaw,) = gain(e, "lab-x", "joint", "two").flaws
    assert flaw.larger
    (flaw,) = gain(e, "lab-x", "two", "joint", per="seconds").flaws
    assert flaw.words == "two had 2.0 times the seconds: give both as much"


def test_a_pilot_pairs_runs_of_one_seed_and_rate(tmp_path):
    runs = [
        run(variant, seed, [a * scale, a], None, rate=rate)
        for seed, rate, a in ((1, 0.1, 1.0), (1, 0.2, 2.0), (2, 0.1, 3.0))
        for variant, scale in (("joint", 1.0), ("own", math.exp(2 * seed * rate)))
    ]
    file = tmp_path / "lab-pilot-small.json"
    file.write_text(json.dumps({"runs": runs}), encoding="utf-8")
    e = Evidence(tmp_path, "small")
    deviation, pairs = pilot(e, "lab-pilot", "own")
    assert pairs == 3 and deviation == pytest.approx(statistics.stdev([0.1, 0.2, 0.2]))
    assert f"| own | {deviation:.3f} | 3 |" in tables.pilot(e, "lab-pilot")
    with pytest.raises(Absent):
        pilot(e, "lab-pilot", "none")


def test_the_table_has_means_by_level_and_the_price(e):
    joint = tables.curves(e, "lab-x").splitlines()[2]
    assert joint.startswith("| joint | 0.9") and joint.endswith(
        "| 1.050 | 3.150 | 50.0 | 25.0 | 2 | 1800 |"
    )
    assert "4.5 CPU hours" in tables.curves(e, "lab-x")
    file = e.folder / "lab-y-small.json"
    file.write_text(json.dumps({"runs": [*RUNS[:2], RUNS[2]]}), encoding="utf-8")
    assert tables.curves(e, "lab-y").endswith("Begun, with fewer than two seeds: own.")


def test_the_bound_of_cats_is_met_where_curvature_is_at_most_rho(tmp_path):
    """The first two lines are of the warm-up: the multiplier has not moved."""
    kept = [
        {"curvature": [0.1, 1.0, 0.9, 0.6, 0.5], "multiplier": [0.0, 0.0, 0.1, 0.3, 0.7]},
        {"curvature": [0.1, 1.0, 0.8, 0.4, 0.7], "multiplier": [0.0, 0.0, 0.1, 0.3, 0.5]},
    ]
    weights = [{HIGH: 0.5, LOW: 2.0}, {HIGH: 0.7, LOW: 4.0}]
    runs = [
        run("cats", seed, [2.0, 1.0], [4.0, 3.0]) | {"weights": own, "constraint": each}
        for seed, own, each in zip((1, 2), weights, kept, strict=True)
    ]
    runs += [run("t1", 1, [2.0, 1.0], [4.0, 3.0]) | {"constraint": {}}]
    runs += [run("old", 1, [2.0, 1.0], [4.0, 3.0])]  # collected before constraints were kept
    runs += [run("half", 1, [2.0, 1.0], [4.0, 3.0]), runs[0] | {"variant": "half", "seed": 2}]
    method = {"options": {"rho": 0.5, "learning_rate": 0.3}}
    tree = {"runs": runs, "recipes": {"cats": {"method": method}}}
    (tmp_path / "lab-x-small.json").write_text(json.dumps(tree), encoding="utf-8")
    e = Evidence(tmp_path, "small")
    cells = "| cats | 0.5 | 0.3 | 0.60 | 33 | 0.6 | 3.00 | 0.60 | 2 |"
    assert constraint(e, "lab-x").splitlines()[2:] == [cells]
    tree["runs"] = runs[2:]
    (tmp_path / "lab-y-small.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(Absent):
        constraint(e, "lab-y")


def test_claims_are_those_of_studies_that_have_run_and_absent_rows_are_not_run(e, tmp_path):
    found = list(laboratory(e))
    assert {claim.study for claim in found} == {"lab-table1-from-en"}
    text = page("{{claims: lab-table1-from-en}}\n{{claims: lab-choices}}", e, tmp_path, ".")
    assert "GradVac beats joint (out of English)" in text and "**not run**" in text
    assert text.endswith("Not run yet.")


def test_the_picture_has_a_row_for_each_but_the_baseline(e):
    figure, words = curve_gains("lab-x", "Table 1")(e)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["own", "two"]
    assert words.startswith("Table 1: ")


def test_a_claim_is_answered_once_over_all_studies():
    said = [("t", "a", HOLDS), ("lab-t", "a", UNKNOWN), ("t", "b", UNKNOWN), ("lab-t", "b", FAILS)]
    said += [("t", "c", HOLDS), ("lab-t", "c", FAILS), ("t", "d", UNKNOWN), ("t", "e", ABSENT)]
    said += [("t", "f", SAME), ("lab-t", "f", HOLDS), ("lab-u", "f", SAME), ("t", "g", SAME)]
    said += [("lab-t", "g", "small"), ("lab-u", "g", SAME), ("lab-v", "g", UNKNOWN)]
    said += [("t", "h", FAILS), ("lab-t", "h", SAME)]
    figure = Figure(0.0, 2, "nll", 0.1)
    judged = [
        (
            Claim(study, text, "x", lambda: figure),
            figure,
            Verdict(HOLDS if kind == "small" else kind, small=kind in ("small", SAME)),
        )
        for study, text, kind in said
    ]
    again = replace(judged[0][0], text="of a", again=True)
    found = {a.text: a for a in answers([*judged, (again, *judged[0][1:])])}
    assert {text: a.kind for text, a in found.items()} == {
        "a": HOLDS,
        "b": FAILS,
        "c": DIFFERS,
        "d": UNKNOWN,
        "e": ABSENT,
        "f": DIFFERS,  # in one study the difference is not below the bound
        "g": SAME,
        "h": FAILS,
    }
    assert (found["d"].real, found["d"].numbers) == (UNKNOWN, "")
    papers = [
        (replace(c, source="GradVac 2.2" if c.text in "bd" else "asked"), *r) for c, *r in judged
    ]
    end = "2 are of the two papers themselves, and of these 1 cannot be told and 0 were not run."
    assert summary(papers).endswith(end)
    assert summary(judged).startswith("Of 8 claims looked at, 1 hold, 2 do not hold, 1 show")
    assert "| c | x | **holds** | **does not hold** |" in table(judged)


PAPER = {  # Wang et al. 2021, table 1: BLEU on average out of English and into it
    "joint": (22.48, 25.61),
    "gradnorm": (20.70, 25.71),
    "mgda": (20.37, 25.65),
    "pcgrad": (22.65, 25.79),
    "pcgrad-all-layer": (22.87, 25.93),
    "gradvac-fixed": (22.99, 25.85),
    "gradvac-whole-model": (23.30, 25.99),
    "gradvac-all-layer": (23.89, 26.34),
}
LEVELS = {  # the means of French and Czech, and of Hindi and Turkish
    ("bilingual", "high"): (33.28, 32.775),
    ("bilingual", "low"): (7.77, 11.275),
    ("joint", "high"): (28.73, 30.975),
    ("joint", "low"): (16.23, 20.245),
}


def test_claims_of_table_1_are_those_of_the_paper():
    for column, side in enumerate(("from-en", "to-en")):
        for text, a, b, level in (*TABLE1, *WEIGHTS[side]):
            if "time" in text:  # the paper says nothing of time
                continue
            one, other = (row.removesuffix("-tokens").removesuffix("-8e-3") for row in (a, b))
            if "bilingual" in (one, other):
                better = LEVELS[one, level][column] - LEVELS[other, level][column]
            else:
                better = PAPER[one][column] - PAPER[other][column]
            assert better > 0, (side, text)
