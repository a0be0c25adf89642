"""docs/plan.md is what tools/plan.py writes, but for the algebra, which it measures."""

import argparse
import re

import pytest

from tools import plan

ARGS = argparse.Namespace(flops=100, memory=2000, network=25, latency=10)
MEASURED = ("algebra ms", "step / plain: exchange hidden", "not hidden")


@pytest.fixture(scope="module")
def sizes():
    return plan.model_groups()


def written(name: str) -> str:
    found = re.search(
        rf"<!-- plan: {name} -->\n(.*?)\n<!-- end -->", plan.PAGE.read_text("utf-8"), re.DOTALL
    )
    assert found
    return found[1]


def cells(text: str) -> list[dict[str, str]]:
    head, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.split("\n")]
    return [{k: v for k, v in zip(head, row, strict=True) if k not in MEASURED} for row in rows]


def test_the_counted_columns_of_the_page_are_those_of_the_command(sizes):
    assert written("facts") == plan.facts(sizes, ARGS)
    assert written("memory") == plan.memory(sizes)
    found = plan.steps(sizes, dict.fromkeys(plan.LANGUAGES, 0.0), ARGS)
    assert cells(written("steps")) == cells(found)


def test_what_is_held_is_the_closed_form(sizes):
    """The largest group is the embedding: 64,000 rows of 1,024."""
    assert max(sizes.values()) == 64_000 * 1024
    bucket = sum(sizes.values()) // 16
    on_ranks = [(25, 25), (25, 1 + 25 / 64), (102, 102), (102, 1 + 102 / 64)]
    for row, (k, on_each) in zip(cells(written("steps")), 2 * on_ranks, strict=True):
        held = 4 * (k / 64 * 65_536_000 + on_each * (65_536_000 + 2 * bucket)) / 1e9
        assert row["task gradients held GB"] == f"{held:.2f}"
