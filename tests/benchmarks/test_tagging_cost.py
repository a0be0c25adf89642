"""The table of costs of tagging: its rows, and that its paths compute the same gradient."""

import json
import sys

import pytest
import torch

pytest.importorskip("transformers")
from benchmarks import tagging_cost


def test_the_rows_have_the_promised_keys(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    flags = f"--quick --tasks 3 --sentences 4 --rounds 1 --json {out} --paths LibMTL"
    monkeypatch.setattr(sys, "argv", ["tagging_cost.py", *flags.split()])
    threads = torch.get_num_threads()
    try:
        tagging_cost.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())
    assert [row["path"] for row in rows] == ["plain", "LibMTL's way whole_model GradVac"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
    assert all((row["K"], row["tokens"]) == (3, 128) for row in rows)


def test_both_engines_and_the_whole_loss_agree():
    """Without dropout both leave the same gradient; losses of the tasks add up to plain's."""
    found = []
    for path in ("single_pass all_layer GradVac", "per_task all_layer GradVac"):
        s = tagging_cost.tagging(3, 6 * tagging_cost.SENTENCE, "quick", False, "cpu")
        s.model.eval()
        tagging_cost.PATHS[path](s)()
        found.append([p.grad for p in s.model.parameters()])
        total = torch.stack(s.task_losses()).sum()
        torch.testing.assert_close(total, s.losses()[0].sum())
    assert any(g.abs().max() > 1e-4 for g in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
