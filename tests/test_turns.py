"""Turns leave no case out."""

import pytest

from tests import turns


@pytest.mark.parametrize(("n", "count"), [(2, 1), (3, 1), (3, 2), (4, 2), (5, 3)])
def test_every_case_has_a_turn(monkeypatch, n, count):
    seen = set()
    for turn in range(7, 7 + n):
        monkeypatch.setattr(turns, "TURN", turn)
        own = turns.by_turns(range(n), count)
        assert len(set(own)) == count
        seen |= set(own)
    assert seen == set(range(n))
