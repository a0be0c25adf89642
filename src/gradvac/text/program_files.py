"""Formats of translated text other than gettext: LibreOffice, Mozilla, XML help, JSON.

Each reader takes the text of one file and returns a table with the same keys in all languages.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from itertools import chain
from typing import Any

# A file of a language pack; the largest that Firefox has is 100 kB.
_LARGEST_MEMBER = 16 * 2**20


def read_help_page(html: str) -> dict[str, str]:
    """Paragraph id -> text of every paragraph and heading of one LibreOffice help page."""
    blocks = re.finditer(r'<(p|h[1-6]) id="([^"]+)"([^>]*)>(.*?)</\1>', html, re.DOTALL)
    return {
        block[2]: _visible_text(block[4])
        for block in blocks
        if 'class="code"' not in block[3] and not block[2].startswith("bm_")
    }


def _visible_text(fragment: str) -> str:
    reader = _VisibleText()
    reader.feed(fragment)
    reader.close()
    return "".join(reader.parts)


class _VisibleText(HTMLParser):
    """Keep the text, without the variants for other systems and applications.

    A help page has every variant of a sentence as a hidden span and shows one by script; the
    one whose id starts with `default` is what most readers see.
    """

    VOID = frozenset(("br", "img", "input", "meta", "link", "hr", "wbr"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.VOID:
            self.parts.append(" " if tag == "br" else "")
            return
        found = dict(attrs)
        hidden = found.get("hidden") == "true" and not (found.get("id") or "").startswith("default")
        if self.hidden_depth or hidden:
            self.hidden_depth += 1

    def handle_endtag(self, tag: str) -> None:
        if self.hidden_depth and tag not in self.VOID:
            self.hidden_depth -= 1

    def handle_data(self, data: str) -> None:
        if not self.hidden_depth:
            self.parts.append(data)


def read_jar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every `.ftl` and `.properties` file of a zip archive.

    Mozilla's optimised archives have the central directory at the front, which Python's
    `zipfile` treats as data before the archive; so this uses the end record's own offset.
    """
    end = data.rfind(b"PK\x05\x06")
    if end < 0:
        raise ValueError("no end of central directory: not a zip archive")
    count, _, position = struct.unpack_from("<HII", data, end + 10)
    for _ in range(count):
        if data[position : position + 4] != b"PK\x01\x02":
            raise ValueError(f"no central directory entry at byte {position}")
        method = struct.unpack_from("<H", data, position + 10)[0]
        packed = struct.unpack_from("<I", data, position + 20)[0]
        name_length, extra, comment = struct.unpack_from("<3H", data, position + 28)
        local = struct.unpack_from("<I", data, position + 42)[0]
        name = data[position + 46 : position + 46 + name_length].decode("utf-8")
        position += 46 + name_length + extra + comment
        if name.endswith((".ftl", ".properties")):
            name_length, extra = struct.unpack_from("<2H", data, local + 26)
            start = local + 30 + name_length + extra
            body = data[start : start + packed]
            yield name, body if method == 0 else _inflate(body, name)


def _inflate(body: bytes, name: str) -> bytes:
    """The deflated file `name`; ValueError if it is truncated or too large to be text."""
    inflater = zlib.decompressobj(-15)
    found = inflater.decompress(body, _LARGEST_MEMBER)
    if not inflater.eof:
        why = "is too large" if len(found) == _LARGEST_MEMBER else "ends too soon"
        raise ValueError(f"{name} in the archive {why}")
    return found


def read_fluent(text: str) -> dict[str, str]:
    """Message id (`id` or `id.attribute`) -> pattern of a Fluent file.

    Patterns with a selector (`->`) are left out: their variants differ between languages.
    """
    found: dict[str, list[str]] = {}
    message = entry = ""
    for line in text.splitlines():
        if start := re.match(r"(-?[A-Za-z][\w-]*)\s*=\s*(.*)", line):
            message = entry = start[1]
            found[entry] = [start[2]]
        elif message and (start := re.match(r"\s+\.([A-Za-z][\w-]*)\s*=\s*(.*)", line)):
            entry = f"{message}.{start[1]}"
            found[entry] = [start[2]]
        elif line.startswith("#"):
            message = entry = ""
        elif entry and line.startswith((" ", "\t", "}")):
            found[entry].append(line.strip())
    joined = {entry: " ".join(parts).strip() for entry, parts in found.items()}
    return {entry: pattern for entry, pattern in joined.items() if "->" not in pattern}


