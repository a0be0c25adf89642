"""The claims of the papers, each with the figure in evidence/ that decides it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .claim import Claim
from .figures import Figure
from .files import Evidence
from .laboratory import CHOICES, SIDES, TABLE1, WEIGHTS, laboratory
from .mechanism import mechanism
from .similarity import activity, partners, similarity

GRADVAC, CATS = "GradVac", "CATS"


RECONSTRUCTION = "this reconstruction"


def claims(e: Evidence) -> Iterator[Claim]:
    """Every claim that is looked at, in the order of the page."""
    yield from _geometry(e)
    yield from _table1(e)
    yield from _continued(e)
    yield from _own_choices(e)
    yield from _imbalance(e)
    yield from mechanism(e, "cats", partial(e.gain, "cats"), "curvature", of=RECONSTRUCTION)
    yield from _tagging(e)
    yield from _encoder_geometry(e)
    yield from laboratory(e)


def _geometry(e: Evidence) -> Iterator[Claim]:
    def add(text: str, source: str, figure: Callable[[], Figure], again: bool = False) -> Claim:
        return Claim("geometry", text, f"{GRADVAC} {source}", figure, again)

    family, given = "same family", "same family, given same script and similar data size"
    into, out = ("any-en", "any-en", "encoder"), ("en-any", "en-any", "decoder")
    for words, where, source in (
        ("into English, encoder", into, "2.2, fig. 1"),
        ("out of English, decoder", out, "App. D, fig. 10"),
    ):
        yield add(
            f"Gradients cluster by family ({words})",
            source,
            lambda where=where: e.mantel(*where, family),
            again=where != into,
        )
        yield add(
            f"... also given script and data size ({words})",
            "(ours)",
            lambda where=where: e.mantel(*where, given),
            again=True,
        )
        for question, more in ((family, ""), (given, ", given script and data size")):
            yield add(
                f"... on text of the corpus, 22 languages{more} ({words})",
                "(ours)",
                lambda where=where, q=question: e.mantel(*where, q, "geometry-in-domain"),
                again=True,
            )

    def closer(run: dict[str, Any]) -> float:
        found = [
            run["sides"]["en-any"][end][f"fr es {group}"] - value
            for end in ("first", "last")
            for key, value in run["sides"]["en-any"][end].items()
            if key.startswith("fr hi ") and (group := key.removeprefix("fr hi "))
        ]
        return statistics.fmean(found)

    yield add(
        "en-fr agrees more with en-es than with en-hi",
        "2.2, fig. 4c",
        lambda: e.per_seed("geometry", "en-any", None, closer, "cosine"),
    )
    yield from similarity(e, "geometry")
    yield from partners(e, "partners")


def _table1(e: Evidence) -> Iterator[Claim]:
    for name, words in (("table1-from-en", "out of English"), ("table1-to-en", "into English")):

        def add(
            text: str, a: str, b: str, column: str = "avg", name: str = name, words: str = words
        ) -> Claim:
            return Claim(
                name,
                f"{text} ({words})",
                f"{GRADVAC} table 1",
                lambda: e.gain(name, a, b, column),
            )

        own = "multilingual"
        yield add("Joint beats bilingual for low-resource directions", own, "bilingual", "low")
        yield add("Bilingual beats joint for high-resource directions", "bilingual", own, "high")
        yield add("PCGrad beats joint", "pcgrad", own)
        yield add("PCGrad by layer beats PCGrad", "pcgrad-all-layer", "pcgrad")
        yield add("GradVac beats joint", "gradvac-all-layer", own)
        yield add("GradVac beats PCGrad by layer", "gradvac-all-layer", "pcgrad-all-layer")
        yield add("GradVac with a fixed target beats PCGrad", "gradvac-fixed", "pcgrad")
        yield add("Adaptive targets beat a fixed one", "gradvac-all-layer", "gradvac-fixed")
        if name == "table1-from-en":
            yield add("GradNorm is below joint", own, "gradnorm")
            yield add("MGDA is below joint", own, "mgda")
    yield activity(e, "edits")


_CONTINUED = (
    ("T=5 beats T=1 for low-resource directions", "joint", "t1", "low"),
    ("T=1 beats T=5 for high-resource directions", "t1", "joint", "high"),
    ("T=100 beats T=5 for low-resource directions", "t100", "joint", "low"),
    ("T=5 beats T=100 for high-resource directions", "joint", "t100", "high"),
)


def _continued(e: Evidence) -> Iterator[Claim]:
    """Table 1 from models that translate, where there are runs of it."""
    for side, words in SIDES.items():
        study = f"continued-{side}"
        if not e.has(study):
            continue
        rows = set(e.rows(study))
        for text, a, b, column in TABLE1 + WEIGHTS[side]:
            if {a, b} <= rows:
                figure = partial(e.gain, study, a, b, column)
                again = text.startswith("...")
                yield Claim(study, f"{text} ({words})", f"{GRADVAC} table 1", figure, again)
        for text, a, b, column in _CONTINUED:
            figure = partial(e.gain, study, a, b, column)
            yield Claim(study, f"{text} ({words}, continued)", "asked here", figure)
        yield Claim(
            study,
            f"GradVac leaves the front of temperatures and weights ({words}, continued)",
            "asked by Xin et al. 2022",
            partial(e.front, "gradvac-all-layer", study),
        )


def _own_choices(e: Evidence) -> Iterator[Claim]:
    best = "gradvac-all-layer"
    for text, other, table in CHOICES:
        yield Claim(
            "ablations",
            text,
            f"{GRADVAC} table {table}",
            lambda other=other: e.gain("ablations", best, other),
        )


def _imbalance(e: Evidence) -> Iterator[Claim]:
    def add(text: str, source: str, a: str, b: str, column: str, again: bool = False) -> Claim:
        of = RECONSTRUCTION if "cats" in (a, b) else ""
        return Claim(
            "imbalance", text, source, lambda: e.gain("imbalance", a, b, column), again, of
        )

    table2, poster = f"{GRADVAC} table 2", f"{CATS} table 1"
    # With weights that hardly move, CATS on proportional sampling is T=1 under another name.
    yield add("T=5 beats T=1 for low-resource directions", table2, "t5", "t1", "low")
    yield add("CATS beats T=5 (low): T=1 by another name", poster, "cats", "t5", "low", True)
    yield add("T=1 beats T=5 for high-resource directions", table2, "t1", "t5", "high")
    yield add("CATS beats T=5 (high): T=1 by another name", poster, "cats", "t5", "high", True)
    for level in ("high", "medium", "low"):
        yield add(f"GradVac beats T=5 ({level})", table2, "gradvac", "t5", level)
    yield add("CATS beats T=1 (low)", poster, "cats", "t1", "low")
    yield add("T=1 beats CATS (high)", poster, "t1", "cats", "high")
    yield Claim(  # CLSR has 43 % more parameters on the poster, and about as many more here
        "imbalance",
        "CATS beats CLSR on average (as printed, 23.4 to 23.3; CLSR's columns give 24.2)",
        poster,
        lambda: e.gain("imbalance", "cats", "clsr", given=("parameters",)),
        of=RECONSTRUCTION,
    )
    for row, words in (
        ("gradvac", "GradVac"),
        ("cats", "CATS"),
        ("unimax", "UniMax"),
        ("clsr", "CLSR"),
    ):
        yield Claim(
            "imbalance",
            f"{words} leaves the front of swept temperatures and weights",
            "asked by Xin et al. 2022",
            lambda row=row: e.front(row),
            of=RECONSTRUCTION if row == "cats" else "",
        )


def _tagging(e: Evidence) -> Iterator[Claim]:
    """Of the pretrained encoder where it has runs of both methods; then of the one trained here."""
    label = {
        "joint": "joint training",
        "gradnorm": "GradNorm",
        "mgda": "MGDA",
        "pcgrad": "PCGrad",
        "gradvac": "GradVac",
    }
    for name, words, table in (("table3-ner", "NER", 3), ("table9-pos", "POS", 9)):
        real = f"{name}-real"
        pretrained = e.rows(real) if e.has(real) else []
        for study, known in ((real, pretrained), (name, list(label))):
            for a, b, verb in (
                ("gradvac", "joint", "beats"),
                ("gradvac", "pcgrad", "beats"),
                ("pcgrad", "joint", "beats"),
                ("joint", "gradnorm", "is below"),
                ("joint", "mgda", "is below"),
            ):
                if not {a, b} <= set(known):
                    continue
                first, second = (a, b) if verb == "beats" else (b, a)
                text = f"{label[first]} {verb} {label[second]} ({words})"
                figure = partial(e.gain, study, a, b, "avg", "f1")
                again = study == name and {a, b} <= set(pretrained)
                yield Claim(study, text, f"{GRADVAC} table {table}", figure, again)
                for row in known:
                    if row.startswith(f"{b}-"):  # the same method at the rate of the other
                        text = f"... {label[b]} at {label[a]}'s rate ({words})"
                        figure = partial(e.gain, study, a, row, "avg", "f1")
                        yield Claim(study, text, "(ours)", figure, True)


def _encoder_geometry(e: Evidence) -> Iterator[Claim]:
    study, given = "parallel-pos-real", "same family, given same script and similar data size"
    for words, question in (
        ("Gradients of a pretrained encoder cluster by family (POS)", "same family"),
        ("... also given script and data size (POS)", given),
    ):
        figure = partial(e.mantel, "joint", "languages", "encoder", question, study)
        yield Claim(study, words, "asked here", figure, words.startswith("..."))

    def rise(run: dict[str, Any]) -> float:
        layers = run["sides"]["languages"]["layers"]
        own = [layers[name] for name in layers if "layer." in name]
        return own[-1] - own[0]

    yield Claim(
        study,
        "They agree more in the top layer than in the bottom one (pretrained encoder, POS)",
        "asked here",
        lambda: e.per_seed(study, "joint", None, rise, "cosine"),
    )
