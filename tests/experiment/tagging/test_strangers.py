"""A stranger's folder runs no code, whoever sits at the terminal and says yes."""

import io
import json
import sys
from pathlib import Path

import pytest

from gradvac.errors import GradvacError
from gradvac.experiment.tagging.evaluate import evaluate_tagging
from gradvac.experiment.translation.geometry_huggingface import measure_huggingface
from gradvac.tagging.encoder import check_encoder, empty_tagger, open_tokenizer, pretrained_tagger
from tests.experiment.tagging.test_runs import train
from tests.tagging.helpers import make_encoder, make_toy

AUTO = ("AutoConfig", "AutoModel", "AutoModelForTokenClassification", "AutoModelForSeq2SeqLM")


@pytest.fixture(autouse=True)
def yes(monkeypatch):
    """A user who answers every question by yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))


def arm(folder: Path, own_kind: bool) -> Path:
    """Let a folder ask for code that leaves a mark; ``own_kind``: nothing else opens it."""
    mark = folder / "was-run"
    (folder / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(AUTO, "theirs.C")
    if own_kind:
        config["model_type"] = "theirs"
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["theirs.C"] * 2}}
    if own_kind:
        tokenizer["tokenizer_class"] = "Theirs"
    file.write_text(json.dumps(tokenizer))
    return mark


@pytest.mark.parametrize("own_kind", [True, False])
def test_an_encoder(tmp_path, own_kind):
    folder = make_encoder(tmp_path / "encoder")
    shape = make_encoder(tmp_path / "shape")
    mark = arm(folder, own_kind)
    for opening in (
        lambda: check_encoder(str(folder)),
        lambda: open_tokenizer(str(folder)),
        lambda: empty_tagger(folder),
        lambda: pretrained_tagger(str(folder), folder, 1),
        lambda: pretrained_tagger(str(folder), shape, 1),
    ):
        try:
            opening()
        except GradvacError as e:
            assert own_kind and "no code of a model's folder is run" in str(e)
    assert not mark.exists()


def test_a_run_of_tagging(tmp_path):
    run = train(tmp_path, make_toy(tmp_path, n=8), "run", ["training.epochs=1"])
    mark = arm(run / "best", True)
    with pytest.raises(GradvacError, match="no code"):
        evaluate_tagging(run)
    assert not mark.exists()


def test_a_model_to_measure(tmp_path):
    folder = make_encoder(tmp_path / "encoder")
    mark = arm(folder, True)
    rows = tmp_path / "rows.tsv"
    rows.write_text("en\tfr\nOpen\tOuvrir\n")
    with pytest.raises((GradvacError, ValueError)):
        measure_huggingface(folder, rows, ["fr-en"])
    assert not mark.exists()
