"""A Hugging Face checkpoint is measured as a run is: the same model gives the same geometry."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RunError
from gradvac.experiment.figures import CATALOGUE
from gradvac.experiment.training.measuring import measured_folder
from gradvac.experiment.translation.export import export_run
from gradvac.experiment.translation.geometry import measure_run
from gradvac.experiment.translation.geometry_huggingface import measure_huggingface
from gradvac.experiment.view.geometry import subjects_of
from gradvac.experiment.view.run_view import load_runs
from gradvac.geometry.record import GramRecord
from tests.build import QUIET, make_toy, trained
from tests.faults.damage import FAULTS, JSON_FAULTS

TASKS = "fr-en,ne-en,en-fr,en-ne"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Recommended. pip install sacremoses", "ignore:.torch.jit:DeprecationWarning"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy = make_toy(tmp_path_factory.mktemp("huggingface"))
    sets = ["data.directions=both", "training.label_smoothing=0", "training.steps=3"]
    return trained(toy, toy / "run", [*sets, "training.checkpoint_every=3"])


@pytest.fixture(scope="module")
def text(run: Path) -> Path:
    """The validation text of the run, as a file of one's own."""
    return run.parent / "valid.tsv"


@pytest.fixture(scope="module")
def models(run: Path) -> Path:
    """Checkpoints as a Trainer leaves them."""
    folder = run.parent / "models"
    for step in (3, 1000):
        export_run(run, folder / f"checkpoint-{step}", "huggingface", "last")
    return folder


def test_an_exported_model_has_the_geometry_of_its_run(
    run: Path, text: Path, models: Path, tmp_path: Path
) -> None:
    measure_run(run, tmp_path / "own", every=3, rows=text, strings=5, console=QUIET)
    (own,) = GramRecord(tmp_path / "own")
    home = measure_huggingface(
        models, text, TASKS.split(","), tmp_path / "out", every=3, strings=5, console=QUIET
    )
    (other,) = GramRecord(measured_folder(home))
    order = [own.tasks.index(task) for task in TASKS.split(",")]
    whole = own.gram.sum(0)[np.ix_(order, order)]
    assert (other.step, other.tasks) == (3, tuple(TASKS.split(",")))
    assert other.gram.sum(0) == pytest.approx(whole, rel=1e-4)


def test_the_command_measures_prints_and_leaves_what_figures_read(text: Path, models: Path) -> None:
    flags = ["--rows", str(text), "--directions", TASKS, "--strings", "3", "--memory", "0.001"]
    for again in range(2):
        done = CliRunner().invoke(app, ["geometry", str(models), *flags])
        assert done.exit_code == 0, done.output
        assert ("step 1000 measured" in done.output) == (not again)
    assert GramRecord(measured_folder(models)).steps() == [3, 1000]
    subjects = subjects_of(load_runs([models]))
    (picture,) = CATALOGUE["CATS Figure 3"](subjects)
    assert {row[0] for row in picture.rows} == {"M2O", "O2M", "M2M"}
    assert subjects[0].run.facts() == {"Model": "of Hugging Face", "Directions": "4"}
    shutil.rmtree(models / "geometry")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --rows FILE and --directions"),
        (["--rows", "ROWS", "--directions", "fr-en", "--every", "7"], "steps with one: 3, 1000"),
        (["--rows", "ROWS", "--directions", "fr-xx"], "no sentence to measure on for fr-xx"),
        (["--rows", "ROWS", "--directions", "fr-en", "--curvature", "2"], "--curvature is for r"),
    ],
)
def test_what_cannot_be_is_said(text: Path, models: Path, arguments: list[str], message) -> None:
    given = [str(text) if a == "ROWS" else a for a in arguments]
    done = CliRunner().invoke(app, ["geometry", str(models), *given])
    assert done.exit_code != 0
    assert message in str(done.exception)


def without_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    del tensors["model.decoder.layers.0.fc1.weight"]
    save_file(tensors, file, {"format": "pt"})


