"""The decoding benchmark runs, and in it all engines say the same in greedy search."""

import json
import sys

import pytest
import torch

from benchmarks import decoding


@pytest.mark.filterwarnings("ignore:Recommended.*sacremoses:UserWarning")
def test_the_benchmark_runs_and_its_engines_agree(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    flags = ["--sentences", "16", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["decoding.py", *flags])
    threads = torch.get_num_threads()
    try:
        decoding.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())
    names = ["gradvac", "transformers", "ctranslate2 float32", "ctranslate2 int8"]
    assert [(row["engine"], row["beam"]) for row in rows] == [(n, b) for b in (1, 5) for n in names]
    assert [row["same"] for row in rows[:3]] == [row["sentences"] for row in rows[:3]] == [16] * 3
    assert rows[0]["speed_cpu"] == rows[4]["speed_cpu"] == 1
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)
