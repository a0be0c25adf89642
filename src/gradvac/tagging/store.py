"""Encoded sentences on disk, memory-mapped where they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradvac.errors import RunError
from gradvac.translation.encoded import Sentences


def save_sentences(folder: Path, corpus: Mapping[str, Sentences], fingerprint: str) -> None:
    """Write the sentences of each task as ``.npy`` files, and which tokenizer made them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, side in corpus.items():
        np.save(folder / f"{name}.ids.npy", side.ids)
        np.save(folder / f"{name}.offsets.npy", side.offsets)
    index = {"tasks": list(corpus), "tokenizer": fingerprint}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def load_sentences(folder: Path, fingerprint: str) -> dict[str, Sentences]:
    """Open what `save_sentences` wrote; RunError when another tokenizer made it."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["tokenizer"] != fingerprint:
            other = index["tokenizer"]
            raise RunError(f"{folder}: encoded by tokenizer {other}, the run has {fingerprint}")
        part = lambda name, what: np.load(folder / f"{name}.{what}.npy", mmap_mode="r")
        return {t: Sentences(part(t, "ids"), part(t, "offsets")) for t in index["tasks"]}
    except (OSError, ValueError, KeyError) as e:
        raise RunError(f"{folder}: cannot read the encoded text: {e}") from e
