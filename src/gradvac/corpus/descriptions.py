"""Descriptions of packages and their translations, from the indexes of apt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from gradvac.corpus.extract import Documents, Extract, write_pairs
from gradvac.text.languages import ENGLISH
from gradvac.text.program_files import read_descriptions
from gradvac.text.textfiles import raw_lines

NAME = "package-descriptions"


def extract_descriptions(
    indexes: Sequence[tuple[Path, str]], languages: Collection[str], out: Path
) -> Extract:
    """Write the clean pairs of the Translation indexes to `out`, as `extract.extract` does.

    A translation belongs to the English description whose MD5 it names. If the numbers of
    paragraphs differ, only the first, the summary, is used.
    """
    english: dict[str, tuple[str, list[str]]] = {}
    for file, code in indexes:
        if code == ENGLISH:
            for package, md5, paragraphs in read_descriptions(_lines(file)):
                english.setdefault(md5, (package, paragraphs))

    def documents() -> Documents:
        for file, code in indexes:
            if code != ENGLISH and code in languages:
                for _, md5, paragraphs in read_descriptions(_lines(file)):
                    if md5 in english:
                        package, original = english[md5]
                        if len(original) != len(paragraphs):
                            original, paragraphs = original[:1], paragraphs[:1]
                        pairs = zip(original, paragraphs, strict=True)
                        yield f"description:{package}", code, pairs

    result = Extract(NAME)
    write_pairs(documents(), result, out)
    return result


def _lines(file: Path) -> Iterator[str]:
    for line in raw_lines(file):
        yield (line or b"").decode("utf-8", "replace")
