"""Building a parallel corpus from the packages of a Debian system, through its own apt.

    CACHE/apt      indexes of apt        CACHE/debs   packages as downloaded
    CACHE/pairs    clean pairs of each package, by its checksum and the languages asked for

Cached work is not repeated, so the same command continues an interrupted build.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from gradvac.corpus.apt import Apt, Package
from gradvac.corpus.assemble import Assembled, Split, assemble
from gradvac.corpus.contents import Holding, Profile, choose, read_contents
from gradvac.corpus.copyright import licences
from gradvac.corpus.descriptions import NAME as DESCRIPTIONS
from gradvac.corpus.descriptions import extract_descriptions
from gradvac.corpus.extract import MIN_WORDS, RULES, english_texts, extract
from gradvac.corpus.folder import finished, new_folder, write_folder
from gradvac.corpus.workers import workers
from gradvac.errors import CorpusError
from gradvac.reading import sha256_of
from gradvac.text.languages import ENGLISH
from gradvac.writing import replacing, write_json

PAPER = "fr es de pl cs mk bg uk be ru lv lt et fi hi mr gu ne kk ky sw zu xh id ms".split()
"""The 25 languages of Wang et al. 2021, Table 4."""

# Avoids both hundreds of files in one request and one request per file.
_LOT = 25
# If two sources have the same string, the better text is kept: sentences before labels.
_RANK = ("libreoffice-help", "libreoffice", "firefox", "thunderbird", "mediawiki")

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build: everything that decides the corpus except apt's own state."""

    languages: tuple[str, ...]
    profile: Profile
    split: Split

    def __post_init__(self) -> None:
        if ENGLISH in self.languages or len(set(self.languages)) < len(self.languages):
            raise CorpusError(
                f"languages are {' '.join(self.languages)}: allowed are different ones, "
                "without English, which is on the other side of every pair"
            )

    def to_dict(self) -> dict[str, Any]:
        """As stored in the manifest."""
        return {
            "builder": "debian",
            "rules": RULES,
            "profile": self.profile,
            "languages": list(self.languages),
            "rows": self.split.rows,
            "share": self.split.share,
        }


@dataclass(frozen=True, slots=True)
class _Reading:
    """One source in the cache: its pairs and what was counted when they were extracted."""

    name: str
    pairs: Path
    counts: Path
    version: str = ""
    sha256: str = ""
    size: int = 0


def build_debian(
    out: Path, plan: Plan, cache: Path, jobs: int, update: bool, tick: Tick
) -> dict[str, Any]:
    """Build the corpus in `out` and return its manifest; if already built, only return that.

    Raises:
        CorpusError: `out` has other content, apt fails, or no package has any text.
    """
    if (manifest := finished(out, plan.to_dict())) is not None:
        return manifest
    start = time.monotonic()
    apt = Apt(cache / "apt", [code for code in plan.languages])
    if update or not apt.indexes("Contents-deb"):
        tick("asking apt for indexes", 0, 1)
        apt.update()
        tick("asking apt for indexes", 1, 1)
    holdings = _holdings(apt, cache, tick)
    packages = choose(holdings, apt.candidates(holdings), plan.languages, plan.profile)
    if not packages:
        raise CorpusError(
            f"no package that apt knows has text in {' '.join(plan.languages)}: "
            "is its index of contents there?"
        )
    readings = _read_packages(apt, packages, holdings, plan, cache, jobs, tick)
    readings.append(_read_descriptions(apt, plan, cache))
    readings.sort(key=_rank)
    with new_folder(out) as folder:
        files = [reading.pairs for reading in readings]
        assembled = assemble(files, plan.languages, folder, plan.split, jobs, tick)
        train = assembled.pairs["train"]
        if not any(train.values()):
            raise CorpusError(
                f"no pair in {' '.join(plan.languages)} came out of {len(readings)} sources of the "
                f"profile {plan.profile!r}: another --profile or language may have some"
            )
        sources, report = _account(readings, assembled, folder)
        report["problems"] += [f"{c}: no training pair" for c in plan.languages if not train[c]]
        report["build"] = {
            "seconds": round(time.monotonic() - start, 1),
            "downloaded_bytes": sum(package.size for package in packages),
            "peak_bytes_of_one_process": _peak(),
            "processes": jobs,
        }
        manifest = {**plan.to_dict(), "pairs": _plain(assembled.pairs), "sources": sources}
        write_folder(folder, manifest, report, plan.languages)
    return manifest


