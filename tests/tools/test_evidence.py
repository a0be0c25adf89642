"""What the page of evidence says is what the files in evidence/ hold, and follows from them."""

import json
import math
import re
import statistics
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.recipe.variants import row_of
from tools.evidence.__main__ import CITING, TEMPLATES, cited
from tools.evidence.claims import claims
from tools.evidence.cost import empty_corpus
from tools.evidence.figures import Absent, seeds
from tools.evidence.files import Choice, Evidence
from tools.evidence.numbers import fresh, marks, number
from tools.evidence.page import page
from tools.numbers import LANGUAGES as NUMBERS

ROOT = Path(__file__).parents[2]


def kept(folder, name, tree):
    (folder / f"{name}-small.json").write_text(json.dumps(tree), encoding="utf-8")
    return Evidence(folder, "small")


def comparison(**values):
    """A comparison of rows whose NLL of three seeds is given."""
    return {
        "averages": {"avg": ["en-fr"]},
        "costs": {row: {"seeds": [1, 2, 3], "cost": 1.0} for row in values},
        "records": [
            {"row": row, "metric": "nll", "column": "avg", "values": list(v)}
            for row, v in values.items()
        ],
    }


def test_an_interval_over_seeds_is_students():
    figure = seeds([1.0, 2.0, 4.0], "nll")
    half = 4.302653 * statistics.stdev([1, 2, 4]) / math.sqrt(3)  # t of two degrees, from a table
    assert figure.value == pytest.approx(7 / 3)
    assert (figure.low, figure.high) == pytest.approx((7 / 3 - half, 7 / 3 + half), abs=1e-5)
    with pytest.raises(Absent):
        seeds([1.0], "nll")


def test_a_gain_is_taken_seed_by_seed_and_lower_nll_is_better(tmp_path):
    e = kept(tmp_path, "x", comparison(own=[3.0, 4.0, 5.0], base=[3.1, 4.2, 5.3]))
    figure = e.gain("x", "own", "base")
    assert figure.value == pytest.approx(0.2) and figure.n == 3
    assert figure.high - figure.low == pytest.approx(2 * 4.302653 * 0.1 / math.sqrt(3), abs=1e-5)
    assert e.gain("x", "base", "own").value == pytest.approx(-0.2)
    with pytest.raises(Absent, match="none"):
        e.gain("x", "none", "base")


def test_a_test_on_each_seed_is_combined_by_majority(tmp_path):
    test = {"side": "any-en", "part": "encoder", "question": "same family"}
    runs = [
        {"variant": "any-en", "seed": n, "tests": [{**test, "r": r, "p": p, "n": 300}]}
        for n, (r, p) in enumerate([(0.3, 0.001), (0.2, 0.02), (0.1, 0.5)])
    ]
    figure = kept(tmp_path, "geometry", {"runs": runs}).mantel(
        "any-en", "any-en", "encoder", "same family"
    )
    assert figure.value == pytest.approx(0.2)
    assert figure.p == pytest.approx(0.02 * 3 / 2)  # the second smallest of three, times K / r
    # z of p: 3.090 and 2.054, none for 0.5; the quantiles of 0.05 * 2 / 3 and of 0.8
    assert figure.seen == pytest.approx((0.3 / 3.090 + 0.2 / 2.054) / 2 * (1.834 + 0.842), rel=1e-3)
    assert figure.takes == "about 66 languages for r = 0.1; here 25"  # 25 * 0.2603 / 0.1


def test_partners_are_correlated_over_languages_not_over_runs(tmp_path):
    runs = [
        {
            "partner": code,
            "similarity": {"whole_model": x + noise},
            "scores": {"nll": 5 - x - noise, "bleu": 3.0},
            "tokens": 9,
        }
        for code, x in (("es", 0.5), ("de", 0.3), ("hi", 0.1), ("kk", 0.0))
        for noise in (-0.01, 0.01)
    ]
    figure = kept(tmp_path, "partners", {"runs": runs}).partners("whole_model")
    assert figure.beside is not None and math.isnan(figure.value)  # BLEU does not vary
    assert figure.beside.value == pytest.approx(1.0) and figure.beside.n == 4
    # 2 of 4! orders have |r| as large: the one seen, and none that is its mirror image but itself
    assert figure.beside.p == pytest.approx(1 / 24, abs=0.01)


