"""GNU gettext catalogues, compiled (`.mo`) and source (`.po`), as translated messages.

Both formats are parsed here and not by a library, because every fault must be located by
line or byte offset, compressed files must be read, and U+2028 inside a message is text.
Layouts: GNU gettext manual, "The Format of PO Files" and "The Format of GNU MO Files".
"""

from __future__ import annotations

import codecs
import gettext
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gradvac.errors import CorpusError
from gradvac.text.textfiles import Fault, check_text, decode, raw_lines, read_bytes

# Chosen here: about twenty times the largest catalogues of Debian; a compressed file that grows
# beyond it is not a catalogue.
_SIZE_LIMIT = 256 * 2**20

# English uses its plural for every number except one. Five represents them, because languages with
# more than two forms use one of their plural forms for it.
_ONE, _MANY = 1, 5

# A catalogue may name any codec of Python, some of which are not character sets.
_CHARSETS = re.compile(
    r"utf-?8|ascii|us-ascii|iso-?8859-\d+|latin-?\d+|cp\d+|windows-\d+|koi8-[rut]|"
    r"euc-?(jp|kr|cn)|gb2312|gbk|gb18030|big5(-?hkscs)?|shift_?jis|tis-?620|georgian-ps|"
    r"armscii-8|viscii|tcvn.*",
    re.IGNORECASE,
)
_CHARSET = re.compile(r"^Content-Type:.*charset=([^\s;]+)", re.MULTILINE | re.IGNORECASE)
_PLURAL = re.compile(r"^Plural-Forms:.*plural=([^;\n]+)", re.MULTILINE | re.IGNORECASE)


class Message(NamedTuple):
    """A message and its translation; a message with plural forms yields two of these."""

    source: str
    target: str
    where: str
    context: str = ""


class _Forms:
    """Which forms of a translation belong to the English singular and plural.

    The header's rule decides; if it is missing or does not fit, the first and last form are used.
    """

    def __init__(self, header: str) -> None:
        self.one, self.many = 0, -1
        found = _PLURAL.search(header)
        if found is None:
            return
        try:
            rule = gettext.c2py(found[1].strip())
            self.one, self.many = rule(_ONE), rule(_MANY)
        except (ValueError, ArithmeticError, RecursionError):
            self.one, self.many = 0, -1

    def messages(
        self, sources: list[str], targets: list[str], where: str
    ) -> Iterator[Message | Fault]:
        if not any(targets):
            yield Fault("untranslated", where, skip=True)
        elif len(sources) == 1:
            yield Message(sources[0], targets[0], where)
        else:
            count = len(targets)
            fits = 0 <= self.one < count and 0 <= self.many < count
            one, many = (self.one, self.many) if fits else (0, count - 1)
            if one != many:
                yield Message(sources[0], targets[one], where)
            yield Message(sources[1], targets[many], where)


def mo_messages(path: Path, limit: int) -> Iterator[Message | Fault]:
    """Messages of a compiled catalogue; `where` ends in the message's number in it.

    Raises:
        CorpusError: not a catalogue, or one whose tables point outside the file.
    """
    yield from parse_mo(read_bytes(path, _SIZE_LIMIT), path, limit)


def parse_mo(data: bytes, path: Path | str, limit: int) -> Iterator[Message | Fault]:
    """As `mo_messages`, for a catalogue in memory; `path` is its name in messages."""
    spans = _mo_spans(path, data)
    header = next((data[t[0] : t[1]] for m, t in spans if m[0] == m[1]), b"")
    where = f"{path}:1"
    charset = _charset(header.decode("latin-1"), where)
    forms = _Forms(header.decode(charset, "replace"))
    for number, (message, translation) in enumerate(spans, 1):
        where = f"{path}:{number}"
        if message[0] == message[1]:
            continue
        if max(message[1] - message[0], translation[1] - translation[0]) > limit:
            yield Fault("line too long", where)
            continue
        try:
            sources, targets = (
                [_decode_form(form, where, charset) for form in data[start:end].split(b"\0")]
                for start, end in (message, translation)
            )
        except Fault as fault:
            yield fault
        else:
            context = data[message[0] : message[1]].rpartition(b"\x04")[0]
            for found in forms.messages(sources, targets, where):
                if context and isinstance(found, Message):
                    found = found._replace(context=context.decode(charset, "replace"))
                yield found


