"""Read every CoNLL-U file below a folder twice, by gradvac and by the package conllu, and compare.

    python -m tools.check_conllu TREEBANKS

TREEBANKS holds treebanks of Universal Dependencies as released: *.conllu, compressed or not. Words
and their UPOS must be the same, sentence by sentence; the first that differs ends it with status 1.
Needs: pip install conllu. The same on made-up files, on every change, is
tests/tagging/test_readers.py.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import conllu

from gradvac.tagging.readers import read_tagged
from gradvac.text.account import Account


def theirs(file: Path) -> tuple[list[list[tuple[str, str]]], int]:
    """Words with their tags as the package has them, and how many lines are no words."""
    found, others = [], 0
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as text:
        for sentence in conllu.parse_incr(text):
            words = [token for token in sentence if isinstance(token["id"], int)]
            others += len(sentence) - len(words)  # multiword tokens and empty nodes
            found.append([(token["form"], token["upos"]) for token in words])
    return found, others


def main() -> None:
    folder = Path(sys.argv[1])
    files = sorted(f for f in folder.rglob("*.conllu*") if f.suffix in (".conllu", ".gz"))
    if not files:
        raise SystemExit(f"{folder}: no *.conllu file in it")
    sentences = words = others = 0
    for file in files:
        ours = read_tagged(str(file), "conllu", Account("fail"))
        wanted, left_out = theirs(file)
        for one, other in zip(ours, wanted, strict=False):
            if list(zip(one.words, one.tags, strict=True)) != other:
                raise SystemExit(f"{one.where}: differs from the package: {other}")
        if len(ours) != len(wanted):
            raise SystemExit(f"{file}: {len(ours)} sentences, {len(wanted)} by the package")
        sentences += len(ours)
        words += sum(len(s.words) for s in ours)
        others += left_out
    print(
        f"{len(files)} files, {sentences:,} sentences, {words:,} words: equal; {others:,} "
        "multiword tokens and empty nodes left out"
    )


if __name__ == "__main__":
    main()
