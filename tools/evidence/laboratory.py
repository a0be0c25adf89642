"""What the laboratory's runs decide: claims of the papers, on number words.

Its studies are those of recipes/lab. A claim that is looked at on real text too has the same words.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from functools import partial

from .claim import Claim
from .curves import gain, outside
from .files import Evidence
from .mechanism import mechanism
from .similarity import activity, partners, similarity

SIDES = {"from-en": "out of English", "to-en": "into English"}
TABLE1 = (
    ("Bilingual beats joint for high-resource directions", "bilingual-tokens", "joint", "high"),
    ("... with as many updates", "bilingual", "joint", "high"),
    ("Joint beats bilingual for low-resource directions", "joint", "bilingual-tokens", "low"),
    ("... with as many updates", "joint", "bilingual", "low"),
    ("PCGrad beats joint", "pcgrad", "joint", "avg"),
    ("PCGrad by layer beats joint", "pcgrad-all-layer", "joint", "avg"),
    ("... at joint's rate", "pcgrad-all-layer-8e-3", "joint", "avg"),
    ("PCGrad by layer beats PCGrad", "pcgrad-all-layer", "pcgrad", "avg"),
    ("GradVac beats joint", "gradvac-all-layer", "joint", "avg"),
    ("... for low-resource directions", "gradvac-all-layer", "joint", "low"),
    ("... in the same CPU time", "gradvac-all-layer", "joint-same-time", "avg"),
    ("GradVac beats PCGrad by layer", "gradvac-all-layer", "pcgrad-all-layer", "avg"),
    ("... at GradVac's rate", "gradvac-all-layer", "pcgrad-all-layer-8e-3", "avg"),
    ("GradVac with a fixed target beats PCGrad", "gradvac-fixed", "pcgrad", "avg"),
    ("Adaptive targets beat a fixed one", "gradvac-all-layer", "gradvac-fixed", "avg"),
)
WEIGHTS = {  # in the paper both are below joint training out of English, and above it into English
    "from-en": (
        ("GradNorm is below joint", "joint", "gradnorm", "avg"),
        ("MGDA is below joint", "joint", "mgda", "avg"),
    ),
    "to-en": (
        ("GradNorm beats joint", "gradnorm", "joint", "avg"),
        ("MGDA beats joint", "mgda", "joint", "avg"),
    ),
}
_SHORT = tuple(row for row in TABLE1 if not row[0].startswith("..."))
PREFIX = "lab-"
"""Of the names of the laboratory's studies."""

CHOICES = (
    ("Editing low-resource tasks beats editing high-resource ones", "hrl-only", 6),
    ("Editing low-resource tasks beats editing all", "all-task", 6),
    ("By layer beats the whole model", "gradvac-whole-model", 7),
    ("By layer beats encoder and decoder", "enc-dec", 7),
    ("By layer beats each matrix", "all-matrix", 7),
    ("beta 1e-2 beats 1e-1", "beta-1e-1", 8),
    ("beta 1e-2 beats 1e-3", "beta-1e-3", 8),
)
_GRADVAC, _WHOLE = (
    f"lab-table1-from-en:{row}" for row in ("gradvac-all-layer", "gradvac-whole-model")
)
_T5 = ":joint"  # of the study of table 1 with the same seeds, as is GradVac
_SAMPLING = (
    ("T=5 beats T=1 for low-resource directions", _T5, "t1", "low"),
    ("T=1 beats T=5 for high-resource directions", "t1", _T5, "high"),
    ("GradVac beats T=5 (high)", ":gradvac-all-layer", _T5, "high"),
    ("GradVac beats T=5 (low)", ":gradvac-all-layer", _T5, "low"),
)
_SWEPT = ("t1", "t2", _T5, "t100", "weight-4", "weight-16")
_FRONT = (
    ("GradVac leaves the front of swept temperatures and weights", ":gradvac-all-layer"),
    ("... at T=1", "gradvac-t1"),
    ("CATS leaves the front of swept temperatures and weights", "cats"),
    ("UniMax leaves the front of swept temperatures and weights", "unimax"),
)
_PLACES = (  # a study of sampling, that of its rows of table 1, that of CATS
    ("lab-sampling", "lab-table1-from-en", "lab-cats:cats"),
    ("lab-short-sampling", "lab-short-from-en", "cats"),
)

