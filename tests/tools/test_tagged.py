"""Collected runs of tagging give the numbers of `gradvac compare`."""

import json
import sys
from pathlib import Path

import pytest

from tools.evidence.claims import claims
from tools.evidence.collect import main, tagged
from tools.evidence.files import Evidence
from tools.evidence.tables import languages
from tools.evidence.tagged import as_comparison

ROOT = Path(__file__).parents[2]


def runs_of(tree):
    """What `collect tagged` keeps of the runs that a comparison was made of."""
    found = {}
    for r in tree["records"]:
        if r["kind"] == "direction":
            for seed, value in zip(tree["costs"][r["row"]]["seeds"], r["values"], strict=True):
                run = found.setdefault((r["row"], seed), {"variant": r["row"], "seed": seed})
                run.setdefault(r["metric"], {})[r["column"]] = value
    for (row, _), run in found.items():
        run |= {key: tree["costs"][row][key] for key in ("tokens", "cpu_seconds")}
    return {"study": "tagged", "runs": list(found.values())[::-1]}


@pytest.mark.parametrize("name", ["table3-ner", "table9-pos"])
def test_the_numbers_are_those_of_compare(name):
    kept = json.loads((ROOT / "evidence" / f"{name}-small.json").read_text(encoding="utf-8"))
    ours = as_comparison(runs_of(kept))
    assert ours["baseline"] == kept["baseline"]
    assert ours["averages"]["avg"] == kept["averages"]["avg"]
    for row, cost in ours["costs"].items():
        assert cost["seeds"] == kept["costs"][row]["seeds"]
        assert cost["cost"] == pytest.approx(kept["costs"][row]["cost"])
    place = lambda r: (r["row"], r["metric"], r["column"])
    expected = {place(r): r for r in kept["records"]}
    assert len(ours["records"]) == 5 * 3 * 13
    for r in ours["records"]:
        same = expected[place(r)]
        assert r["kind"] == same["kind"] and r["seeds"] == same["seeds"]
        for key in ("mean", "half_width", "values"):
            assert r[key] == pytest.approx(same[key])


