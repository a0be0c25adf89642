"""The arithmetic of the scaling benchmark against limits worked by hand."""

import math

import pytest

from benchmarks import scaling_ranks as bench

P, K, GROUPS = 1_000_000, 8, 4
RESULT = {
    "parameters": P,
    "groups": GROUPS,
    "tasks_per_rank": {"plain": 1, "spread": 8, "placed": 4, "sharded": 4},
    "cpu": {
        "plain, nothing sent": 2.0,
        "spread, nothing sent": 3.0,
        "placed, nothing sent": 2.5,
    },
}


def test_bytes_of_the_model_are_those_of_the_closed_form():
    half = P * 4 / 2  # two ranks
    small = GROUPS * K * (K + 1) * 8 + 1024  # Gram matrices, zero or not, and what ranks say first
    assert bench.model_bytes(RESULT, K, "plain") == (2 * half, 0)
    assert bench.model_bytes(RESULT, K, "spread") == (9 * half + small, 9 * half + small)
    assert bench.model_bytes(RESULT, K, "placed") == (5 * half + small, 5 * half + small)
    assert bench.model_bytes(RESULT, K, "sharded") == (6 * half + small, 4 * half + small)


def test_a_network_without_limits_leaves_the_work():
    for row in bench.simulate(RESULT, K, rate=1e30):
        on_each = min(K, 1 + K / row["ranks"])
        assert row["spread, hidden"] == row["spread, in turn"] == pytest.approx(1.5)
        assert row["placed, hidden"] == pytest.approx((2 + 0.5 * on_each / 4) / 2)


def test_a_network_that_is_all_there_is_leaves_the_bytes():
    rows = {row["ranks"]: row for row in bench.simulate(RESULT, K, rate=1.0)}
    # (K + 1) P to 2 P; Gram matrices add little.
    assert rows[1024]["spread, hidden"] == pytest.approx(9 / 2, rel=0.1)
    assert rows[1024]["placed, in turn"] == pytest.approx((2 + K / 1024) / 2, rel=0.2)
    assert all(row["spread, hidden"] > row["placed, hidden"] for row in rows.values())


def test_a_network_of_latency_alone_leaves_the_messages():
    (row, *_) = bench.simulate(RESULT, K, rate=1e30, latency=1e9)
    # A bucket is exchanged, summed in two rounds and gathered; plain training sums one bucket. The
    # hosts send one message a step.
    buckets = math.ceil(P / math.sqrt(P * 8 * 2**16))
    assert buckets == 2
    for path in ("spread, hidden", "placed, hidden", "placed, in turn"):
        assert row[path] == pytest.approx((4 * buckets + 1) / 2)
