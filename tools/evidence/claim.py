"""A claim of a paper, and how it is decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .figures import Figure


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper: the study it belongs to, where it stands, what decides it.

    ``again`` marks another test of the claim above it, which is not counted; ``of`` is what alone
    the result is about, where that is less than what the sentence says.
    """

    study: str
    text: str
    source: str
    figure: Callable[[], Figure]
    again: bool = False
    of: str = ""