def a_tensor_turned(file: Path) -> None:
    tensors = load_file(file)
    name = "model.decoder.layers.0.fc1.weight"
    save_file(tensors | {name: tensors[name].T.contiguous()}, file, {"format": "pt"})


def test_a_damaged_folder_is_named(models: Path, text: Path, tmp_path: Path) -> None:
    """Random parameters in place of those that a file lacks would be measured in silence."""
    whole = models / "checkpoint-3"
    tensors = [FAULTS["truncated"], FAULTS["emptied"], FAULTS["a FIFO"], FAULTS["gone"]]
    tensors += [without_a_tensor, a_tensor_turned]
    texts = [FAULTS[f] for f in ("truncated", "emptied", "not UTF-8", "a FIFO", "half a gigabyte")]
    texts += [JSON_FAULTS[f] for f in ("holds {}", "holds []", "holds null", "holds [[1]]")]
    faults = {"model.safetensors": tensors, "config.json": texts, "vocab.json": texts[:-4]}
    faults["source.spm"] = [FAULTS[f] for f in ("emptied", "a FIFO", "gone")]
    for name, damages in faults.items():
        for number, damage in enumerate(damages):
            folder = shutil.copytree(whole, tmp_path / f"{name}-{number}")
            damage(folder / name)
            with pytest.raises(RunError, match=re.escape(str(folder))):
                measure_huggingface(folder, text, ["fr-en"], tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out" / "geometry" / "measured" / "frames.jsonl").exists()


def m2m(folder: Path) -> Path:
    """A random M2M-100 with a tokenizer that knows English, French and Nepali."""
    import sentencepiece as spm
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    words = folder / "words.txt"
    words.write_text("le chat dort\nthe cat sleeps\nun chien voit\na dog sees\n" * 20)
    spm.SentencePieceTrainer.train(
        input=str(words), model_prefix=str(folder / "spm"), vocab_size=24, minloglevel=2
    )
    pieces = spm.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    own = ["<s>", "<pad>", "</s>", "<unk>", *(pieces.id_to_piece(n) for n in range(3, 24))]
    (folder / "vocab.json").write_text(json.dumps({piece: n for n, piece in enumerate(own)}))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))
    config = M2M100Config(
        vocab_size=200, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=12, decoder_ffn_dim=12, encoder_attention_heads=2,
        decoder_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_m2m_model_is_told_its_languages_by_its_own_codes(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library, about itself
        folder = m2m(tmp_path)
    rows = tmp_path / "rows.tsv"
    rows.write_text("en\tfr\nthe cat sleeps\tle chat dort\na dog\tun chien\n")
    measure_huggingface(folder, rows, ["fr-en", "en-fr"], console=QUIET)
    (frame,) = GramRecord(measured_folder(folder))

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = {"en": ["the cat sleeps", "a dog"], "fr": ["le chat dort", "un chien"]}
    gradients = []
    for source, target in (("fr", "en"), ("en", "fr")):
        total, count = torch.zeros(()), 0
        for a, b in zip(text[source], text[target], strict=True):  # one by one: no padding
            tokenizer.src_lang, tokenizer.tgt_lang = source, target
            own = tokenizer(a, text_target=b, return_tensors="pt")
            labels = own["labels"][0]
            assert tokenizer.convert_ids_to_tokens(labels)[0] == f"__{target}__"
            total = total + F.cross_entropy(model(**own).logits[0], labels, reduction="sum")
            count += len(labels)
        model.zero_grad()
        (total / count).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.flatten() for g in grads]).double())
    expected = torch.stack(gradients) @ torch.stack(gradients).T
    assert frame.gram.sum(0) == pytest.approx(expected.numpy(), rel=1e-4)

    with pytest.raises(RunError, match=r"no code for the language 'eu'.*--code eu=\.\.\."):
        other = tmp_path / "other.tsv"
        other.write_text("en\teu\na dog\ttxakur bat\n")
        measure_huggingface(folder, other, ["eu-en"], tmp_path / "o", console=QUIET)