def test_partners_given_the_tokens_is_the_partial_correlation(tmp_path):
    random = np.random.default_rng(1)
    tokens, cosine, nll = random.normal(size=(3, 8)) + random.normal(size=8)
    runs = [
        {
            "partner": str(n),
            "similarity": {"whole_model": cosine[n]},
            "scores": {"nll": nll[n], "bleu": n},
            "tokens": tokens[n],
        }
        for n in range(8)
    ]
    figure = kept(tmp_path, "partners", {"runs": runs}).partners("whole_model", same_tokens=True)
    xy, xt, yt = (
        np.corrcoef(a, b)[0, 1] for a, b in ((cosine, -nll), (cosine, tokens), (-nll, tokens))
    )
    partial = (xy - xt * yt) / math.sqrt((1 - xt**2) * (1 - yt**2))
    assert figure.beside.value == pytest.approx(partial)


def a_front(mean, rows=("cats",)):
    place = {"swept": False, "seeds": {"1": 0, "2": 0}, "distance": {"value": 0.1}}
    place["distance"]["half_width"] = 0.2
    ends = [{"row": f"t{n}", "swept": True, "mean": m} for n, m in ((1, (2, 4)), (5, (3, 3)))]
    places = [{**place, "row": row, "mean": mean} for row in rows]
    tree = {"baseline": "t1", **comparison(t1=[3.0], cats=[2.0])}
    return tree | {
        "fronts": [{"metric": "bleu", "rows": []}, {"metric": "nll", "rows": ends + places}]
    }


def test_the_front_is_that_of_nll(tmp_path):
    figure = kept(tmp_path, "imbalance", a_front((2.5, 3.2))).front("cats")
    assert (figure.value, figure.low, figure.high, figure.n) == pytest.approx((0.1, -0.1, 0.3, 2))
    assert figure.flaws == ()


@pytest.mark.parametrize("mean", [(1.9, 4.5), (3.5, 2.9)])
def test_beyond_the_last_point_of_the_sweep_the_distance_may_be_smaller(mean, tmp_path):
    (flaw,) = kept(tmp_path, "imbalance", a_front(mean)).front("cats").flaws
    assert not flaw.larger and "beyond" in flaw.words


def test_flaws_are_rates_at_the_border_and_more_tokens(tmp_path):
    tree = comparison(own=[3.0] * 3, base=[3.1] * 3)
    tree["costs"]["own"] |= {"tokens": 400, "parameters": 9}
    tree["costs"]["base"] |= {"tokens": 100, "parameters": 9}
    kept(tmp_path, "x", tree)
    runs = [
        {"variant": "own", "seed": seed, "learning_rate": rate, "best": best}
        for seed in (4, 5)
        for rate, best in ((0.1, 3.0), (0.2, 2.9), (0.4, 2.7))
    ]
    e = kept(tmp_path, "x-rates", {"runs": runs})
    assert e.choices("x") == {"own": Choice(0.4, 2, "largest", pytest.approx(0.2))}
    rate, tokens = e.gain("x", "own", "base").flaws
    assert rate.larger and rate.words == "the rate of own is the largest tried: try larger ones"
    assert not tokens.larger and tokens.words == "own had 4.0 times the tokens: give both as much"
    assert [flaw.larger for flaw in e.gain("x", "base", "own").flaws] == [False, True]
    (alone,) = e.gain("x", "own", "base", given=("tokens",)).flaws
    assert alone == rate


def test_rates_are_by_row_and_a_row_of_several_models_has_their_mean(tmp_path):
    runs = [
        {"variant": variant, "seed": 4, "learning_rate": rate, "best": best}
        for rate, *of in ((0.004, 3.0, 2.0, 4.0), (0.002, 3.5, 1.0, 4.0))
        for variant, best in zip(("joint", "two/a", "two/b"), of, strict=True)
    ]
    e = kept(tmp_path, "x-rates", {"runs": runs})
    assert e.rates("x") == {"joint": {0.002: 3.5, 0.004: 3.0}, "two": {0.002: 2.5, 0.004: 3.0}}
    text = page("{{rates: x}}", e, tmp_path, ".")
    assert "| joint | 3.500 | **3.000** |" in text and "| two | **2.500** | 3.000 |" in text
    assert "1 seed;" in text and "joint (the largest, 0.004), two (the smallest, 0.002)" in text
    again = [{**run, "seed": 5} for run in runs if run["variant"] == "joint"]
    kept(tmp_path, "y-rates", {"runs": runs + again})
    assert "Chosen on 2 seeds (on fewer: two);" in page("{{rates: y}}", e, tmp_path, ".")