_Span = tuple[int, int]


def _mo_spans(path: Path | str, data: bytes) -> list[tuple[_Span, _Span]]:
    """Start and end in `data` of every message and of its translation."""
    orders = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}
    order = orders.get(data[:4])
    if order is None:
        raise CorpusError(f"{path}: byte 0: not a .mo catalogue, which starts with 0x950412de")
    if len(data) < 20:
        raise CorpusError(f"{path}: byte {len(data)}: the file ends within the .mo header")
    revision, count, messages, translations = struct.unpack_from(f"{order}4I", data, 4)
    if revision >> 16 > 1:
        raise CorpusError(f"{path}: byte 4: .mo revision {revision >> 16}: allowed are 0 and 1")
    tables: list[list[_Span]] = []
    for table in (messages, translations):
        if table + 8 * count > len(data):
            raise CorpusError(
                f"{path}: byte {table}: the file ends within a table of {count} messages"
            )
        numbers = struct.unpack_from(f"{order}{2 * count}I", data, table)
        spans = [(at, at + n) for n, at in zip(numbers[::2], numbers[1::2], strict=True)]
        for index, (_, end) in enumerate(spans):
            if end > len(data):
                raise CorpusError(
                    f"{path}: byte {table + 8 * index}: message {index + 1} ends at byte {end}, "
                    f"the file at {len(data)}"
                )
        if sum(end - start for start, end in spans) > 2 * len(data):
            raise CorpusError(f"{path}: byte {table}: the messages overlap")
        tables.append(spans)
    return list(zip(*tables, strict=True))


def _decode_form(data: bytes, where: str, charset: str) -> str:
    """The text of one form, without the context, which ends in U+0004.

    A carriage return is a control character in a line, but white space in a message.
    """
    return decode(data.rpartition(b"\x04")[2].replace(b"\r", b" "), where, charset)


def po_messages(path: Path, limit: int) -> Iterator[Message | Fault]:
    """Messages of a source catalogue; `where` is the line of the msgid.

    Fuzzy, obsolete and untranslated entries are skipped (and counted).

    Raises:
        CorpusError: a line that is not PO syntax, or entries that lack a part.
    """
    charset = _po_charset(path, limit)
    forms = _Forms("")
    for entry in _po_entries(path, limit, charset):
        if isinstance(entry, Fault):
            yield entry
        elif entry.fault is not None:
            yield entry.fault
        elif entry.is_header:
            forms = _Forms(entry.targets[0])
        elif entry.fuzzy:
            yield Fault("fuzzy", entry.where, skip=True)
        else:
            yield from _checked(forms.messages(entry.sources, entry.targets, entry.where))


def _checked(messages: Iterator[Message | Fault]) -> Iterator[Message | Fault]:
    for message in messages:
        try:
            if isinstance(message, Message):
                check_text(message.source, message.where)
                check_text(message.target, message.where)
            yield message
        except Fault as fault:
            yield fault


@dataclass(slots=True)
class _Entry:
    """One entry of a PO file as it is read, keyword by keyword."""

    where: str = ""
    fields: dict[str, list[str]] = field(default_factory=dict)
    current: str = ""
    size: int = 0
    fuzzy: bool = False
    fault: Fault | None = None

    @property
    def sources(self) -> list[str]:
        return ["".join(self.fields[k]) for k in ("msgid", "msgid_plural") if k in self.fields]

    @property
    def targets(self) -> list[str]:
        return ["".join(v) for k, v in self.fields.items() if k.startswith("msgstr")]

    @property
    def is_header(self) -> bool:
        return self.sources == [""] and "msgctxt" not in self.fields

    @property
    def is_over(self) -> bool:
        """Whether a new entry may begin; after a fault, the rest of this one may be missing."""
        return self.current.startswith("msgstr") or self.fault is not None


