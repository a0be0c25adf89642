"""Escapes that the tokenizer of Moses writes for its own special characters: `&apos;`, `@-@`.

Corpora tokenised by it have them in their text, and a model would learn to write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gradvac.text.account import Account
from gradvac.text.blocks import Block, Row
from gradvac.text.textfiles import Fault

# tokenizer.perl of Moses, "escape special chars"; `&amp;` is undone last because it is done first.
_CHARACTERS = {
    "&#124;": "|", "&#91;": "[", "&#93;": "]", "&lt;": "<", "&gt;": ">", "&apos;": "'",
    "&quot;": '"', "&amp;": "&",
}  # fmt: skip
_HYPHEN = re.compile(r"(?:^|(?<=\S) )@([-/])@(?: (?=\S)|$)")
_FOUND = re.compile(rb"&(?:#124|#91|#93|lt|gt|apos|quot|amp);|(?:^| )@[-/]@(?: |$)")
NOTE = "escapes of Moses (&apos; @-@); unescape: true (in an import, --unescape) undoes them"


def undone(text: str) -> str:
    """A text with the escapes of Moses replaced by the characters."""
    if "@" in text:
        text = _HYPHEN.sub(r"\1", text)
    if "&" in text:
        for escape, character in _CHARACTERS.items():
            text = text.replace(escape, character)
    return text


def unescaped(items: Iterable[Row | Fault]) -> Iterator[Row | Fault]:
    """Rows with the escapes of their texts undone."""
    for item in items:
        if isinstance(item, Row):
            yield Row({code: undone(text) for code, text in item.texts.items()}, item.where)
        else:
            yield item


def noted(
    items: Iterable[Row | Fault | Block], name: str, account: Account
) -> Iterator[Row | Fault | Block]:
    """The items, unchanged; rows with escapes are noted."""
    for item in items:
        if isinstance(item, Block):
            data = b"\n".join(item.lines)
            if b"&" in data or (b"@" in data and (b"@-@" in data or b"@/@" in data)):
                for row, line in enumerate(item.lines):
                    if (b"&" in line or b"@" in line) and has_escapes(line):
                        account.note(name, NOTE, item.where(row))
        elif isinstance(item, Row):
            text = "\t".join(item.texts.values())
            if ("&" in text or "@" in text) and has_escapes(text.encode("utf-8", "replace")):
                account.note(name, NOTE, item.where)
        yield item


def has_escapes(line: bytes) -> bool:
    """Whether a line of cells separated by tabs has escapes of Moses."""
    return any(_FOUND.search(cell) for cell in line.split(b"\t"))
