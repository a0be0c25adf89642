"""Claims about the similarity of gradients, of any study with the variants of geometry.yaml."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from .claim import Claim
from .figures import Figure
from .files import Evidence

_HALVES = ("encoder", "decoder")


def similarity(e: Evidence, study: str) -> Iterator[Claim]:
    """Sides, halves, layers, batches and models: whose gradients agree more."""

    def add(text: str, source: str, figure: Callable[[], Figure], again: bool = False) -> Claim:
        return Claim(study, text, f"GradVac {source}", figure, again)

    part = lambda side, name: lambda run: run["sides"][side]["parts"][name]
    side = lambda s: part(s, "whole_model")
    yield add(
        "Out of English gradients agree less than into English, in one model",
        "2.2, fig. 2a",
        lambda: e.per_seed(
            study, "both", None, lambda r: side("any-en")(r) - side("en-any")(r), "cosine"
        ),
    )
    gap = lambda s: lambda run: part(s, "decoder")(run) - part(s, "encoder")(run)

    def rise(s: str) -> Callable[[dict[str, Any]], float]:
        def of(run: dict[str, Any]) -> float:
            layers = run["sides"][s]["layers"]
            encoder, decoder = ([n for n in layers if n.startswith(half)] for half in _HALVES)
            return layers[decoder[-1]] - layers[encoder[0]]

        return of

    for s, words, more, sign in (("any-en", "Into", "more", 1), ("en-any", "Out of", "less", -1)):
        signed = lambda of, s=s, sign=sign: e.per_seed(
            study, s, None, lambda run: sign * of(s)(run), "cosine"
        )
        yield add(
            f"{words} English they agree {more} in the decoder than in the encoder",
            "2.2, fig. 4a",
            lambda signed=signed: signed(gap),
        )
        yield add(
            f"... {more} in the top layer than in the bottom one ({words.lower()} English)",
            "2.2, fig. 4b",
            lambda signed=signed: signed(rise),
            again=True,
        )

    yield add(
        "Smaller batches: less similar (out of English, decoder)",
        "App. D, fig. 11",
        lambda: e.per_seed(
            study, "en-any", "en-any-small-batch", part("en-any", "decoder"), "cosine"
        ),
    )
    yield add(
        "Smaller model: less similar (into English)",
        "App. C.3, fig. 9",
        lambda: e.per_seed(study, "any-en", "any-en-small-model", side("any-en"), "cosine"),
    )


def partners(e: Evidence, study: str) -> Iterator[Claim]:
    """Whether a direction is better beside one whose gradients are more similar to its own."""
    yield Claim(
        study,
        "en-fr scores better the more its partner's gradients agree with its own",
        "GradVac 2.2, fig. 2b",
        lambda: e.partners("whole_model", name=study),
    )
    yield Claim(
        study,
        "... given how many tokens of en-fr the batches had",
        "GradVac (ours)",
        lambda: e.partners("whole_model", same_tokens=True, name=study),
        again=True,
    )


def activity(e: Evidence, study: str) -> Claim:
    """In how many pairs GradVac edits, beside PCGrad on the same gradients."""
    more = lambda run: statistics.fmean(run["gradvac"]) - statistics.fmean(run["pcgrad"])
    return Claim(
        study,
        "GradVac is active in more pairs than PCGrad would be",
        "GradVac 3.2, fig. 3",
        lambda: e.per_seed(study, "gradvac-all-layer", None, more, "share"),
    )