def test_costs_are_those_of_the_runs_that_chose_the_rates_where_all_rows_have_some(tmp_path):
    tree = {"baseline": "joint", **comparison(joint=[3.0], two=[2.0])}
    for record in tree["records"]:
        record |= {"mean": 3.0, "half_width": None}
    assert kept(tmp_path, "x", tree).costs("x") == {"joint": 1.0, "two": 1.0}
    runs = [
        {"variant": variant, "learning_rate": rate, "cpu_seconds": seconds, "tokens": tokens}
        for rate in (0.1, 0.2)
        for variant, seconds, tokens in (("joint", 10.0, 100), ("two/a", 9, 50), ("two/b", 3, 50))
    ]
    e = kept(tmp_path, "x-rates", {"runs": runs})
    assert e.costs("x") == pytest.approx({"joint": 1.0, "two": 1.2})
    table = page("{{table: x}}", e, tmp_path, ".").splitlines()
    assert [line.split(" | ")[-1] for line in table[2:]] == ["1.00 |", "1.20 |"]


def test_hours_are_those_of_the_runs_that_kept_their_time(tmp_path):
    tree = {"costs": {"a": {"seeds": [1, 2, 3], "cpu_seconds": 1200.0}, "b": {"seeds": [1, 2]}}}
    kept(tmp_path, "x", tree)
    kept(tmp_path, "x-rates", {"runs": [{"cpu_seconds": 900.0}, {"cpu_seconds": None}] * 2})
    kept(tmp_path, "y", {"runs": [{"variant": "a"}]})
    (tmp_path / "x-real.json").write_text(json.dumps({"runs": [{"cpu_seconds": 360.0}]}))
    text = page("{{hours}}", Evidence(tmp_path, "small"), tmp_path, ".")
    assert "| x | 3 | 1.0 | 2 | 0.5 |\n| x-real | 1 | 0.1 |  |  |\n\nTogether 1.6." in text
    assert text.endswith("Without a record of their own time: y.")


def test_what_is_not_there_is_said_to_be_not_run(tmp_path):
    text = page(
        "{{summary}}\n{{claims: cats}}\n{{table: cats}}", Evidence(tmp_path, "small"), tmp_path, "."
    )
    number = len({c.text for c in claims(Evidence(tmp_path, "small")) if not c.again})
    assert f"Of {number} claims looked at, 0 hold" in text and f"{number} were not run" in text
    assert "Not there yet: cats-small.json." in text


def test_table_1_from_models_that_translate_has_the_claims_of_table_1(tmp_path):
    rows = {"joint": [1.5, 1.7, 1.6], "pcgrad": [1.4, 1.5, 1.3], "mgda": [1.6, 1.9, 1.7]}
    tree = {"baseline": "joint", **comparison(**rows)}
    e = kept(tmp_path, "continued-to-en", tree)
    own = [c for c in claims(e) if c.study == "continued-to-en"]
    table = [c for c in own if c.source == "GradVac table 1"]
    texts = [f"{method} beats joint (into English)" for method in ("PCGrad", "MGDA")]
    assert [c.text for c in table] == texts
    assert [c.figure().value for c in table] == pytest.approx([0.2, -0.4 / 3])
    assert all(c.text.endswith("(into English, continued)") for c in own if c not in table)
    elsewhere = {c.text for c in claims(e) if c.study == "table1-to-en"}
    assert texts[0] in elsewhere


def test_another_test_of_a_claim_follows_it_and_no_two_claims_have_one_name():
    found = list(claims(Evidence(ROOT / "evidence", "small")))
    first = {claim.study: claim for claim in reversed(found)}
    own = {claim.text: claim.study for claim in found if not claim.again}
    elsewhere = {c.study: own[c.text] for c in first.values() if c.again}  # what it tests again
    assert elsewhere == {n: f"{n}-real" for n in ("table3-ner", "table9-pos")}
    assert any(claim.again for claim in found)
    mantel = [c for c in found if c.study == "geometry" and c.figure().kind == "mantel"]
    assert [c.again for c in mantel] == [False] + [True] * 7
    named = [(claim.study, claim.text) for claim in found if not claim.text.startswith("...")]
    assert len(named) == len(set(named))


def test_a_figure_within_a_sentence(tmp_path):
    e = kept(tmp_path, "x", comparison(own=[3.0, 4.0, 5.0], base=[3.1, 4.2, 5.3]))
    assert number("gain: x own base", e, []) == "0.200"
    assert number("interval: x own base avg nll 2", e, []) == "0.20 ± 0.25"
    with pytest.raises(ValueError, match="base is worse by"):
        number("gain: x base own", e, [])
    with pytest.raises(ValueError, match="no claim 'it holds' in cats"):
        number("claim: cats: it holds", e, [])
    line = "it is 9.9 ± 1.2<!-- interval: x own base avg nll 1 --> and 7<!-- gain: x own base -->."
    renewed = fresh(line, e, [])
    assert "it is 0.2 ± 0.2<!-- interval: x own base avg nll 1 --> and 0.200<!--" in renewed
    assert fresh(renewed, e, []) == renewed and marks(line) == 2


