"""A part of the matrix of models, adapters and operators: nothing is wrong, nothing crashes.

All of it is `python -m tools.exactness`. Which part is tried follows from a number in the
environment, GRADVAC_EXACTNESS_TURN, 0 without it: in CI the number of commits, so that every commit
tries another part and the same commit always the same one. Each takes some ten seconds on an idle
core.
"""

import os

import pytest

from tools.exactness.report import BAD
from tools.exactness.run import Part, run

pytest.importorskip("transformers")
TURN = int(os.environ.get("GRADVAC_EXACTNESS_TURN", "0"))
PARTS = {"models": 16, "adapters": 5, "operators": 24}


@pytest.mark.parametrize("kind", PARTS)
def test_this_turns_part_is_exact_or_refused(kind):
    if kind == "adapters":
        pytest.importorskip("peft")
    n = PARTS[kind]
    rows = run(kind, Part(TURN % n + 1, n), quick=True)
    assert len(rows) > (5 if kind == "adapters" else 15)
    assert not [row.line for row in rows if row.outcome in BAD]
    assert any(row.outcome == "exact" for row in rows)
