"""The table of costs: its rows, its refusal without a GPU, and the model behind the curves."""

import argparse
import json
import shlex
import sys

import pytest
import torch

from benchmarks import scaling, step_cost
from tests.turns import by_turns


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(main, monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["benchmark", *shlex.split(flags)])
    main()


def test_the_rows_have_the_promised_keys(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    flags = "--quick --tokens 64 --tasks 2 --rounds 1 --paths 'all_layer GradVac' passes"
    run(step_cost.main, monkeypatch, f"{flags} --json {out}")
    rows = json.loads(out.read_text())
    paths = [row["path"] for row in rows]
    assert paths[0] == "plain" and "two passes whole_model GradVac" in paths
    assert {"single_pass all_layer GradVac", "per_task all_layer GradVac"} <= set(paths)
    printed = capsys.readouterr().out.splitlines()
    told = [line for line in printed if line in ("chosen: single pass", "chosen: per task")]
    assert len(told) == 1 and "chosen all_layer GradVac" in paths
    assert len(printed) == 2 + len(rows)
    for row in rows:
        promised = {"path", "K", "tokens", "ratio_cpu", "ratio_wall", "peak_extra_mib"}
        assert promised <= set(row)
        assert (row["K"], row["tokens"]) == (2, 64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_nothing_is_said_to_be_measured(monkeypatch):
    with pytest.raises(SystemExit, match="nothing was measured"):
        run(step_cost.main, monkeypatch, "--gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_step_of_a_large_model_on_a_gpu(tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    flags = f"--gpu --models big --tokens 1024 --tasks 4 --rounds 1 --json {out} --paths all_layer"
    run(step_cost.main, monkeypatch, flags)
    assert all(row["peak_extra_mib"] > 0 for row in json.loads(out.read_text()))


def test_the_rows_for_a_gpu_are_those_of_the_prediction():
    """On a CPU and small, so that the code has run before there is a GPU; by turns one model."""
    args = argparse.Namespace(
        models=by_turns(["big", "7B"]), tasks=[2], tokens=[1024], rounds=1, sorted=False,
        paths=["single_pass", "one graph"],
    )  # fmt: skip
    rows = step_cost.on_gpu(args, "cpu", {"big": "quick", "7B": "tiny"})
    paths = step_cost.PREDICTED[:4]
    assert [(r["model"], r["path"]) for r in rows] == [(m, p) for m in args.models for p in paths]
    assert set(step_cost.PREDICTED) <= set(step_cost.PATHS)


def test_the_models_for_scaling_have_the_parameters_they_say():
    d, layers, vocabulary = 64, 3, 10_000
    attention, feed_forward, norm = 4 * (d * d + d), 8 * d * d + 5 * d, 2 * d
    encoder = layers * (attention + feed_forward + 2 * norm) + norm
    decoder = layers * (2 * attention + feed_forward + 3 * norm) + norm
    assert scaling.parameters("d=64") == encoder + decoder + vocabulary * d


def test_the_fit_finds_the_constants_of_a_machine_that_follows_the_model():
    rate, bandwidth = 5e10, 8e9
    rows = []
    for parameters, k, tokens in [(1e6, 2, 512), (1e7, 8, 1024), (1e8, 64, 4096)]:
        seconds = 6 * parameters * tokens / rate
        ratio = 1 + 3 * 4 * k * parameters / bandwidth / seconds
        rows.append(dict(parameters=parameters, K=k, tokens=tokens, ratio_cpu=ratio,
                         plain_seconds_cpu=seconds))  # fmt: skip
    assert scaling.fit(rows) == pytest.approx((rate, bandwidth))
    assert scaling.predicted(rows[1], rate, bandwidth) == pytest.approx(rows[1]["ratio_cpu"])
