"""Chooses packages from the index of contents: which have translations, and how many per byte."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gradvac.corpus.apt import Package
from gradvac.corpus.members import classify
from gradvac.errors import CorpusError
from gradvac.text.languages import ENGLISH
from gradvac.text.textfiles import open_bytes

Profile = Literal["tiny", "core", "full"]
PROFILES: tuple[Profile, ...] = ("tiny", "core", "full")

_MB = 10**6
# Catalogues of `core`, in bytes to download. Chosen here: with the other kinds it is a third of a
# gigabyte, an acceptable first download.
_CORE_CATALOGUES = 160 * _MB
# A compressed catalogue is rarely longer; if a package's files are, they are not text.
_CATALOGUE = 60_000
# Larger packages are left out: games with speech and music, of which a thousandth is text.
_LARGEST = 64 * _MB
# Kinds whose packages are mostly text; their English side is in another package.
_TINY_KINDS = ("libreoffice", "mozilla", "mozilla-english")
_CORE_KINDS = (*_TINY_KINDS, "libreoffice-help", "messages")

# Only lines that may name text files are parsed: the index has millions of lines.
_HINT = re.compile(rb"LC_MESSAGES/|libreoffice/help/|langpack-|omni\.ja|usr/share/help/|/i18n/")


@dataclass(slots=True)
class Holding:
    """Number of files in a package: in all, and of text by (kind, language)."""

    files: int = 0
    texts: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def kinds(self) -> set[str]:
        """The kinds of text in the package."""
        return {kind for kind, _ in self.texts}


def read_contents(files: Iterable[Path]) -> dict[str, Holding]:
    """Package -> its contents, for packages with any text, from indexes of contents."""
    counts: Counter[bytes] = Counter()
    texts: dict[str, Counter[tuple[str, str]]] = {}
    for file in files:
        for line in _lines(file):
            path, _, packages = line.removesuffix(b"\n").rpartition(b" ")
            counts[packages] += 1
            if _HINT.search(path):
                member = classify(path.strip().decode("utf-8", "replace"))
                for name in _names(packages) if member else ():
                    held = texts.setdefault(name, Counter())
                    held[member.kind, member.language] += 1  # type: ignore[union-attr]
    holdings = {name: Holding(0, held) for name, held in texts.items()}
    for packages, count in counts.items():
        for name in _names(packages):
            if name in holdings:
                holdings[name].files += count
    return holdings


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with open_bytes(file) as stream:
            yield from stream
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{file}: cannot be read further: {error}") from error


def _names(packages: bytes) -> Iterator[str]:
    """`devel/gcc-11-locales,libs/x` -> the two names, without their sections."""
    for package in packages.decode("ascii", "replace").split(","):
        yield package.rpartition("/")[2]


def choose(
    holdings: Mapping[str, Holding],
    candidates: Mapping[str, Package],
    languages: Collection[str],
    profile: Profile,
) -> list[Package]:
    """The packages of a profile, by name.

    `tiny` has LibreOffice's interface and the language packs of Firefox and Thunderbird; `core`
    also LibreOffice's help, MediaWiki's messages and the catalogues with most text per byte; `full`
    every package up to 64 MB with any text.
    """
    wanted = {*languages}
    held = {
        name: holding
        for name, holding in holdings.items()
        if name in candidates and any(code in wanted for _, code in holding.texts)
    }
    # English sides of the chosen packages: the browsers themselves, LibreOffice's help.
    translated = {
        kind for holding in held.values() for kind, code in holding.texts if code in wanted
    }
    sides = {"mozilla-english": "mozilla", "libreoffice-help": "libreoffice-help"}
    english = {
        name
        for name, holding in holdings.items()
        if name in candidates
        and any(code == ENGLISH and sides.get(k) in translated for k, code in holding.texts)
    }
    kinds = {"tiny": _TINY_KINDS, "core": _CORE_KINDS}.get(profile)
    if kinds is None:
        small = {name for name in held if candidates[name].size <= _LARGEST}
        return [candidates[name] for name in sorted(small | english)]
    whole = {name for name, holding in held.items() if holding.kinds & {*kinds}}
    if profile == "tiny":
        english = {n for n in english if "mozilla-english" in holdings[n].kinds}
    chosen = {n for n in whole if candidates[n].size <= _LARGEST} | english
    if profile == "core":
        chosen |= _densest(held, candidates, wanted, chosen)
    return [candidates[name] for name in sorted(chosen)]


def _densest(
    held: Mapping[str, Holding],
    candidates: Mapping[str, Package],
    wanted: Collection[str],
    taken: Collection[str],
) -> set[str]:
    """Packages that are mostly catalogues, in files and in bytes; best ones first.

    A catalogue's weight is the inverse root of the number of catalogues of its language, so that
    packages in rare languages are chosen too.
    """
    total = Counter[str]()
    for holding in held.values():
        for (kind, code), count in holding.texts.items():
            total[code] += count if kind == "catalogue" and code in wanted else 0
    value = {
        name: sum(
            count * total[code] ** -0.5
            for (kind, code), count in holding.texts.items()
            if kind == "catalogue" and code in wanted
        )
        * min(1 / max(holding.files, 1), _CATALOGUE / candidates[name].size)
        for name, holding in held.items()
        if name not in taken
    }
    chosen: set[str] = set()
    budget = _CORE_CATALOGUES
    for name in sorted(value, key=lambda name: (-value[name], name)):
        size = candidates[name].size
        if value[name] > 0 and size <= budget:
            chosen.add(name)
            budget -= size
    return chosen
