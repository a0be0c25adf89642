"""The table of host cost: its rows and its counts."""

import json

import pytest

from tests.engine.counted import run_alone

pytest.importorskip("transformers")
FLAGS = "--quick --tasks 2 16 --rounds 1 --json".split()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("host_cost") / "rows.json"
    printed = run_alone("benchmarks.host_cost", *FLAGS, str(out))
    found = json.loads(out.read_text())
    assert len(printed.splitlines()) == 2 + len(found)
    return found


def test_the_rows_have_the_promised_keys(rows):
    models = "transformer", "nn.Transformer", "bert", "llama"
    assert [(row["model"], row["K"]) for row in rows] == [(m, k) for m in models for k in (2, 16)]
    assert all(row["cpu_ratio"] > 1 and row["host_ratio"] > 1 for row in rows)


def test_the_host_waits_at_most_once(rows):
    assert {row["syncs"] for row in rows} == {1}
    assert {row["lazy_syncs"] for row in rows} == {0}


def test_launches_are_those_of_the_ratio(rows):
    for row in rows:
        for kind in ("", "lazy_"):
            ratio = row[f"{kind}launches"] / row["plain_launches"]
            assert row[f"{kind}launch_ratio"] == pytest.approx(ratio, abs=1e-3)
