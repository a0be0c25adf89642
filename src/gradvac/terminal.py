"""Printing any text to a terminal safely.

File names, names of archive members and messages of other libraries may contain control sequences,
which could move the cursor or rename the window, and brackets, which rich would read as markup.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

# C0 except tab and line feed, DEL, C1; then characters that reverse the order of later letters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with each control character written as ``\x1b``."""
    return _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


class Terminal(Console):
    """A rich console that prints plain text: no markup, no emoji, no control sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Called for every string, in a table or alone."""
        return super().render_str(printable(text), **options)


def complain(error: object) -> None:
    """Print an error to standard error."""
    print(f"error: {printable(str(error))}", file=sys.stderr)


def any_encoding() -> None:
    r"""Let both streams accept any text: missing characters are written as ``\u2192``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
