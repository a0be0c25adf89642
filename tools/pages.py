"""Pages whose tables are written by a command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def filled(page: Path, kind: str, parts: Mapping[str, str]) -> str:
    """Return the text of a page with each part between its marks.

    Args:
        page: the page; it is not written.
        kind: the first word of the marks, ``<!-- KIND: NAME -->`` to ``<!-- end -->``.
        parts: the new text by name.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        pattern = rf"(<!-- {kind}: {name} -->\n).*?(<!-- end -->)"
        text, n = re.subn(pattern, rf"\g<1>{part}\n\g<2>", text, flags=re.DOTALL)
        if n != 1:
            raise SystemExit(f"{page}: {n} places for {name!r}, must be one")
    return text