@pytest.mark.parametrize("template", TEMPLATES, ids=[file.stem for file in TEMPLATES])
def test_the_page_is_what_the_files_say(template, tmp_path):
    words = template.read_text(encoding="utf-8")
    text = page(words, Evidence(ROOT / "evidence", "small"), tmp_path, "images")
    there = (ROOT / "docs" / template.name).read_text(encoding="utf-8")
    assert text == there, "run make evidence"
    for picture in tmp_path.glob("*.png"):
        assert (ROOT / "docs" / "images" / picture.name).exists()


RATES = {
    "table1-from-en": "gradvac/table1-from-en.yaml",
    "table1-to-en": "gradvac/table1-to-en.yaml",
    "continued-to-en": "evidence/continued-to-en.yaml",
    "continued-from-en": "evidence/continued-from-en.yaml",
    "imbalance": "evidence/imbalance.yaml",
    "cats": "evidence/cats.yaml",
    "lab-table1-from-en": "lab/table1-from-en.yaml",
    "table3-ner": "tagging/table3-ner.yaml",
    "table9-pos": "tagging/table9-pos.yaml",
}


@pytest.mark.parametrize("name", RATES)
def test_every_row_had_the_same_rates_to_choose_from_and_has_the_best(name, tmp_path):
    tagging = RATES[name].startswith("tagging/")
    changes = [] if tagging else [f"data.corpus={empty_corpus(tmp_path)}"]
    for code in [] if tagging else NUMBERS:
        (tmp_path / "train" / f"en-{code}.tsv").touch()
    e = Evidence(ROOT / "evidence", "small")
    runs, rows = e.read(f"{name}-rates")["runs"], e.rates(name)
    tree = e.read(name)
    reported = {s for cost in tree.get("costs", {}).values() for s in cost["seeds"]}
    reported |= {run["seed"] for run in tree.get("runs", [])}
    assert len(reported) >= 3 and not reported & {run["seed"] for run in runs}
    shared = set.intersection(*map(set, rows.values()))
    further = {rate for own in rows.values() for rate in own} - shared
    # further rates where the best one was at the border of those that all rows had
    assert further == ({5e-4} if name == "continued-to-en" else set())
    if name.startswith("continued-"):
        assert shared == {1e-3, 2e-3, 4e-3}
        assert not any(choice.border for choice in e.choices(name).values())
    for variant in {run["variant"] for run in runs}:
        own = rows[row_of(variant)]
        file = ROOT / "recipes" / RATES[name]
        recipe = load_recipe(file, changes, size="small", variant=variant)
        assert recipe.training.learning_rate == min(own, key=own.__getitem__), variant


@pytest.mark.parametrize("name", ["table3-ner", "table9-pos"])
def test_the_pretrained_encoder_is_trained_at_the_best_rate_and_none_is_at_a_border(name):
    e = Evidence(ROOT / "evidence", "small")
    real, file = f"{name}-real", ROOT / "recipes" / "tagging" / f"{name}.yaml"
    reported = {seed for cost in e.read(real)["costs"].values() for seed in cost["seeds"]}
    assert len(reported) == 5 and not reported & {r["seed"] for r in e.read(real, "-rates")["runs"]}
    choices = e.choices(real)
    rows = [row for row in e.rows(real) if "-" not in row]  # others are at the rate of another row
    assert {"joint", "pcgrad", "gradvac"} <= set(rows)
    for row in rows:
        recipe = load_recipe(file, [], size="real", variant=row)
        choice = choices[row]
        assert recipe.training.learning_rate == choice.rate and choice.seeds > 1, row
        assert not choice.border, row


def test_every_file_is_listed_with_the_code_that_made_it():
    table = (ROOT / "evidence" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w*-]+\.json)`", table)
    every = [file.name for file in (ROOT / "evidence").glob("*.json")]
    assert [n for n in every if not any(fnmatch(n, pattern) for pattern in named)] == []
    assert [p for p in named if not any(fnmatch(n, p) for n in every)] == []


def test_pages_that_cite_the_evidence_have_its_figures():
    for file, text in cited(Evidence(ROOT / "evidence", "small")).items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: run make evidence"


@pytest.mark.parametrize("name", CITING)
def test_no_figure_of_a_study_is_typed_where_a_page_says_how_sure_it_is(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    shown = re.findall(r"(?:\*\*|\d)<!-- (?:gain|interval|lower|cost|tuning|claim|verdict): ", text)
    assert len(shown) == marks(text) > 0
    prose = "\n".join(x for x in text.splitlines() if not x.startswith(("|", "#")))
    assert not re.findall(r"\d ± \d[\d.]*(?!<|[\d.])", prose), "an interval without its source"
