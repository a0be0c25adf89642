"""TMX and the test sets of WMT: XML read as a stream, without custom entities; SGML by its tags."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.parsers import expat

from gradvac.errors import CorpusError
from gradvac.text.blocks import Row, row_of
from gradvac.text.textfiles import (
    BROKEN,
    LINE_LIMIT,
    Fault,
    check_text,
    decode,
    open_bytes,
    raw_lines,
)

_CHUNK = 1 << 16
# These elements hold formatting of the original document, not text (TMX 1.4b, "Content markup").
_CODES = {"bpt", "ept", "ph", "it", "ut"}

Handler = Callable[[str, dict[str, str], str, int], Row | Fault | None]


def _stream(path: Path, text_of: str, end: Handler) -> Iterator[Row | Fault]:
    """Feed a file to expat; `end` is called at each element's end: tag, attributes, text, line.

    Text is collected only inside `text_of` elements.
    """
    open_: list[tuple[str, dict[str, str]]] = []
    text: list[str] = []
    found: list[Row | Fault] = []
    collecting, skipping, held = 0, 0, 0
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal collecting, skipping, held
        open_.append((tag, attributes))
        if tag == text_of:
            collecting, held = collecting + 1, 0
            text.clear()
        skipping += tag in _CODES
        if tag != text_of and not collecting:
            end(f"<{tag}", attributes, "", parser.CurrentLineNumber)

    def stop(tag: str) -> None:
        nonlocal collecting, skipping
        _, attributes = open_.pop()
        collecting -= tag == text_of
        skipping -= tag in _CODES
        if not collecting:
            item = end(tag, attributes, "".join(text).strip(), parser.CurrentLineNumber)
            if item is not None:
                found.append(item)

    def characters(data: str) -> None:
        nonlocal held
        if collecting > skipping and held <= LINE_LIMIT:
            text.append(data)
            held += len(data)

    def entity(name: str, *_: object) -> None:
        raise CorpusError(
            f"{path}:{parser.CurrentLineNumber}: declares the entity {name!r}: entities of "
            "a file's own are not expanded, since a few of them can fill any memory"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, stop
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = entity
    try:
        with open_bytes(path) as file:
            while data := file.read(_CHUNK):
                parser.Parse(data)
                yield from found
                found.clear()
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise CorpusError(f"{path}:{error.lineno}: not XML, or cut off: {error}") from error
    except (*BROKEN, LookupError, ValueError) as error:  # the last two from a declared encoding
        raise CorpusError(f"{path}:{parser.CurrentLineNumber}: cannot be read: {error}") from error
    yield from found


def tmx(path: Path) -> Iterator[Row | Fault]:
    """Translation units of a TMX file; language tags as the file spells them.

    Places and errors name the unit by its `tuid`, if it has one.
    """
    texts: dict[str, str] = {}
    language, unit = "", ""

    def end(tag: str, attributes: dict[str, str], text: str, line: int) -> Row | Fault | None:
        nonlocal language, unit
        if tag == "<tu":
            texts.clear()
            unit = f" (tuid {attributes['tuid']!r})" if attributes.get("tuid") else ""
        elif tag == "<tuv":
            language = attributes.get("xml:lang") or attributes.get("lang") or ""
        elif tag == "seg":
            texts.setdefault(language, " ".join(text.split()))
        elif tag == "tu":
            return _checked(texts, f"{path}:{line}{unit}")
        return None

    try:
        yield from _stream(path, "seg", end)
    except CorpusError as error:
        raise CorpusError(f"{error}{unit and f'; the last unit begun is{unit}'}") from error


def wmt_xml(path: Path) -> Iterator[Row | Fault]:
    """Segments of a WMT test set in XML (2021 and later): source and first reference."""
    texts: dict[str, dict[str, str]] = {}
    language, lines = "", dict[str, int]()
    rows: list[Row | Fault] = []

    def end(tag: str, attributes: dict[str, str], text: str, line: int) -> Row | Fault | None:
        nonlocal language
        if tag in ("<src", "<ref"):
            language = attributes.get("lang", "")
        elif tag == "<hyp":
            language = ""  # a system's output
        elif tag == "seg" and language:
            number = attributes.get("id", "")
            lines.setdefault(number, line)
            texts.setdefault(number, {}).setdefault(language, " ".join(text.split()))
        elif tag == "doc":
            rows.extend(_checked(own, f"{path}:{lines[n]}") for n, own in texts.items())
            texts.clear()
            lines.clear()
        return None

    for _ in _stream(path, "seg", end):
        pass
    yield from rows


def _checked(texts: dict[str, str], where: str) -> Row | Fault:
    if any(len(text) > LINE_LIMIT for text in texts.values()):
        return Fault("line too long", where)
    try:
        return row_of({code: check_text(text, where) for code, text in texts.items()}, where)
    except Fault as fault:
        return fault


_TAG = re.compile(r"<(/?)(\w+)([^<>]*)>")
_ATTRIBUTE = re.compile(r'(\w+)\s*=\s*"([^"]*)"')


def sgml_segments(path: Path) -> Iterator[tuple[tuple[str, str], str, str]]:
    """((document, segment), text, `file:line`) of an SGML file of WMT, which is not XML.

    Raises:
        CorpusError: the file has no segment, the last one is not closed, or it is not UTF-8.
    """
    document, segment, text, found = "", None, "", 0
    number = 0
    for number, raw in enumerate(raw_lines(path), 1):
        where = f"{path}:{number}"
        try:
            line = decode(raw, where)
        except Fault as fault:
            raise CorpusError(f"{where}: {fault.reason}: {fault.detail}") from fault
        last = 0
        for tag in _TAG.finditer(line):
            text += line[last : tag.start()]
            last = tag.end()
            attributes = dict(_ATTRIBUTE.findall(tag[3]))
            name = tag[2].lower()
            if name == "doc" and not tag[1]:
                document = attributes.get("docid", "")
            elif name == "seg" and not tag[1]:
                segment, text = attributes.get("id", ""), ""
            elif name == "seg" and segment is not None:
                found += 1
                yield (document, segment), " ".join(html.unescape(text).split()), where
                segment = None
        text += line[last:] + " "
    if segment is not None or not found:
        raise CorpusError(f"{path}:{number}: the file ends within a segment, or has none")


def sgml(paths: dict[str, Path]) -> Iterator[Row | Fault]:
    """A test set of WMT in SGML: one file per language, segments paired by document and number."""
    sides = {code: list(sgml_segments(path)) for code, path in paths.items()}
    first, *others = sides
    by_key = {code: {key: text for key, text, _ in sides[code]} for code in others}
    for code in others:
        if by_key[code].keys() != {key for key, _, _ in sides[first]}:
            odd = next(
                where
                for key, _, where in [*sides[first], *sides[code]]
                if (key in by_key[code]) != any(key == k for k, _, _ in sides[first])
            )
            raise CorpusError(f"{odd}: this segment is in one of the files alone")
    for key, text, where in sides[first]:
        yield _checked({first: text, **{code: by_key[code][key] for code in others}}, where)
