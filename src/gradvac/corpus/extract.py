"""Clean sentence pairs of one package, kept in the cache under its checksum.

A package is read once per choice of languages; files in it that cannot be read are named and
counted, and the rest is used.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gradvac.corpus.deb import read_deb
from gradvac.corpus.losses import Losses
from gradvac.corpus.members import Member, classify
from gradvac.errors import CorpusError
from gradvac.text.catalogues import Message, parse_mo
from gradvac.text.identify import confusable
from gradvac.text.languages import ENGLISH
from gradvac.text.messages import message_pairs, rejection
from gradvac.text.program_files import (
    read_fluent,
    read_help_page,
    read_jar,
    read_messages,
    read_properties,
    read_xml_help,
)
from gradvac.text.textfiles import Fault, check_text
from gradvac.writing import replacing

RULES = 2
"""Increased whenever the same package would give other pairs, so that caches are not reused."""

# Menus of one to three words contain little language and are the same in every program.
MIN_WORDS = 4
_MESSAGE_LIMIT = 20_000
# A catalogue with fewer clean strings is too small to identify its language.
_JUDGED = 20
_JUDGED_CHARACTERS = 4000

Texts = dict[str, str]


@dataclass(slots=True)
class Extract:
    """The result of one package: counts by language, reasons, problems, licences."""

    package: str
    pairs: Counter[str] = field(default_factory=Counter)
    losses: Losses = field(default_factory=Losses)
    problems: list[str] = field(default_factory=list)
    copyright: str = ""

    def drop(self, language: str, reason: str, english: str, translation: str) -> None:
        """Count a pair left out."""
        self.losses.add(reason, [language, english, translation], language)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "package": self.package,
            "pairs": dict(self.pairs),
            "dropped": {reason: dict(counts) for reason, counts in self.losses.counts.items()},
            "samples": self.losses.samples,
            "problems": self.problems,
            "copyright": self.copyright,
        }


def english_texts(debs: Collection[Path], kind: str) -> dict[str, Texts]:
    """Document -> key -> English text of LibreOffice's help or of Mozilla's programs."""
    found: dict[str, Texts] = {}
    for deb in debs:
        for member, data in _members(deb, {ENGLISH}):
            if member.kind == kind == "libreoffice-help":
                found[member.document] = _help_page(data)
            elif member.kind == "mozilla-english" and kind == "mozilla":
                for document, texts in _mozilla(data):
                    found.setdefault(document, {}).update(texts)
    return found


def extract(
    deb: Path, package: str, languages: Collection[str], english: Mapping[str, Path], out: Path
) -> Extract:
    """Write the clean pairs of a package to `out` (gzip, one JSON list per line) and return counts.

    A line is [language, document, English, translation]. `english` names, for `libreoffice-help`
    and `mozilla`, the file with the English side (`english_texts` as JSON, gzipped).

    Raises:
        CorpusError: the package itself is truncated or damaged.
    """
    result = Extract(package)
    write_pairs(_documents(deb, languages, english, result), result, out)
    return result


Documents = Iterator[tuple[str, str, Iterator[tuple[str, str]]]]
"""Document, language, and raw pairs of English and translation."""


def write_pairs(documents: Documents, result: Extract, out: Path) -> None:
    """Clean the pairs of documents and write them; `result` counts."""
    with (
        replacing(out) as new,
        gzip.open(new, "wt", encoding="utf-8", compresslevel=1) as lines,
    ):
        for document, language, pairs in documents:
            kind = document.split(":", 1)[0]
            kept = _clean(document, kind, language, pairs, result)
            for source, target in kept:
                row = [language, document, source, target]
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            result.pairs[language] += len(kept)


def _clean(
    document: str, kind: str, language: str, pairs: Iterator[tuple[str, str]], result: Extract
) -> list[tuple[str, str]]:
    """The pairs of one document that pass, each English string once."""
    kept: dict[str, str] = {}
    for english, translation in pairs:
        if len(english.split()) < MIN_WORDS:  # cleaning would find it too, but later
            result.drop(language, f"fewer than {MIN_WORDS} English words", english, translation)
            continue
        for source, target in message_pairs(english, translation, kind):
            why = rejection(source, target, language, MIN_WORDS)
            why = why or _unprintable(source + target)
            if why is None and source not in kept:
                kept[source] = target
            else:
                result.drop(language, why or "repeated in its document", source, target)
    if len(kept) >= _JUDGED and (wrong := _other_language(kept.values(), language)):
        result.problems.append(
            f"{document}: {len(kept)} translations said to be in {language!r} are in {wrong!r}"
        )
        for source, target in kept.items():
            result.drop(language, "document in another language", source, target)
        return []
    return list(kept.items())


def _unprintable(text: str) -> str | None:
    """Why a text cannot be a line of UTF-8 (surrogate, control character), or None."""
    try:
        check_text(text, "")
    except Fault as fault:
        return fault.reason
    return None


@cache
def _identifier() -> Any:
    """py3langid if it is installed, choosing among all languages it knows."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _other_language(texts: Collection[str], language: str) -> str | None:
    """The language of a document if it clearly differs from the stated one."""
    identifier = _identifier()
    base = language.split("_")[0]
    if identifier is None or base not in identifier.labels:
        return None
    sample = " ".join(texts)[:_JUDGED_CHARACTERS].replace("{}", " ")
    found, probability = identifier.classify(sample)
    return None if confusable(found, base) or probability < 0.99 else str(found)


