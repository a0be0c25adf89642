"""Licences of a package, from its machine-readable copyright file."""

from __future__ import annotations

import re

# Debian's machine-readable format 1.0: the first line names the format.
_FORMAT = re.compile(r"\A\s*Format(?:-Specification)?:\s*\S*(?:copyright-format|dep5|dep-5)", re.I)
_LICENCE = re.compile(r"^License:[ \t]*(\S.*)$", re.MULTILINE)


def licences(text: str) -> list[str]:
    """Short names of the licences in a copyright file, in order; none if it has another format."""
    if _FORMAT.match(text) is None:
        return []
    return list(dict.fromkeys(name.strip() for name in _LICENCE.findall(text)))
