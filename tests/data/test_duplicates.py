"""Duplicates on disk are those that a dictionary in memory finds."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gradvac.data import duplicates, repeats
from gradvac.data.duplicates import (
    BANDS,
    EXACT,
    KEPT,
    NEAR_DUPLICATE,
    band_hashes,
    mark_exact,
    mark_near,
    text_hash,
)


def parts(folder: Path, values: np.ndarray, name: str) -> list[Path]:
    files = []
    for number, chunk in enumerate(np.array_split(values, 3)):
        files.append(folder / f"{name}{number}")
        chunk.astype("<u8").tofile(files[-1])
    return files


@pytest.mark.parametrize("records", [7, 2**20])
def test_exact_duplicates_whatever_the_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    monkeypatch.setattr(duplicates, "BUCKET_RECORDS", records)
    monkeypatch.setattr(repeats, "_BUFFER", records)  # 7: through buckets on disk
    generator = random.Random(1)
    texts = [f"text {generator.randrange(60)}" for _ in range(150)]
    state = np.zeros(len(texts), np.uint8)
    mark_exact(
        parts(tmp_path, np.array([text_hash(t) for t in texts], np.uint64), "h"),
        state,
        tmp_path / "work",
    )
    assert state.tolist() == [EXACT if t in texts[:n] else KEPT for n, t in enumerate(texts)]


def test_near_duplicates_of_pairs(tmp_path: Path) -> None:
    words = [f"{a}{b}" for a in "bcdfghklmn" for b in ("ala", "eno", "iru", "oso")]
    generator = random.Random(2)
    rows: list[tuple[str, str]] = []
    expected = []
    for n in range(60):
        source, target = (generator.sample(words, 8) for _ in range(2))
        rows.append((" ".join(source), " ".join(target)))
        expected.append(KEPT)
        if n % 3 == 0:  # one word of sixteen more: a Jaccard of 16/17
            rows.append((" ".join([*reversed(source), "extra"]), " ".join(target).upper()))
            expected.append(NEAR_DUPLICATE)
        if n % 3 == 1:  # the source again with another target: 8/24
            rows.append((" ".join(source), " ".join(generator.sample(words, 8))))
            expected.append(KEPT)
    bands = band_hashes(rows)
    assert bands.shape == (len(rows), BANDS)
    files = [tmp_path / "one", tmp_path / "two"]
    bands[:30].tofile(files[0])
    bands[30:].tofile(files[1])
    state = np.zeros(len(rows), np.uint8)
    mark_near(files, state, rows.__getitem__, tmp_path / "work")
    assert state.tolist() == expected