def _documents(
    deb: Path, languages: Collection[str], english: Mapping[str, Path], result: Extract
) -> Documents:
    """Document, language and raw pairs; those with both sides inside the package come last."""
    waiting: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for member, data in _members(deb, {*languages, ENGLISH}, result):
        where = f"{result.package}: {member.kind} {member.document} ({member.language})"
        try:
            if member.kind in ("catalogue", "libreoffice"):
                if member.language != ENGLISH:
                    yield from _catalogue(member, data, where, result)
            elif member.kind == "libreoffice-help" and member.kind in english:
                twin = _load(english[member.kind]).get(member.document, {})
                yield (
                    f"{member.kind}:{member.document}",
                    member.language,
                    _joined(twin, _help_page(data)),
                )
            elif member.kind == "mozilla" and member.kind in english:
                twins = _load(english[member.kind])
                for document, texts in _mozilla(data):
                    yield (
                        f"mozilla:{document}",
                        member.language,
                        _joined(twins.get(document, {}), texts),
                    )
            elif member.kind in ("help", "messages"):
                read = read_xml_help if member.kind == "help" else read_messages
                waiting[member.kind, member.document][member.language] = read(data)
        except (CorpusError, ValueError, struct.error, zlib.error) as error:
            result.problems.append(f"{where}: {error}")
    for (kind, document), versions in waiting.items():
        original = versions.pop(ENGLISH, None)
        for language, version in versions.items() if original else ():
            pairs = _blocks(original, version) if kind == "help" else _joined(original, version)
            yield f"{kind}:{document}", language, pairs


def _members(
    deb: Path, languages: Collection[str], result: Extract | None = None
) -> Iterator[tuple[Member, bytes]]:
    """Files of a package with text in these languages; its copyright file goes into the result."""

    def wanted(path: str) -> bool:
        member = classify(path)
        return _is_copyright(path) or (member is not None and member.language in languages)

    for path, data in read_deb(deb, wanted):
        member = classify(path)
        if member is not None:
            yield member, data
        elif result is not None and not result.copyright:
            result.copyright = data.decode("utf-8", "replace")


def _is_copyright(path: str) -> bool:
    return path.startswith("usr/share/doc/") and path.endswith("/copyright")


def _catalogue(member: Member, data: bytes, where: str, result: Extract) -> Documents:
    """A catalogue is one document, except LibreOffice's, whose contexts name the dialogue."""
    documents: dict[str, list[tuple[str, str]]] = defaultdict(list)
    # gcc-11 and gcc-12 are one document: their strings are nearly all the same.
    name = re.sub(r"[-_.]?\d[\d.]*$", "", member.document) or member.document
    for message in parse_mo(data, where, _MESSAGE_LIMIT):
        if isinstance(message, Message):
            part = ""
            if member.kind == "libreoffice" and message.context:
                part = "/" + message.context.partition("|")[0]
            documents[f"{member.kind}:{name}{part}"].append((message.source, message.target))
        elif not message.skip:
            result.drop(member.language, message.reason, message.where, "")
    for document, pairs in documents.items():
        yield document, member.language, iter(pairs)


def _help_page(data: bytes) -> Texts:
    return read_help_page(data.decode("utf-8", "replace"))


def _mozilla(data: bytes) -> Iterator[tuple[str, Texts]]:
    """Resource and its texts from a language pack or a program's own archive."""
    for name, body in read_jar(data):
        # `browser/chrome/de/locale/de/x/y.properties` and its en-US version -> `x/y.properties`
        resource = re.sub(r"^(?:.*/)?(?:locale|localization)/[A-Za-z-]+/", "", name)
        read = read_fluent if name.endswith(".ftl") else read_properties
        yield resource, read(body.decode("utf-8", "replace"))


def _joined(english: Mapping[str, str], texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, text in texts.items():
        if text and key in english:
            yield english[key], text


def _blocks(
    english: list[tuple[str, str]], translation: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Block pairs of two versions of a help file, if both have the same blocks in order."""
    if [name for name, _ in english] == [name for name, _ in translation]:
        for (_, one), (_, other) in zip(english, translation, strict=True):
            if one and other:
                yield one, other


@cache
def _load(file: Path) -> dict[str, Texts]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return json.load(stream)