def read_properties(text: str) -> dict[str, str]:
    """Key -> value of a Java `.properties` file."""
    found: dict[str, str] = {}
    for line in re.sub(r"\\\r?\n\s*", "", text).splitlines():
        if entry := re.match(r"\s*([^#!\s=:][^=:\s]*)\s*[=:]\s*(.*)", line):
            found[entry[1]] = re.sub(
                r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), entry[2]
            )
    return found


_BLOCKS = frozenset("p title desc para simpara term subtitle entry td cite link-title".split())
_SKIPPED = frozenset(
    "info articleinfo bookinfo revhistory credit legalnotice author othercredit copyright screen "
    "programlisting code indexterm footnote figure".split()
)


def read_xml_help(data: bytes) -> list[tuple[str, str]]:
    """Element name and text of every block (paragraph, title, term) of a Mallard or DocBook file.

    Entities are not resolved and nothing else is loaded. A block with an entity is empty.

    Raises:
        ValueError: not XML.
    """
    from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, recover=True, remove_comments=True
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"not XML: {error}") from error
    blocks: list[tuple[str, str]] = []
    if root is not None:
        _walk(root, blocks)
    return blocks


def _name(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _walk(element: Any, blocks: list[tuple[str, str]]) -> None:
    name = _name(element)
    if name in _SKIPPED:
        return
    if name in _BLOCKS:
        parts = _inline(element)
        blocks.append((name, "" if None in parts else " ".join("".join(map(str, parts)).split())))
    for child in element:
        _walk(child, blocks)


def _inline(element: Any) -> list[str | None]:
    """Text of a block without the blocks inside it; None marks an entity."""
    parts: list[str | None] = [element.text or ""]
    for child in element:
        name = _name(child)
        if not isinstance(child.tag, str):
            parts.append(None)
        elif name not in _BLOCKS and name not in _SKIPPED:
            parts += _inline(child)
        parts.append(child.tail or "")
    return parts


_VARIANTS = re.compile(r"\{\{(?:PLURAL|GENDER|GRAMMAR):[^|{}]*\|(?:[^{}|]*\|)*([^{}|]*)\}\}")
_LINK = re.compile(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]")


def read_messages(data: bytes) -> dict[str, str]:
    """Key -> text of a message file of MediaWiki (JSON), without its wiki markup.

    Raises:
        ValueError: not such a file.
    """
    try:
        found = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"not an object of messages: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("not an object of messages")
    return {
        key: _without_markup(text)
        for key, text in found.items()
        if isinstance(text, str) and not key.startswith("@")
    }


def _without_markup(text: str) -> str:
    text = _LINK.sub(r"\1", _VARIANTS.sub(r"\1", text))
    return re.sub(r"\$\d+", "{}", re.sub(r"'{2,}", "", text))


def read_descriptions(lines: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Package, MD5 of the English description, and paragraphs, from a Translation index of apt."""
    package = md5 = ""
    paragraphs: list[str] = []
    open_ = False
    for line in chain(lines, [""]):
        line = line.rstrip("\n")
        if not line:
            if package and md5 and paragraphs:
                yield package, md5, [p for p in paragraphs if p]
            package, md5, paragraphs, open_ = "", "", [], False
        elif line.startswith("Package: "):
            package = line[9:]
        elif line.startswith("Description-md5: "):
            md5 = line[17:]
        elif line.startswith("Description-"):
            paragraphs = [line.partition(": ")[2].strip()]
        elif line.startswith(" ") and paragraphs:
            open_ = _add_line(paragraphs, line[1:], open_)


def _add_line(paragraphs: list[str], line: str, open_: bool) -> bool:
    """Add a line of a description; return whether the paragraph continues after it.

    A lone dot ends a paragraph, a bullet starts one, indented lines are verbatim (policy 5.6.13).
    """
    text = line.strip()
    if text in ("", "."):
        return False
    bullet = re.match(r"\s*(?:[-*•+o]|\d+[.)])\s+(.*)", line)
    if bullet and (line.startswith(" ") or line[0] in "-*•+"):
        paragraphs.append(bullet[1])
    elif open_:
        paragraphs[-1] += f" {text}"
    else:
        paragraphs.append(text)
    return True
