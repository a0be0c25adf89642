"""Each kind of file of a run, each fault: whoever reads it ends, and names the file.

The verbs themselves are tried by hand with `python -m tests.faults.verbs`.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from gradvac.errors import GradvacError
from gradvac.experiment.compare.comet import read_comet
from gradvac.experiment.compare.results import collect, read_run
from gradvac.experiment.recipe.variants import read_yaml
from gradvac.experiment.run.checkpoint import load_checkpoint
from gradvac.experiment.run.folder import any_recipe, task_infos
from gradvac.experiment.run.lock import alone
from gradvac.experiment.run.tensor_file import save_tensors
from gradvac.experiment.training.measuring import Measurement, curvature_lines
from gradvac.experiment.training.metrics import truncate
from gradvac.experiment.training.replay import Replay
from gradvac.experiment.translation.model_folder import check_target, find_model
from gradvac.experiment.translation.prepare import open_prepared
from gradvac.experiment.translation.prepare import test_rows as rows_of_the_test_set
from gradvac.experiment.view.run_view import load_runs
from gradvac.geometry.record import GramRecord
from tests.build import write_json, write_lines
from tests.faults.bench import RUN
from tests.faults.damage import faults_of

SECONDS = 30  # nothing here takes one


def all_sentences(run: Path) -> None:
    """Every encoded sentence of a run, as training meets them."""
    prepared = open_prepared(run)
    for part in (prepared.train, prepared.valid):
        for task in part.values():
            for side in (task.source, task.target):
                assert all(len(side[n]) for n in range(len(side)))


def viewed(run: Path) -> None:
    """What a report shows of a run in words and numbers."""
    view = load_runs([run])[0]
    assert view.facts()["Directions"]
    assert not view.train or sum(line["nll"] for line in view.train) != "nothing"


def frames(run: Path) -> None:
    for frame in GramRecord(run / "geometry"):
        assert frame.cosine().shape[0] == len(frame.groups)


def translated(run: Path) -> None:
    check_target(run, "en")
    found = find_model(run)
    assert found.load().config == found.config


def locked(run: Path) -> None:
    """A lock may hold anything, and is written."""
    with alone(run):
        pass


READERS: dict[str, list[Callable[[Path], object]]] = {
    "recipe.yaml": [any_recipe, viewed, lambda run: read_yaml(run / "recipe.yaml")],
    "tasks.json": [task_infos, viewed, translated],
    "model.json": [translated, viewed],
    "vocabulary.model": [translated],
    "best/model.safetensors": [translated, read_run],
    "data/SHA256SUMS": [all_sentences, rows_of_the_test_set],
    "data/test.jsonl": [rows_of_the_test_set],
    "data/valid.jsonl": [lambda run: rows_of_the_test_set(run, "valid")],
    "data/train/index.json": [all_sentences],
    "data/train/fr-en/00000000.ids": [all_sentences],
    "data/valid/fr-en/00000000.offsets": [all_sentences],
    "metrics.jsonl": [viewed, read_run, lambda run: truncate(run / "metrics.jsonl", 8)],
    "speed.jsonl": [read_run, lambda run: truncate(run / "speed.jsonl", 8)],
    "translations.jsonl": [viewed, read_run],
    "scores.json": [viewed, read_run],
    "done.json": [read_run],
    "geometry/frames.jsonl": [frames, viewed],
    "geometry/gram.bin": [frames, viewed],
    "geometry/measured/measured.json": [lambda run: Measurement.read(run / "geometry/measured")],
    "geometry/measured/curvature.jsonl": [lambda run: curvature_lines(run / "geometry/measured")],
    ".lock": [locked],
    "checkpoints/step-00000012/state.json": [
        lambda run: load_checkpoint(run / "checkpoints/step-00000012")
    ],
    "checkpoints/step-00000012/optimizer.safetensors": [
        lambda run: load_checkpoint(run / "checkpoints/step-00000012")
    ],
    "checkpoints/step-00000012/SHA256SUMS": [
        lambda run: load_checkpoint(run / "checkpoints/step-00000012")
    ],
    "../sweep.json": [lambda run: collect([run.parent])],
    "../comet/manifest.json": [lambda run: read_comet(run.parent / "comet")],
    "../comet/fr-en.json": [lambda run: read_comet(run.parent / "comet")],
    "replay/step-00000003.json": [lambda run: Replay.open(run, 3)],
    "replay/step-00000003.safetensors": [lambda run: Replay.open(run, 3)],
}


@pytest.fixture(scope="module")
def scored(whole, tmp_path_factory) -> Path:
    """A finished run with all that verbs leave in it, and a folder of a sweep and of COMET."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("files") / "folder"))
    run = folder / RUN
    texts = [row.texts for row in rows_of_the_test_set(run)]
    lines, comet = [], {"fr-en": [], "ne-en": []}
    for name, lines_of in comet.items():
        for text in (t for t in texts if t.get(name[:2])):
            source, english = text[name[:2]], text["en"]
            lines.append({"direction": name, "source": source, "reference": english}
                         | {"hypothesis": english})  # fmt: skip
            lines_of.append({"mt": english, "COMET": 0.5})
    write_lines(run / "translations.jsonl", lines)
    number = {"bleu": 1.0, "chrf": 2.0, "sentences": 3, "level": "high"}
    scores = {"directions": dict.fromkeys(comet, number), "signatures": {"BLEU": "BLEU|x"}}
    write_json(run / "scores.json", scores)
    measured = run / "geometry" / "measured"
    measured.mkdir()
    said = Measurement(["fr-en"], "parameter", 3, "text", True, "f" * 16, 0.1, {"a": [2]}, {})
    write_json(measured / "measured.json", asdict(said))
    write_lines(measured / "curvature.jsonl", [{"step": 4, "group": "high", "value": 1.5}])
    (run / "replay").mkdir()
    save_tensors({"model/a": torch.zeros(2)}, run / "replay" / "step-00000003.safetensors")
    kept = {"step": 3, "batches": 1, "seed": 3, "learned": {}, "message": "m"}
    write_json(run / "replay" / "step-00000003.json", kept)
    tree = {"size": None, "variants": ["joint"], "baseline": "joint", "front": []}
    write_json(folder / "sweep.json", tree)
    (folder / "comet").mkdir()
    files = [{"file": f"{d}.hyp", "run": str(run), "direction": d} for d in comet]
    write_json(folder / "comet" / "manifest.json", {"model": "m", "files": files})
    for direction, made in comet.items():
        write_json(folder / "comet" / f"{direction}.json", {f"{direction}.hyp": made})
    return folder


def too_long(number: int, frame: object) -> None:
    raise TimeoutError("does not end")


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_by_all_who_read_it(scored, tmp_path, name):
    """Or it is read: a bit may flip where that makes another number, or a line of a log."""
    signal.signal(signal.SIGALRM, too_long)
    folder = Path(shutil.copytree(scored, tmp_path / "whole"))
    for read in READERS[name]:
        read(folder / RUN)  # as it is, it can be read
    file, refused = (folder / RUN / name).resolve(), 0
    whole = file.read_bytes()
    for fault, damage in faults_of(file).items():
        damage(file)
        for read in READERS[name]:
            signal.alarm(SECONDS)
            try:
                read(folder / RUN)
            except GradvacError as e:
                refused += 1
                named = [file.name, file.stem, *[str(file.parent)] * (fault == "gone")]
                assert any(n in str(e) for n in named), f"{fault}: {e}"
            except BaseException as e:
                raise AssertionError(f"{name}, {fault}: {type(e).__name__}: {e}") from e
            finally:
                signal.alarm(0)
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(whole)
    assert refused >= 3
