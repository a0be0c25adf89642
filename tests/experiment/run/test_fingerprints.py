"""A model goes with its own vocabulary, and a measurement with its own model, or neither goes."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradvac.errors import RunError
from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.run.sums import check_sums, write_sums
from gradvac.experiment.run.tensor_file import load_tensors, save_tensors
from gradvac.experiment.translation.evaluate import evaluate_run
from gradvac.experiment.translation.export import export_run
from gradvac.experiment.translation.filter import translate_lines
from gradvac.experiment.translation.geometry import measure_run
from gradvac.experiment.translation.geometry_huggingface import measure_huggingface
from gradvac.experiment.translation.model_folder import find_model
from gradvac.translation.vocabulary import Vocabulary
from tests.build import QUIET, make_toy, trained

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
FILES = ("model.json", "vocabulary.model", "tasks.json", "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two runs of one corpus whose vocabularies were drawn from other samples, of equal size."""
    toy = make_toy(tmp_path_factory.mktemp("fingerprints"))
    for name, sample in (("run", 1000), ("other", 40)):
        sets = ["training.steps=4", f"vocabulary.sample={sample}"]
        trained(toy, toy / name, sets)
    return toy


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "run", tmp_path / "run")


def verbs(run: Path) -> dict:
    out = run.parent / "out"
    translate = lambda: translate_lines(run, "en", 1, 1.0, "best", "gradvac", [b"x"], None)
    found = {to: lambda to=to: export_run(run, out, to) for to in ("gradvac", "huggingface")}
    return found | {
        "translate": translate,
        "evaluate": lambda: evaluate_run(run, say=lambda text: None),
        "geometry": lambda: measure_run(run, out, console=QUIET),
        "start": lambda: find_model(run),
    }


@pytest.mark.parametrize("text", [True, False])
def test_every_verb_refuses_the_vocabulary_of_another_run(runs, run, text):
    other = Vocabulary.load(runs / "other" / "vocabulary.model")
    assert len(other) == len(Vocabulary.load(run / "vocabulary.model"))
    other.save(run / "vocabulary.model")
    if not text:
        shutil.rmtree(run / "data" / "train")  # a checkpoint knows as well
    for name, verb in verbs(run).items():
        with pytest.raises(RunError, match=r"vocabulary\.model: is not the vocabulary"):
            verb()
        assert not (run.parent / "out").exists(), name


def test_every_flipped_bit_of_a_vocabulary_is_seen(run):
    data = bytearray((run / "vocabulary.model").read_bytes())
    draw = random.Random(0)
    for _ in range(30):
        place, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
        data[place] ^= bit
        (run / "vocabulary.model").write_bytes(data)
        data[place] ^= bit
        with pytest.raises(RunError, match=r"vocabulary\.model"):
            find_model(run)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_of_a_model_folder_is_seen(tmp_path, name):
    """The shipped model and exports carry sums, that of parameters within."""
    model = tmp_path / "model"
    export_run(resolve("shipped:start"), model, "gradvac")
    check_sums(resolve("shipped:start"), FILES)
    check_sums(model, FILES)
    find_model(model).load()
    data = bytearray((model / name).read_bytes())
    data[len(data) // 2] ^= 1
    (model / name).write_bytes(data)
    with pytest.raises(RunError, match=f"{name}: damaged"):
        find_model(model).load()


def test_a_vocabulary_is_not_written_through_links(run, tmp_path):
    linked = tmp_path / "linked"
    os.link(run / "vocabulary.model", linked)
    before = linked.read_bytes()
    find_model(resolve("shipped:start")).vocabulary.save(run / "vocabulary.model")
    assert linked.read_bytes() == before != (run / "vocabulary.model").read_bytes()


def test_a_run_that_was_saved_over_is_not_taken_for_the_one_that_was_measured(run):
    measure_run(run, console=QUIET)
    measure_run(run, console=QUIET)  # nothing has changed
    checkpoint = run / "checkpoints" / "step-00000004"
    tensors = load_tensors(checkpoint / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_tensors(tensors, checkpoint / "model.safetensors")
    parts = ("model.safetensors", "optimizer.safetensors", "method.safetensors", "state.json")
    write_sums(checkpoint, parts)
    with pytest.raises(RunError, match="measured: step 4 was measured on other parameters"):
        measure_run(run, console=QUIET)
    measure_run(run, run / "again", console=QUIET)


def test_a_hugging_face_model_that_was_saved_over_is_not(runs, tmp_path):
    transformers = pytest.importorskip("transformers")
    model, rows = tmp_path / "model", runs / "valid.tsv"
    export_run(runs / "run", model, "huggingface")
    measure = lambda out: measure_huggingface(model, rows, ["fr-en", "ne-en"], out, console=QUIET)
    measure(tmp_path / "out")
    measure(tmp_path / "out")
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(model)
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    before = load_file(model / "model.safetensors")
    loaded.save_pretrained(model)
    assert load_file(model / "model.safetensors").keys() >= set(before) - {"final_logits_bias"}
    with pytest.raises(RunError, match="step 0 was measured on other parameters: the model has"):
        measure(tmp_path / "out")
