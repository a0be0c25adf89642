"""A part of the matrix of models, adapters and operators: nothing is wrong, nothing crashes.

All of it is `python -m tools.exactness`; the part is that of the turn. Each takes some ten seconds
on an idle core.
"""

import pytest

from tests.turns import TURN
from tools.exactness.report import BAD
from tools.exactness.run import Part, run

pytest.importorskip("transformers")
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