@pytest.mark.parametrize(
    ("name", "page", "heading", "metric"),
    [
        ("table3-ner", "tagging.md", "## Table 3 at this size", "F1"),
        ("table1-to-en", "table1.md", "## The tables", "chrF++"),
    ],
)
def test_the_table_of_languages_is_that_of_compare(name, page, heading, metric):
    """The pages have the tables that `gradvac compare` printed, with more columns."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").split(heading)[1]
    expected = text.split(f"### {metric}\n\n")[1].split("\n\n")[0]
    ours = languages(Evidence(ROOT / "evidence", "small"), name)
    if metric == "chrF++":  # a bilingual row, of several models, is not bold there
        expected, ours = (table.replace("**", "") for table in (expected, ours))
    cells = lambda table: [[c.strip() for c in x.split("|")[1:-1]] for x in table.splitlines()]
    further = {"F1": 1, "chrF++": 4}[metric]  # the cost; high, low, parameters and tokens
    assert [line[:-further] for line in cells(expected)] == cells(ours)
    assert ("\\*" in ours) == (metric == "chrF++")  # no tagger was better than joint training


def test_a_study_of_the_pretrained_encoder_is_read_beside_the_other(tmp_path):
    kept = json.loads((ROOT / "evidence" / "table3-ner-small.json").read_text(encoding="utf-8"))
    tree = runs_of(kept)
    (tmp_path / "table3-ner-real.json").write_text(json.dumps(tree), encoding="utf-8")
    rates = {"runs": [{"variant": "joint", "metric": "error", "seed": 4, "best": 1.0,
                       "learning_rate": 1e-4}]}  # fmt: skip
    (tmp_path / "table3-ner-rates-real.json").write_text(json.dumps(rates), encoding="utf-8")
    (tmp_path / "table3-ner-small.json").write_text(json.dumps(kept), encoding="utf-8")
    e = Evidence(tmp_path, "small")
    assert e.has("table3-ner-real") and e.has("table3-ner") and not e.has("table9-pos-real")
    assert e.rates("table3-ner-real") == {"joint": {1e-4: 1.0}}
    one, other = (
        e.gain(name, "joint", "mgda", "avg", "f1") for name in ("table3-ner-real", "table3-ner")
    )
    assert (one.value, one.half) == pytest.approx((other.value, other.half))
    assert one.beside.value == pytest.approx(other.beside.value)


def test_a_claim_is_judged_by_the_pretrained_encoder_once_it_has_both_methods(tmp_path):
    kept = json.loads((ROOT / "evidence" / "table9-pos-small.json").read_text(encoding="utf-8"))
    (tmp_path / "table9-pos-small.json").write_text(json.dumps(kept), encoding="utf-8")
    tree = runs_of(kept)
    own = {"joint": "joint", "pcgrad": "pcgrad", "mgda": "joint-5e-4"}
    tree["runs"] = [
        {**r, "variant": own[r["variant"]]} for r in tree["runs"] if r["variant"] in own
    ]
    (tmp_path / "table9-pos-real.json").write_text(json.dumps(tree), encoding="utf-8")
    found = {(c.study, c.text): c for c in claims(Evidence(tmp_path, "small"))}
    beats, below = "PCGrad beats joint training (POS)", "MGDA is below joint training (POS)"
    assert not found["table9-pos-real", beats].again and found["table9-pos", beats].again
    assert not found["table9-pos", below].again and ("table9-pos-real", below) not in found
    one, other = found["table9-pos-real", beats], found["table9-pos", beats]
    assert one.figure().value == pytest.approx(other.figure().value)
    same_rate = found["table9-pos-real", "... joint training at PCGrad's rate (POS)"]
    mgda = Evidence(tmp_path, "small").gain("table9-pos", "pcgrad", "mgda", "avg", "f1")
    assert same_rate.again and same_rate.figure().value == pytest.approx(mgda.value)


def test_what_is_kept_of_a_run(tagging_run):
    scores = json.loads((tagging_run / "scores.json").read_text(encoding="utf-8"))
    found = tagged(tagging_run)
    assert found["f1"] == {
        k: pytest.approx(v["f1"], abs=1e-5) for k, v in scores["directions"].items()
    }
    lines = [json.loads(x) for x in (tagging_run / "metrics.jsonl").read_text().splitlines()]
    best = min((x for x in lines if x["kind"] == "valid"), key=lambda x: x["error"])
    assert found["nll"] == {
        k: pytest.approx(best[f"nll/{k}"], abs=1e-5) for k in scores["directions"]
    }
    assert found["tokens"] == sum(x["tokens"] for x in lines if x["kind"] == "train")
    (tagging_run / "scores.json").unlink()
    assert tagged(tagging_run) is None


def test_a_later_run_replaces_one_at_another_learning_rate(tagging_run, tmp_path, monkeypatch):
    """A row has one rate: two runs of a seed would count twice."""
    sweep, out = tmp_path / "sweep", tmp_path / "tagged.json"
    (sweep / "joint").mkdir(parents=True)
    tagging_run.rename(sweep / "joint" / "seed-1")
    about = {"size": "small", "variants": ["joint"], "baseline": "joint", "front": []}
    (sweep / "sweep.json").write_text(json.dumps(about), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["x", "tagged", str(sweep), "--add", "--out", str(out)])
    main()
    tree = json.loads(out.read_text(encoding="utf-8"))
    (run,) = tree["runs"]
    earlier = {**tree, "runs": [run | {"learning_rate": 2 * run["learning_rate"]}]}
    out.write_text(json.dumps(earlier), encoding="utf-8")
    main()
    assert json.loads(out.read_text(encoding="utf-8")) == tree


@pytest.fixture
def tagging_run(tmp_path):
    from gradvac.experiment.tagging.evaluate import evaluate_tagging
    from tests.build import trained, write_recipe
    from tests.tagging.helpers import make_toy

    write_recipe(tmp_path, make_toy(tmp_path))
    run = trained(tmp_path, tmp_path / "run")
    evaluate_tagging(run)
    return run
