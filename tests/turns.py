"""Tests done by turns, where all of them in every commit would take too long.

The turn is a number in the environment, GRADVAC_EXACTNESS_TURN, 0 without it: in CI the number of
commits, so that every commit does another part and the same commit always the same one.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
TURN = int(os.environ.get("GRADVAC_EXACTNESS_TURN", "0"))


def by_turns(cases: Sequence[T], count: int = 1) -> list[T]:
    """The ``count`` cases of this turn; all of them have one within ``len(cases)`` turns."""
    return [cases[(TURN * count + n) % len(cases)] for n in range(count)]
