"""The claims of the papers, each with the figure in evidence/ that decides it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from .claim import Claim
from .figures import Figure
from .files import Evidence
from .laboratory import laboratory

GRADVAC, CATS = "GradVac", "CATS"
_HALVES = ("encoder", "decoder")


RECONSTRUCTION = "this reconstruction"


def claims(e: Evidence) -> Iterator[Claim]:
    """Every claim that is looked at, in the order of the page."""
    yield from _geometry(e)
    yield from _table1(e)
    yield from _own_choices(e)
    yield from _imbalance(e)
    yield from _mechanism(e)
    yield from _tagging(e)
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
    part = lambda side, name: lambda run: run["sides"][side]["parts"][name]
    side = lambda s: part(s, "whole_model")
    yield add(
        "Out of English gradients agree less than into English, in one model",
        "2.2, fig. 2a",
        lambda: e.per_seed(
            "geometry", "both", None, lambda r: side("any-en")(r) - side("en-any")(r), "cosine"
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
            "geometry", s, None, lambda run: sign * of(s)(run), "cosine"
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
    yield add(
        "Smaller batches: less similar (out of English, decoder)",
        "App. D, fig. 11",
        lambda: e.per_seed(
            "geometry", "en-any", "en-any-small-batch", part("en-any", "decoder"), "cosine"
        ),
    )
    yield add(
        "Smaller model: less similar (into English)",
        "App. C.3, fig. 9",
        lambda: e.per_seed("geometry", "any-en", "any-en-small-model", side("any-en"), "cosine"),
    )
    yield Claim(
        "partners",
        "en-fr scores better the more its partner's gradients agree with its own",
        f"{GRADVAC} 2.2, fig. 2b",
        lambda: e.partners("whole_model"),
    )
    yield Claim(
        "partners",
        "... given how many tokens of en-fr the batches had",
        f"{GRADVAC} (ours)",
        lambda: e.partners("whole_model", same_tokens=True),
        again=True,
    )


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
    yield Claim(
        "edits",
        "GradVac is active in more pairs than PCGrad would be",
        f"{GRADVAC} 3.2, fig. 3",
        lambda: e.per_seed(
            "edits",
            "gradvac-all-layer",
            None,
            lambda r: statistics.fmean(r["gradvac"]) - statistics.fmean(r["pcgrad"]),
            "share",
        ),
    )


def _own_choices(e: Evidence) -> Iterator[Claim]:
    best = "gradvac-all-layer"
    for text, other, table in (
        ("Editing low-resource tasks beats editing high-resource ones", "hrl-only", 6),
        ("Editing low-resource tasks beats editing all", "all-task", 6),
        ("By layer beats the whole model", "gradvac-whole-model", 7),
        ("By layer beats encoder and decoder", "enc-dec", 7),
        ("By layer beats each matrix", "all-matrix", 7),
        ("beta 1e-2 beats 1e-1", "beta-1e-1", 8),
        ("beta 1e-2 beats 1e-3", "beta-1e-3", 8),
    ):
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
    yield add(
        "CATS beats CLSR on average (as printed, 23.4 to 23.3; CLSR's columns give 24.2)",
        poster,
        "cats",
        "clsr",
        "avg",
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


def _mechanism(e: Evidence) -> Iterator[Claim]:
    def add(text: str, source: str, figure: Callable[[], Figure]) -> Claim:
        return Claim("cats", text, f"{CATS} {source}", figure, of=RECONSTRUCTION)

    def late(run: dict[str, Any]) -> float:
        values = [v["value"] for v in run["eigenvalues"] if v["group"] == "sum"]
        return statistics.fmean(math.log(v) for v in values)

    agree = lambda run: statistics.fmean(run["high_low_cosine"].values())
    for other in ("t1", "t5"):
        yield add(
            f"CATS lowers the curvature against {other.upper()}",
            "fig. 5",
            lambda other=other: e.per_seed("curvature", other, "cats", late, "curvature"),
        )
        yield add(
            f"CATS makes high- and low-resource gradients agree more than {other.upper()}",
            "fig. 5",
            lambda other=other: e.per_seed("curvature", "cats", other, agree, "cosine"),
        )
    for text, source, suffix in (
        ("CATS beats {} ({})", "fig. 6", ""),
        ("CATS with four times the batch beats {} ({})", "fig. 8", "-large-batch"),
        ("CATS with a wider model beats {} ({})", "fig. 9", "-large-model"),
    ):
        for other in ("t1", "t5"):
            for level in ("low", "high"):
                yield add(
                    text.format(other.upper(), level),
                    source,
                    lambda other=other, level=level, suffix=suffix: e.gain(
                        "cats", f"cats{suffix}", f"{other}{suffix}", level
                    ),
                )


def _tagging(e: Evidence) -> Iterator[Claim]:
    for name, words, table in (("table3-ner", "NER", 3), ("table9-pos", "POS", 9)):
        for a, b in (("gradvac", "joint"), ("gradvac", "pcgrad"), ("pcgrad", "joint")):
            label = {"gradvac": "GradVac", "pcgrad": "PCGrad", "joint": "joint training"}
            yield Claim(
                name,
                f"{label[a]} beats {label[b]} ({words})",
                f"{GRADVAC} table {table}",
                lambda name=name, a=a, b=b: e.gain(name, a, b, "avg", "f1"),
            )
        for b in ("gradnorm", "mgda"):
            yield Claim(
                name,
                f"{'GradNorm' if b == 'gradnorm' else 'MGDA'} is below joint training ({words})",
                f"{GRADVAC} table {table}",
                lambda name=name, b=b: e.gain(name, "joint", b, "avg", "f1"),
            )
