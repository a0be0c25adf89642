"""Held-out text is found again exactly where a literal comparison finds it."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from gradvac.text.heldout import HeldOut, NearIndex, bag

WORDS = st.lists(st.sampled_from("the old cat sat on a new red mat by two".split()), max_size=9)
TEXTS = st.lists(WORDS.map(" ".join), max_size=12)


def near(one: str, other: str) -> bool:
    """Jaccard of 4/5 or more, in exact numbers."""
    union = bag(one) | bag(other)
    return bool(union) and Fraction(len(bag(one) & bag(other)), len(union)) >= Fraction(4, 5)


@settings(max_examples=100)
@given(TEXTS, WORDS.map(" ".join))
def test_the_index_finds_what_comparing_with_all_finds(texts: list[str], text: str) -> None:
    expected = next((n for n, other in enumerate(texts) if near(text, other)), None)
    assert NearIndex(texts).find(text) == expected


def test_each_reason() -> None:
    held = HeldOut([{"en": "Close the old window now, please", "fr": "Fermez la fenêtre"}])
    assert held.reason("fr", "close THE old window (now) please!", "x") == "English side held out"
    assert (
        held.reason("fr", "Close the window now, please", "x") == "English side near a held-out one"
    )
    assert held.reason("fr", "Shut it", "fermez la fenêtre.") == "translation held out"
    assert held.reason("de", "Shut it", "fermez la fenêtre.") is None
    assert held.reason("fr", "Close the window", "Ferme la fenêtre") is None
    assert held.reason("fr", "12 %", "...") is None