def _plain(pairs: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {part: dict(counts) for part, counts in pairs.items()}


def _peak() -> int:
    """The largest resident size of this process or one that it started, in bytes."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(one).ru_maxrss for one in who)


def _rank(reading: _Reading) -> tuple[int, str]:
    ranks = (n for n, start in enumerate(_RANK) if reading.name.startswith(start))
    last = len(_RANK) + (reading.name == DESCRIPTIONS)
    return next(ranks, last), reading.name


def _holdings(apt: Apt, cache: Path, tick: Tick) -> dict[str, Holding]:
    """Contents of packages, from the index of contents, or from the cache if that is current."""
    files = [file for file, _ in apt.indexes("Contents-deb")]
    key = blake2b("".join(map(sha256_of, files)).encode(), digest_size=8).hexdigest()
    kept = cache / f"contents-{key}.json"
    if not kept.exists():
        tick("reading the index of contents", 0, 1)
        found = {
            name: [h.files, [[*what, count] for what, count in sorted(h.texts.items())]]
            for name, h in read_contents(files).items()
        }
        write_json(kept, found, indent=None)
        tick("reading the index of contents", 1, 1)
    tree = json.loads(kept.read_text(encoding="utf-8"))
    return {
        name: Holding(count, Counter({(kind, code): n for kind, code, n in texts}))
        for name, (count, texts) in tree.items()
    }


def _read_packages(
    apt: Apt,
    packages: Sequence[Package],
    holdings: dict[str, Holding],
    plan: Plan,
    cache: Path,
    jobs: int,
    tick: Tick,
) -> list[_Reading]:
    """Download and extract what is not in the cache; downloads run ahead of extraction."""
    debs, folder = cache / "debs", cache / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    english = _english(apt, packages, holdings, cache, tick)
    digest = _digest([*plan.languages, RULES, *(file.name for file in english.values())])
    readings = [
        _Reading(
            package.name,
            folder / f"{package.key}-{digest}.jsonl.gz",
            folder / f"{package.key}-{digest}.json",
            package.version,
            package.sha256,
            package.size,
        )
        for package in packages
    ]
    missing = [
        (package, reading)
        for package, reading in zip(packages, readings, strict=True)
        if not reading.counts.exists()
    ]
    done = len(packages) - len(missing)
    tick("reading packages", done, len(packages))
    lots = [missing[start : start + _LOT] for start in range(0, len(missing), _LOT)]
    with ThreadPoolExecutor(1) as downloader, workers(jobs) as map_:
        # A group is downloaded while the previous one is read.
        ahead: Future[dict[str, Path]] | None = None
        for number, lot in enumerate(lots):
            files = ahead.result() if ahead else apt.download([p for p, _ in lot], debs)
            if number + 1 < len(lots):
                ahead = downloader.submit(apt.download, [p for p, _ in lots[number + 1]], debs)
            tasks = [(files[package.name], reading) for package, reading in lot]
            for _ in map_(partial(_extract, languages=plan.languages, english=english), tasks):
                done += 1
                tick("reading packages", done, len(packages))
    return readings


def _extract(
    task: tuple[Path, _Reading], languages: Sequence[str], english: dict[str, Path]
) -> None:
    """Extract one package into the cache; an unreadable one is noted, and the build continues."""
    deb, reading = task
    try:
        result = extract(deb, reading.name, languages, english, reading.pairs).to_dict()
    except CorpusError as error:
        with gzip.open(reading.pairs, "wt"):
            pass
        result = {"package": reading.name, "problems": [str(error)]}
    write_json(reading.counts, result, indent=None)


def _english(
    apt: Apt,
    packages: Sequence[Package],
    holdings: dict[str, Holding],
    cache: Path,
    tick: Tick,
) -> dict[str, Path]:
    """Files with the English side of LibreOffice's help and of Mozilla's language packs."""
    found: dict[str, Path] = {}
    for kind, holds in (("libreoffice-help", "libreoffice-help"), ("mozilla", "mozilla-english")):
        sources = [p for p in packages if (holds, ENGLISH) in holdings[p.name].texts]
        if not sources:
            continue
        key = _digest([kind, RULES, *(p.sha256 for p in sources)])
        file = cache / f"english-{kind}-{key}.json.gz"
        if not file.exists():
            tick(f"reading the English side of {kind}", 0, 1)
            debs = apt.download(sources, cache / "debs")
            texts = english_texts([debs[p.name] for p in sources], kind)
            with replacing(file) as new, gzip.open(new, "wt", encoding="utf-8") as out:
                json.dump(texts, out, ensure_ascii=False)
            tick(f"reading the English side of {kind}", 1, 1)
        found[kind] = file
    return found


def _read_descriptions(apt: Apt, plan: Plan, cache: Path) -> _Reading:
    """The translated descriptions of all packages, as one source."""
    indexes = apt.indexes("Translations")
    key = _digest([RULES, *plan.languages, *(sha256_of(file) for file, _ in indexes)])
    pairs = cache / "pairs" / f"{DESCRIPTIONS}-{key}.jsonl.gz"
    reading = _Reading(DESCRIPTIONS, pairs, pairs.with_name(f"{DESCRIPTIONS}-{key}.json"))
    if not reading.counts.exists():
        result = extract_descriptions(indexes, plan.languages, pairs)
        write_json(reading.counts, result.to_dict(), indent=None)
    return reading


def _account(
    readings: Sequence[_Reading], assembled: Assembled, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sources of the manifest, with their licences, and the report of all that was left out."""
    sources: list[dict[str, Any]] = []
    problems: list[str] = []
    losses = assembled.losses
    (folder / "copyright").mkdir()
    for reading, result in _results(readings):
        problems += result["problems"]
        losses.merge(result.get("dropped", {}), result.get("samples", {}))
        text = result.get("copyright", "")
        if text:
            (folder / "copyright" / reading.name).write_text(text, encoding="utf-8")
        if pairs := sum(result.get("pairs", {}).values()):
            sources.append(
                {
                    "package": reading.name,
                    "version": reading.version,
                    "sha256": reading.sha256,
                    "bytes": reading.size,
                    "licence": licences(text) or "see copyright",
                    "pairs": pairs,
                }
            )
    report = {
        "problems": problems,
        "left_out": {
            reason: {"count": counts.total(), "languages": dict(sorted(counts.items()))}
            for reason, counts in sorted(losses.counts.items(), key=lambda i: -i[1].total())
        },
        "samples": losses.samples,
        "documents": assembled.documents,
        "min_words": MIN_WORDS,
    }
    return sources, report


def _results(readings: Sequence[_Reading]) -> Iterator[tuple[_Reading, dict[str, Any]]]:
    for reading in readings:
        yield reading, json.loads(reading.counts.read_text(encoding="utf-8"))


def _digest(parts: Sequence[object]) -> str:
    return blake2b("\n".join(map(str, parts)).encode(), digest_size=5).hexdigest()


def default_cache() -> Path:
    """The default folder for downloads."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gradvac" / "debian"
