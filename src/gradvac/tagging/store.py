"""Encoded sentences on disk, memory-mapped for reading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired

import numpy as np
from typing_extensions import TypedDict

from gradvac.data.encoded import Sentences
from gradvac.data.store import open_sentences
from gradvac.errors import RunError
from gradvac.reading import read_json, sha256_of
from gradvac.writing import write_json


class _Index(TypedDict):
    tasks: list[str]
    tokenizer: str
    sums: NotRequired[dict[str, str]]  # not in runs of earlier versions


def save_sentences(folder: Path, corpus: Mapping[str, Sentences], fingerprint: str) -> None:
    """Write the sentences of each task as ``.npy`` files, with the tokenizer's fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for task, side in corpus.items():
        for name, array in ((f"{task}.ids.npy", side.ids), (f"{task}.offsets.npy", side.offsets)):
            np.save(folder / name, array)
            sums[name] = sha256_of(folder / name)
    index = {"tasks": list(corpus), "tokenizer": fingerprint, "sums": sums}
    write_json(folder / "index.json", index, indent=None)


def load_sentences(folder: Path, fingerprint: str) -> dict[str, Sentences]:
    """Open the files of `save_sentences`; RunError if damaged or made by another tokenizer."""
    index = read_json(folder / "index.json", _Index)
    if (other := index["tokenizer"]) != fingerprint:
        raise RunError(f"{folder}: encoded by tokenizer {other}, the run has {fingerprint}")
    for name, wanted in index.get("sums", {}).items():
        if (found := sha256_of(folder / name)) != wanted:
            raise RunError(
                f"{folder / name}: damaged: its SHA-256 begins {found[:12]}, and index.json says "
                f"{wanted[:12]}"
            )
    return {t: open_sentences(folder, t) for t in index["tasks"]}
