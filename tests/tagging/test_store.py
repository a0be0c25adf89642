"""Encoded sentences of tagging on disk: what is damaged is named, and what is of another form."""

import json
from pathlib import Path

import numpy as np
import pytest

from gradvac.data.encoded import Sentences
from gradvac.errors import RunError
from gradvac.tagging.store import load_sentences, save_sentences
from tests.faults.damage import FAULTS, JSON_FAULTS

PRINT = "f" * 16
ROWS = [[5, 6, 7], [8], [9, 10]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_sentences(tmp_path, {"de": Sentences.of(ROWS)}, PRINT)
    return tmp_path


def test_what_was_written_is_read(folder):
    found = load_sentences(folder, PRINT)["de"]
    assert [found[n].tolist() for n in range(3)] == ROWS


@pytest.mark.parametrize("name", ["de.ids.npy", "de.offsets.npy", "index.json"])
def test_a_damaged_file_is_named(folder, name):
    whole = (folder / name).read_bytes()
    faults = {k: v for k, v in FAULTS.items() if k not in ("a folder", "half a gigabyte")}
    for damage in (faults | (JSON_FAULTS if name.endswith(".json") else {})).values():
        damage(folder / name)
        with pytest.raises(RunError, match=rf"{name}|tokenizer"):
            load_sentences(folder, PRINT)
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(whole)
    assert len(load_sentences(folder, PRINT)["de"]) == 3


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3, 4, 9], r"de\.offsets\.npy: does not fit its 6 ids"),
        ([0, 4, 3, 6], r"de\.offsets\.npy: does not fit its 6 ids"),
        ([], r"de\.offsets\.npy: does not fit its 6 ids"),
        ([0.0, 6.0], r"de\.offsets\.npy: holds float64 of 1 dimensions"),
        ([[0, 6]], r"de\.offsets\.npy: holds int64 of 2 dimensions"),
    ],
)
def test_offsets_that_lead_elsewhere_are_refused(folder, offsets, message):
    """In a run of an earlier version, which has no sums."""
    index = json.loads((folder / "index.json").read_text())
    del index["sums"]
    (folder / "index.json").write_text(json.dumps(index))
    kind = np.array(offsets, None if offsets else np.int64)
    np.save(folder / "de.offsets.npy", kind)
    with pytest.raises(RunError, match=message):
        load_sentences(folder, PRINT)