_HELD_OUT = "CATS with validation gradients and without its loss term"
_RATIO = ("CATS with ratios of losses beats T=1 (low)", "cats-ratio", "t1", "low")
_UNITS = (
    ("CATS with the units of earlier versions beats T=1 (low)", "cats-share", "t1", "low"),
    ("CATS beats CATS with the units of earlier versions (low)", "cats", "cats-share", "low"),
    (
        "A tighter bound matters: rho 0.05 beats rho 0.6 (low)",
        "cats-rho-0.05",
        "cats-rho-0.6",
        "low",
    ),
    ("Updates in every step beat T=1 (low)", "cats-every-step", "t1", "low"),
    ("T=5 beats updates in every step (low)", "t5", "cats-every-step", "low"),
    ("The step size matters: 0.3 beats 0.03 (low)", "cats-rate-0.3", "cats-rate-0.03", "low"),
    ("Cross terms matter: with them beats without (low)", "cats", "cats-stacked", "low"),
    ("CATS without its loss term beats CATS with it (low)", "cats-no-loss", "cats", "low"),
    ("CATS without its loss term beats T=1 (low)", "cats-no-loss", "t1", "low"),
    ("T=1 beats CATS without its loss term (high)", "t1", "cats-no-loss", "high"),
    _RATIO,
    ("CATS with validation gradients beats CATS (low)", "cats-validation", "cats", "low"),
    (f"{_HELD_OUT} beats T=1 (low)", "cats-validation-no-loss", "t1", "low"),
    (f"{_HELD_OUT} beats T=5 (high)", "cats-validation-no-loss", "t5", "high"),
    (f"T=5 beats {_HELD_OUT} (low)", "t5", "cats-validation-no-loss", "low"),
    (
        "Without its loss term, CATS with validation gradients beats CATS (low)",
        "cats-validation-no-loss",
        "cats-no-loss",
        "low",
    ),
)


def laboratory(e: Evidence) -> Iterator[Claim]:
    """The claims of the studies with number words whose runs are there."""
    for claim in _planned(e):
        if e.has(claim.study):
            yield claim


def _gains(
    e: Evidence, study: str, source: str, rows: Iterable[tuple[str, str, str, str]], words: str = ""
) -> Iterator[Claim]:
    """Claims that one row beats another: text, the two rows, the level."""
    for text, a, b, column in rows:
        per = "seconds" if b.endswith("-time") else "tokens"
        figure = partial(gain, e, study, a, b, column, per)
        yield Claim(study, text + words, source, figure, again=text.startswith("..."))


def _placed(row: str, table1: str, cats: str) -> str:
    """A row of `_SAMPLING`, `_SWEPT` or `_FRONT` with the study that it is in, if another."""
    return table1 + row if row.startswith(":") else cats if row == "cats" else row


def _planned(e: Evidence) -> Iterator[Claim]:
    for side, words in SIDES.items():
        for study, rows in (("table1", TABLE1), ("short", _SHORT)):
            rows += WEIGHTS[side]
            yield from _gains(e, f"lab-{study}-{side}", "GradVac table 1", rows, f" ({words})")
    for text, other, table in CHOICES:
        row = (text, _GRADVAC, _WHOLE if other == "gradvac-whole-model" else other, "avg")
        yield from _gains(e, "lab-choices", f"GradVac table {table}", [row])
    for study, table1, cats in _PLACES:
        place = partial(_placed, table1=table1, cats=cats)
        rows = [(text, place(a), place(b), level) for text, a, b, level in _SAMPLING]
        yield from _gains(e, study, "GradVac table 2", rows)
        swept = [place(row) for row in _SWEPT]
        for text, row in _FRONT:
            figure = partial(outside, e, study, place(row), swept)
            source, again = "asked by Xin et al. 2022", text.startswith("...")
            yield Claim(study, text, source, figure, again)
    yield from _gains(e, "lab-short-sampling", "asked here", [_RATIO])
    for width in (16, 64):
        rows = [
            (f"{text} beats joint (width {width})", f"{own}-{width}", f"joint-{width}", "avg")
            for text, own in (("PCGrad by layer", "pcgrad"), ("GradVac", "gradvac"))
        ]
        yield from _gains(e, "lab-capacity", "asked here", rows)
    yield activity(e, "lab-edits")
    poster = [("T=1 beats CATS (high)", "t1", "cats", "high")]
    yield from _gains(e, "lab-cats", "CATS table 1", poster)
    yield from mechanism(e, "lab-cats", partial(gain, e, "lab-cats"), "lab-curvature")
    pull = lambda run: statistics.fmean(
        math.log(at["high"] / at["low"]) for at in run["pull"].values()
    )
    yield Claim(
        "lab-cats",
        "With gradients of validation text the bound would favour low-resource directions",
        "asked here",
        lambda: e.per_seed("lab-curvature", "t1", None, pull, "pull"),
    )
    yield from _gains(e, "lab-cats", "asked here", _UNITS)
    swept = [_placed(row, *_PLACES[0][1:]) for row in _SWEPT]
    yield Claim(
        "lab-cats",
        f"{_HELD_OUT} leaves the front",
        "asked here",
        lambda: outside(e, "lab-sampling", "lab-cats:cats-validation-no-loss", swept),
    )
    for words, where in (
        ("into English, encoder", ("any-en", "any-en", "encoder")),
        ("out of English, decoder", ("en-any", "en-any", "decoder")),
    ):
        yield Claim(
            "lab-families",
            f"Gradients cluster by family ({words})",
            "GradVac 2.2, fig. 1; App. D, fig. 10",
            lambda where=where: e.mantel(*where, "same family", "lab-families"),
        )
    yield from similarity(e, "lab-families")
    yield from partners(e, "lab-partners")
