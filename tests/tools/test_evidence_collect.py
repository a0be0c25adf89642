"""What is taken out of run folders, on folders whose numbers are known."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from gradvac.experiment.training.measuring import Measurement
from gradvac.experiment.view.run_view import load_runs
from gradvac.geometry.record import Frame, GramRecord, cosine
from tests.experiment.synthetic import make_run, write_json, write_lines
from tools.evidence.collect import curvature, curves, edits, geometry, main, partners, validation

TASKS = ("en-fr", "en-es", "en-hi", "en-sw")
SHAPES = {"encoder.layers.0.linear1.weight": [40, 5], "decoder.layers.1.linear1.weight": [40, 5]}


def frames():
    """Two checkpoints of four gradients in two layers."""
    random = np.random.default_rng(4)
    for step in (100, 200):
        j = random.normal(size=(2, 4, 30)) + random.normal(size=(2, 1, 30))
        yield step, np.einsum("gip,gjp->gij", j, j)


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path / "geometry-small" / "en-any" / "seed-1", "gradvac", TASKS)
    write_json(folder / "done.json", {})
    write_json(
        tmp_path / "geometry-small" / "sweep.json", {"variants": ["en-any"], "baseline": None}
    )
    measured = folder / "geometry" / "measured"
    for step, gram in frames():
        none = (0, 0)
        record = Frame(step, TASKS, tuple(SHAPES), gram, np.ones((2, 4)), none, none, none)
        GramRecord(measured).append(record)
    scripts = dict.fromkeys(("fr", "es", "sw"), "LATIN") | {"hi": "DEVANAGARI"}
    said = Measurement(list(TASKS), "parameter", 9, "text", True, "f", 0.1, SHAPES, scripts)
    write_json(measured / "measured.json", dataclasses.asdict(said))
    return folder


def test_geometry_has_means_of_cosines_by_part_layer_and_step(run):
    side = geometry(run)["sides"]["en-any"]
    apart = ~np.eye(4, dtype=bool)
    order = [TASKS.index(task) for task in side["tasks"]]
    both = [cosine(gram)[:, order][:, :, order] for _, gram in frames()]
    mean = np.mean(both, 0)
    assert side["parts"]["encoder"] == pytest.approx(mean[0][apart].mean())
    assert side["layers"]["decoder.layers.1"] == pytest.approx(mean[1][apart].mean())
    assert [step["step"] for step in side["steps"]] == [100, 200]
    of_step = side["steps"][1]["layers"]["encoder.layers.0"]
    assert of_step == pytest.approx(both[1][0][apart].mean())
    whole = np.mean([cosine(gram.sum(0)) for _, gram in frames()], 0)
    assert side["parts"]["whole_model"] == pytest.approx(whole[apart].mean())
    fr, hi = (side["tasks"].index(task) for task in ("en-fr", "en-hi"))
    assert side["last"]["fr hi decoder.layers.1"] == pytest.approx(both[1][1, fr, hi], abs=1e-5)
    assert side["matrices"]["encoder"][fr][hi] == pytest.approx(mean[0, fr, hi], abs=1e-4)


def test_a_sweep_becomes_one_file(run, tmp_path, monkeypatch):
    sweep, out = tmp_path / "geometry-small", tmp_path / "geometry.json"
    monkeypatch.setattr(sys, "argv", ["x", "geometry", str(sweep), "--out", str(out)])
    main()
    tree = json.loads(out.read_text(encoding="utf-8"))
    assert [(r["variant"], r["seed"]) for r in tree["runs"]] == [("en-any", 1)]
    assert tree["recipes"]["en-any"]["method"]["name"] == "gradvac"
    assert str(tmp_path) not in out.read_text(encoding="utf-8")


def test_curvature_has_the_cosine_of_summed_gradients_of_levels(run):
    lines = [{"step": 100, "group": "sum", "value": 3.5, "residual": 0.0, "products": 9}]
    write_lines(run / "geometry" / "measured" / "curvature.jsonl", lines)
    tokens = dict(zip(TASKS, (600, 300, 90, 10), strict=True))
    metrics = run / "metrics.jsonl"
    of_run = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    write_lines(metrics, [{**line, "task_tokens": tokens} for line in of_run])
    found = curvature(run)
    assert found["eigenvalues"] == [{"step": 100, "group": "sum", "value": 3.5}]
    gram = next(frames())[1].sum(0)  # fr, es high; hi, sw low
    high, low, across = gram[:2, :2].sum(), gram[2:, 2:].sum(), gram[:2, 2:].sum()
    assert found["high_low_cosine"][100] == pytest.approx(across / np.sqrt(high * low))
    share = np.array([0.6, 0.3, 0.09, 0.01])
    pull = gram @ share / (share @ gram @ share)
    wanted = {"high": pull[:2].mean(), "low": pull[2:].mean()}
    assert found["pull"][100] == pytest.approx(wanted, abs=1e-4)


def test_edits_are_shares_of_comparisons(run):
    found = edits(run)
    frames_ = list(GramRecord(run / "geometry"))
    last = frames_[-4:]  # 40 frames in ten stretches
    share = sum(sum(f.edits) for f in last) / sum(sum(f.comparisons) for f in last)
    assert len(found["steps"]) == 10 and found["gradvac"][-1] == pytest.approx(share)


def test_validation_has_the_best_that_a_run_says_it_had(run):
    done = {"metric": "error", "best": {"value": 32.9154738, "step": 420}}
    write_json(run / "done.json", done)
    found = validation(run)
    recipe = load_runs([run])[0].recipe
    of_run = {key: found.pop(key) for key in ("learning_rate", "tokens", "cpu_seconds")}
    assert found == {"metric": "error", "best": 32.91547, "step": 420}
    assert of_run["learning_rate"] == recipe.training.learning_rate
    assert of_run["tokens"] > 0 and of_run["cpu_seconds"] is None  # a synthetic run has no clock


def test_partners_have_the_other_language_and_the_scores_of_the_first(tmp_path):
    folder = make_run(tmp_path / "with-hi", "static", ("en-fr", "en-hi"))
    valid = [(2.5, 1.0), (2.0, 1.5), (2.2, 1.2)]  # the best is that of all directions
    lines = [
        {"kind": "valid", "step": n, "nll": a, "nll/en-fr": b} for n, (a, b) in enumerate(valid)
    ]
    shown = dict.fromkeys(("loss", "nll", "gradient_norm", "learning_rate"), 1.0) | {"tokens": 1}
    tokens = {"task_nll": {}, "task_tokens": {"en-fr": 300, "en-hi": 9}}
    lines += [{"kind": "train", "step": n, **shown, **tokens} for n in (1, 2)]
    write_lines(folder / "metrics.jsonl", lines)
    found = partners(folder)
    assert found["scores"]["nll"] == 1.5 and found["tokens"] == 2 * 300
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert found["partner"] == "hi"
    assert found["scores"]["bleu"] == scores["directions"]["en-fr"]["bleu"]
    cosines = [cosine(f.gram.sum(0))[0, 1] for f in GramRecord(folder / "geometry")]
    assert found["similarity"]["whole_model"] == pytest.approx(np.mean(cosines))


def test_curves_have_every_validation_and_the_share_of_exact_translations(run):
    found = curves(run)
    valid = load_runs([run])[0].valid
    assert found["steps"] == [line["step"] for line in valid] and len(valid) == 8
    assert found["nll"]["avg"] == pytest.approx([line["nll"] for line in valid], abs=1e-5)
    assert found["nll"].keys() == {"avg", *found["levels"].values()}
    assert found["weights"] == found["constraint"] == {}  # its lines have none
    file = run / "translations.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert set(found["exact"].values()) == {0.0}  # each of them ends in "by gradvac"
    for line in lines[:5]:
        line["hypothesis"] = line["reference"]
    write_lines(file, lines)
    assert curves(run)["exact"][lines[0]["direction"]] == pytest.approx(5 / 23, abs=1e-5)
    (run / "scores.json").unlink()
    assert curves(run) is None


def test_curves_of_cats_have_its_curvature_by_line_of_the_log(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    for at, line in enumerate(train):
        line["method"] = {"curvature": 1 - 0.1 * at, "multiplier": 0.3 * at, "conflicts": {"a": 1}}
    write_lines(run / "metrics.jsonl", lines)
    found = curves(run)["constraint"]
    assert found.keys() == {"curvature", "multiplier"} and len(train) > 2
    assert found["curvature"] == pytest.approx([1 - 0.1 * at for at in range(len(train))])
    assert found["multiplier"] == pytest.approx([0.3 * at for at in range(len(train))])


def test_runs_of_another_time_are_kept_if_asked(run, tmp_path, monkeypatch, capsys):
    sweep, out = tmp_path / "geometry-small", tmp_path / "validation.json"
    done = {"metric": "nll", "best": {"value": 2.5, "step": 400}}
    write_json(run / "done.json", done)

    def collected(*flags):
        monkeypatch.setattr(sys, "argv", ["x", "validation", str(sweep), "--out", str(out), *flags])
        main()
        return [(r["variant"], r["seed"], r["best"]) for r in json.loads(out.read_text())["runs"]]

    assert collected("--add") == [("en-any", 1, 2.5)]  # there is nothing to keep yet
    tree = json.loads(out.read_text(encoding="utf-8"))
    tree["runs"].insert(0, {**tree["runs"][0], "variant": "of before", "seed": 7})
    tree["runs"].append({**tree["runs"][1], "seed": 2})
    write_json(out, tree)
    write_json(run / "done.json", done | {"best": {"value": 2.0, "step": 400}})
    here = [("of before", 7, 2.5), ("en-any", 1, 2.0), ("en-any", 2, 2.5)]
    assert collected("--add") == here and "2 runs kept" in capsys.readouterr().out
    write_json(out, tree | {"study": "edits"})
    with pytest.raises(SystemExit):
        collected("--add")
    assert collected() == [("en-any", 1, 2.0)]


def test_a_measurement_of_another_folder_and_several_sweeps_become_one_file(
    run, tmp_path, monkeypatch, capsys
):
    (run / "geometry" / "measured").rename(run / "geometry" / "in-domain")
    sweep, out = str(tmp_path / "geometry-small"), tmp_path / "geometry.json"
    flags = ["--measured", "geometry/in-domain", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["x", "geometry", sweep, sweep, *flags])
    main()
    tree = json.loads(out.read_text(encoding="utf-8"))
    assert [(r["variant"], r["seed"]) for r in tree["runs"]] == [("en-any", 1)] * 2
    assert tree["runs"][0]["sides"]["en-any"]["tasks"]
    monkeypatch.setattr(sys, "argv", ["x", "edits", sweep, *flags])
    with pytest.raises(SystemExit):
        main()
    assert "--measured is for geometry" in capsys.readouterr().err