_KEYWORD = re.compile(
    r'(msgctxt|msgid_plural|msgid|msgstr(?:\[\d{1,2}\])?)?[ \t]*"([^"\\]*(?:\\.[^"\\]*)*)"',
    re.DOTALL,
)
_OBSOLETE = re.compile(r"#~[ \t]*msgid[ \t]")
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        octal, hexadecimal, letter = match.groups()
        if letter is not None:
            return _ESCAPES.get(letter, letter)
        return chr(int(octal, 8) if octal else int(hexadecimal, 16))

    return _ESCAPE.sub(character, text) if "\\" in text else text


def _po_entries(path: Path, limit: int, charset: str) -> Iterator[_Entry | Fault]:
    entry = _Entry()
    where = f"{path}:1"
    for number, raw in enumerate(raw_lines(path, limit), 1):
        where = f"{path}:{number}"
        line, fault = _po_line(raw, where, charset)
        starts = not line or line.startswith(("#", "msgctxt", "msgid ", 'msgid"', "msgid\t"))
        if starts and entry.is_over:
            yield entry
            entry = _Entry()
        if line.startswith("#~"):
            entry = _Entry()
            if _OBSOLETE.match(line):
                yield Fault("obsolete", where, skip=True)
        elif line.startswith("#,"):
            entry.fuzzy = entry.fuzzy or "fuzzy" in line
        elif line and not line.startswith("#"):
            _add(entry, line, fault, where, limit)
    if entry.is_over:
        yield entry
    elif entry.fields:
        raise CorpusError(f"{where}: the file ends within an entry, after its {entry.current}")


def _po_line(raw: bytes | None, where: str, charset: str) -> tuple[str, Fault | None]:
    """The readable part of a line, so that the entry it belongs to can be left out."""
    try:
        return decode(raw, where, charset).strip(" \t"), None
    except Fault as fault:
        return (raw or b'""').decode(charset, "replace").strip(" \t"), fault


def _add(entry: _Entry, line: str, fault: Fault | None, where: str, limit: int) -> None:
    """Add a line to the entry: one with a keyword, or one that continues the last."""
    found = _KEYWORD.fullmatch(line)
    if found is None:
        if fault is None:
            raise CorpusError(f"{where}: not a line of a PO file: {line[:60]!r}")
        entry.fault = entry.fault or fault
        return
    keyword, value = found[1], _unescape(found[2])
    entry.size += len(value)
    if entry.size > limit:
        fault, value = Fault("line too long", where), ""
    entry.fault = entry.fault or fault
    if keyword is None:
        keyword = entry.current
    elif entry.fault is None:
        _check_keyword(entry, keyword, where)
    if not keyword:
        raise CorpusError(f"{where}: a text without a keyword: {line[:60]!r}")
    if keyword == "msgid":
        entry.where = entry.where or where
    entry.fields.setdefault(keyword, []).append(value)
    entry.current = keyword


def _check_keyword(entry: _Entry, keyword: str, where: str) -> None:
    if keyword in entry.fields:
        raise CorpusError(f"{where}: a second {keyword} in one entry")
    if keyword not in ("msgid", "msgctxt") and "msgid" not in entry.fields:
        raise CorpusError(f"{where}: {keyword} without a msgid before it")


def _po_charset(path: Path, limit: int) -> str:
    """The charset that the header names; only the part before the second msgid is read."""
    header: list[str] = []
    messages = 0
    for raw in raw_lines(path, limit):
        line = (raw or b"").decode("latin-1").strip(" \t")
        messages += line.startswith("msgid")
        if messages > 1:
            break
        found = _KEYWORD.fullmatch(line)
        header.append(_unescape(found[2]) if found else "")
    return _charset("".join(header), f"{path}:1")


def _charset(header: str, where: str) -> str:
    found = _CHARSET.search(header)
    if found is None:
        return "utf-8"
    try:
        if _CHARSETS.fullmatch(found[1]):
            return codecs.lookup(found[1]).name
    except LookupError:
        pass
    raise CorpusError(f"{where}: unknown charset {found[1][:40]!r} in the header: UTF-8 is best")
