"""How close languages are: by family, by script, and by typology.

Family and script need no package. Typology comes from URIEL+ (Khan et al. 2025), a maintained
successor of URIEL and lang2vec whose data is inside its package: the extra ``typology``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from gradvac.text.languages import family, language

DISTANCES = ("genetic", "geographic", "syntactic", "phonological")
SHARED = 20
"""Fewest features known of both languages for a distance. Chosen here: only a dozen syntactic ones
are known of Kazakh, and Hindi shares them all, so their distance would be zero."""


def families(languages: Sequence[str]) -> list[str]:
    """The family of each language; a language of unknown family forms its own family."""
    named = [family(code) for code in languages]
    return [code if name == "other" else name for code, name in zip(languages, named, strict=True)]


@cache
def typological_distances(languages: tuple[str, ...]) -> dict[str, np.ndarray] | str:
    """Distances ``[K, K]`` in [0, 1] of each of `DISTANCES`; NaN where URIEL+ knows too little.

    A string instead says why there are none: the package is missing or cannot read its data.
    """
    codes = [_iso(language(code).base) for code in languages]
    try:
        with _quiet():
            uriel = _uriel()
            return {kind: _distances(uriel, kind, codes) for kind in DISTANCES}
    except ImportError:
        return "typological distances need the extra: pip install 'gradvac[typology]'"
    except OSError as e:  # it unpacks its data into its own folder on first use
        return f"URIEL+ cannot read its data: {e}"


def _iso(base: str) -> str:
    """The ISO 639-3 code of a language, as in URIEL+."""
    from langcodes import Language

    try:
        return Language.make(base).to_alpha3()
    except LookupError:
        return base


@cache
def _uriel() -> object:
    from urielplus.urielplus import URIELPlus  # type: ignore[import-not-found]

    return URIELPlus()


def _distances(uriel: object, kind: str, codes: list[str]) -> np.ndarray:
    """Distances of one kind; all unknown for a language URIEL+ does not have."""
    have = {str(code) for code in uriel.langs[0]}  # type: ignore[attr-defined]
    out = np.full((len(codes), len(codes)), np.nan)
    rows = [n for n, code in enumerate(codes) if code in have]
    known = list(dict.fromkeys(codes[n] for n in rows))
    if len(known) < 2:
        return out
    vectors = uriel.get_vector(kind, known)  # type: ignore[attr-defined]
    x = np.array([vectors[code] for code in known], dtype=float)
    places = [known.index(codes[n]) for n in rows]
    out[np.ix_(rows, rows)] = angular_distances(x)[np.ix_(places, places)]
    return out


def angular_distances(x: np.ndarray) -> np.ndarray:
    """2 / pi times the angle between rows of ``x`` [K, features], over features known of both.

    The same distance as URIEL+, which takes seconds. A negative feature is unknown; a distance on
    fewer than `SHARED` features is NaN.
    """
    known = (x >= 0).astype(float)
    x = np.where(x >= 0, x, 0.0)
    squares = (x * x) @ known.T
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.clip(x @ x.T / np.sqrt(squares * squares.T), -1, 1)
    return np.where(known @ known.T >= SHARED, 2 / np.pi * np.arccos(cosine), np.nan)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the package inside, and undo its changes to logging."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
