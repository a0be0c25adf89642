"""The table of costs has a row for every registered method, and says what one cost."""

import json
import sys

import pytest
import torch

from benchmarks import method_cost
from gradvac.methods import METHODS


def test_every_registered_method_is_measured():
    titles = list(method_cost.paths(None))
    assert titles[0] == "plain"
    assert {title.split()[0] for title in titles[1:]} == set(METHODS)


def test_the_benchmark_runs_and_writes_its_rows(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    flags = "--quick --tokens 64 --tasks 2 --rounds 1 --methods joint gradvac --threads 1"
    monkeypatch.setattr(sys, "argv", ["method_cost.py", *flags.split(), "--json", str(out)])
    threads = torch.get_num_threads()
    try:
        method_cost.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())
    assert [row["path"] for row in rows] == ["plain", "joint", "gradvac"]
    assert [row["path"] for row in rows] == [
        line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]
    ]
    plain, *others = rows
    assert plain["ratio_cpu"] == plain["ratio_wall"] == 1
    for row in others:
        assert row["ratio_cpu"] == pytest.approx(row["seconds_cpu"] / plain["seconds_cpu"], 1e-2)
