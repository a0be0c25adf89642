"""Measuring a run: as separate backwards would, once, whatever interrupts it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.data.batches import collate
from gradvac.data.encoded import EncodedTask, Sentences
from gradvac.errors import GradientError, RunError
from gradvac.experiment.training import measuring as geometry_run
from gradvac.experiment.training.measuring import Measurement, curvature_lines
from gradvac.experiment.translation.geometry import measure_run
from gradvac.experiment.translation.geometry_text import aligned_set, script
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.prepare import open_prepared
from gradvac.experiment.translation.prepare import test_rows as kept_rows
from gradvac.geometry.curvature import TopEigenvalue
from gradvac.geometry.record import Frame, GramRecord
from tests.build import QUIET, toy_recipe, toy_rows, trained, write_recipe, write_tsv

TASKS = ("fr-en", "ne-en", "en-fr", "en-ne")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in both directions that kept four sets of parameters."""
    folder = tmp_path_factory.mktemp("toy")
    rows = toy_rows()
    held = [r for r in rows if "ne" in r][::3]
    write_tsv(folder / "train.tsv", [r for r in rows if r not in held])
    write_tsv(folder / "valid.tsv", [*held[::2], {"en": "only english", "fr": "and french"}])
    write_tsv(folder / "test.tsv", held[1::2])
    recipe = toy_recipe()
    recipe["data"]["directions"] = "both"
    recipe["model"]["dropout"] = 0.3
    recipe["training"] |= {"checkpoint_every": 3, "keep": 1, "keep_every": 3}
    write_recipe(folder, recipe)
    return trained(folder, folder / "run")


def equal(a: list[Frame], b: list[Frame]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(getattr(x, f.name), getattr(y, f.name))
        for x, y in zip(a, b, strict=True)
        for f in dataclasses.fields(Frame)
    )


@pytest.fixture(scope="module")
def measured(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measure_run(run, tmp_path_factory.mktemp("measured"), strings=4, console=QUIET)


def by_hand(run: Path, step: int, strings: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model of a checkpoint in evaluation mode and each direction's training loss."""
    model = find_model(run, str(step)).load()
    prepared = open_prepared(run)
    losses = {}
    for task in TASKS:
        source, target = (task.split("-")[0], task.split("-")[1])
        rows = [r for r in kept_rows(run, "valid") if len(r.texts) == 3][:strings]
        vocabulary = prepared.vocabulary
        sources = vocabulary.encode_sources([r.texts[source] for r in rows], target)
        targets = vocabulary.encode_targets([r.texts[target] for r in rows])
        data = EncodedTask(Sentences.of(sources), Sentences.of(targets))
        n = np.arange(len(rows))
        batch = collate({task: data}, (task,), 0 * n, n)
        loss, *_ = model.token_losses(batch.source, batch.target_in, batch.target_out, 0.1)
        losses[task] = loss.mean()
    return model, losses


def test_the_frames_are_the_gradients_of_each_direction_on_the_same_sentences(
    run: Path, measured: Path
) -> None:
    frames = list(GramRecord(measured))
    assert [f.step for f in frames] == [3, 6, 9, 12]
    for frame in frames[::3]:
        assert frame.tasks == TASKS
        model, losses = by_hand(run, frame.step, 4)
        rows = {}
        for task, loss in losses.items():
            found = torch.autograd.grad(loss, list(model.parameters()))
            rows[task] = dict(zip([n for n, _ in model.named_parameters()], found, strict=True))
        largest = frame.gram.max()  # biases of keys have no gradient but rounding
        for k, name in enumerate(frame.groups):
            j = torch.stack([rows[t][name].flatten().double() for t in TASKS])
            expected = (j @ j.T).numpy()
            assert frame.gram[k] == pytest.approx(expected, rel=1e-3, abs=1e-7 * largest)


def test_what_was_measured_is_described(run: Path, measured: Path) -> None:
    said = Measurement.read(measured)
    assert said is not None
    assert (said.tasks, said.strings, said.multiway) == (list(TASKS), 4, True)
    assert said.origin == "validation text"
    assert set(said.scripts) == {"en", "fr", "ne"}
    assert said.parameters["embedding.weight"] == [330, 16]
    assert said.label_smoothing == 0.1


def test_nothing_is_measured_twice_and_an_interrupted_measurement_goes_on(
    run: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def third_is_interrupted(*args: object) -> Frame:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*args)  # type: ignore[arg-type]

    measure = geometry_run.measure
    monkeypatch.setattr(geometry_run, "measure", third_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_run(run, tmp_path, strings=4, console=QUIET)
    assert [f.step for f in GramRecord(tmp_path)] == [3, 6]
    with (tmp_path / "gram.bin").open("ab") as data:
        data.write(b"\x01" * 100)  # a frame that was being written
    measure_run(run, tmp_path, strings=4, console=QUIET)
    assert equal(list(GramRecord(tmp_path)), list(GramRecord(measured)))
    assert len(calls) == 5
    measure_run(run, tmp_path, strings=4, console=QUIET)
    assert len(calls) == 5


def test_in_several_passes_it_is_the_same(run: Path, measured: Path, tmp_path: Path) -> None:
    measure_run(run, tmp_path, strings=4, every=12, hold=5000, console=QUIET)
    (one,) = GramRecord(tmp_path)
    other = next(f for f in GramRecord(measured) if f.step == 12)
    assert (one.tasks, one.groups) == (other.tasks, other.groups)
    assert one.gram == pytest.approx(other.gram, rel=1e-5, abs=1e-9 * other.gram.max())


def test_only_every_nth_step(run: Path, tmp_path: Path) -> None:
    measure_run(run, tmp_path, strings=2, every=6, granularity="enc_dec", console=QUIET)
    frames = list(GramRecord(tmp_path))
    assert [f.step for f in frames] == [6, 12]
    assert frames[0].groups == ("embedding", "encoder", "decoder")
    with pytest.raises(RunError, match="no checkpoint to measure; steps with one: 3, 6, 9, 12"):
        measure_run(run, tmp_path, every=5, console=QUIET)


def test_measurements_of_different_things_are_not_mixed(run: Path, measured: Path) -> None:
    with pytest.raises(RunError, match="other granularity;"):
        measure_run(run, measured, strings=4, granularity="all_layer", console=QUIET)
    with pytest.raises(RunError, match="other strings, fingerprint;"):
        measure_run(run, measured, strings=3, console=QUIET)
    with pytest.raises(GradientError, match="did you mean 'all_layer'"):
        measure_run(run, measured, strings=4, granularity="all_laye", console=QUIET)


def test_curvature_is_that_of_the_mean_loss_of_a_level_and_of_their_sum(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value_in_place_of_curvature(model, losses):  # which has tests of its own
        return {
            g: TopEigenvalue(float(sum(p.detach() for p in parts())), 0.0, 1)
            for g, parts in losses.items()
        }

    monkeypatch.setattr(geometry_run, "curvature", value_in_place_of_curvature)
    measure_run(run, tmp_path, strings=2, every=12, console=QUIET)
    measure_run(run, tmp_path, strings=2, every=12, curvature_strings=1, console=QUIET)
    lines = curvature_lines(tmp_path)
    _, losses = by_hand(run, 12, 1)
    high, low = (
        float((losses[a] + losses[b]).detach()) / 2
        for a, b in (("fr-en", "en-fr"), ("ne-en", "en-ne"))
    )
    found = {(line["step"], line["group"]): line["value"] for line in lines}
    expected = {(12, "high"): high, (12, "low"): low, (12, "sum"): high + low}
    assert found == pytest.approx(expected, rel=1e-5)

    file = tmp_path / "curvature.jsonl"
    file.write_text(file.read_text()[:-30])  # the end of the process that wrote it
    assert len(curvature_lines(tmp_path)) == 2
    measure_run(run, tmp_path, strings=2, every=12, curvature_strings=1, console=QUIET)
    assert curvature_lines(tmp_path) == lines
    with pytest.raises(RunError, match="other curvature;"):
        measure_run(run, tmp_path, strings=2, every=12, curvature_strings=2, console=QUIET)


def test_other_text_can_be_measured_on(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.tsv"
    write_tsv(file, [{"en": "open the page", "fr": "egap nepoa", "ne": "OPEN ko PAGE"}] * 3)
    out = measure_run(run, tmp_path / "m", every=12, rows=file, console=QUIET)
    said = Measurement.read(out)
    assert said is not None
    assert (said.strings, said.origin) == (3, str(file))


def test_directions_whose_languages_share_sentences_can_be_measured_alone(
    run: Path, measured: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.tsv"
    write_tsv(file, [{"en": "open the page", "fr": "egap nepoa"}] * 3)  # none is in Nepali
    ask = {"every": 12, "rows": file, "console": QUIET}
    out = measure_run(run, tmp_path / "m", directions=["en-fr", "fr-en"], **ask)
    said = Measurement.read(out)
    assert said is not None
    assert (said.tasks, said.strings, said.multiway) == (["en-fr", "fr-en"], 3, True)
    with pytest.raises(RunError, match=r"no direction en-xx; it has fr-en, ne-en, en-fr, en-ne"):
        measure_run(run, tmp_path / "n", directions=["en-fr", "en-xx"], **ask)
    few = measure_run(
        run, tmp_path / "few", every=12, strings=4, directions=TASKS[1:3], console=QUIET
    )
    own, whole = next(iter(GramRecord(few))), list(GramRecord(measured))[-1]
    assert own.tasks == TASKS[1:3]
    assert own.gram == pytest.approx(whole.gram[:, 1:3, 1:3], rel=1e-4, abs=1e-7)


def test_without_a_row_in_all_languages_each_direction_has_its_own(
    run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.tsv"
    own = [{"en": "open the page", "fr": "egap nepoa"}, {"en": "the file", "ne": "ko FILE"}]
    write_tsv(file, own)
    said: list[str] = []
    vocabulary = open_prepared(run).vocabulary
    ask = {"max_tokens": 50, "strings": None, "file": file, "say": said.append}
    found = aligned_set(run, TASKS, vocabulary, **ask)
    assert not found.multiway
    assert {task: len(data) for task, data in found.tasks.items()} == dict.fromkeys(TASKS, 1)
    assert "no row is in all 3 languages" in said[0]
    write_tsv(file, own[:1])
    with pytest.raises(RunError, match="no sentence to measure on for ne-en, en-ne"):
        aligned_set(run, TASKS, vocabulary, **ask)


def test_rows_too_long_in_one_direction_are_left_out_of_all(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.tsv"
    short = {"en": "open the page", "fr": "egap nepoa", "ne": "OPEN ko PAGE"}
    write_tsv(file, [short, {**short, "ne": "OPEN ko PAGE " * 30}, {**short, "en": "the page"}])
    vocabulary = open_prepared(run).vocabulary
    found = aligned_set(run, TASKS, vocabulary, max_tokens=40, strings=None, file=file, say=print)
    assert {len(data) for data in found.tasks.values()} == {2}


def test_a_run_without_text_of_its_own_says_what_to_give(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "run"
    shutil.copytree(run, bare)
    (bare / "data" / "valid.jsonl").unlink()  # a run made before this was kept
    assert measure_run(bare, tmp_path / "m", every=12, strings=1, console=QUIET)
    said = Measurement.read(tmp_path / "m")
    assert said is not None and said.origin == "test text"
    (bare / "data" / "test.jsonl").write_text("")
    (bare / "data" / "SHA256SUMS").unlink()  # as of a run that had no test text
    with pytest.raises(RunError, match="neither validation nor test text; give a file with --rows"):
        measure_run(bare, tmp_path / "n", console=QUIET)


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text(json.dumps({"tasks": []}))
    with pytest.raises(RunError, match=r"measured\.json: "):
        Measurement.read(tmp_path)
    (tmp_path / "curvature.jsonl").write_text(
        '{"step": 1, "group": "high", "value": 2}\n{"step": "x"}\n'
    )
    with pytest.raises(
        RunError, match=r"curvature\.jsonl:2: step: Input should be a valid integer"
    ):
        curvature_lines(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Ouvrir 123", "LATIN"),
        ("Құжат", "CYRILLIC"),
        ("फ़ाइल खोलें ok", "DEVANAGARI"),
        ("12", "UNKNOWN"),
    ],
)
def test_the_script_is_that_of_most_letters(text: str, name: str) -> None:
    assert script([text]) == name


def test_the_command_measures_and_says_so(run: Path, tmp_path: Path) -> None:
    flags = ["--every", "12", "--strings", "1", "--granularity", "all_layer", "--curvature", "1"]
    done = CliRunner().invoke(app, ["geometry", str(run), *flags, "--out", str(tmp_path / "m")])
    assert done.exit_code == 0, done.output
    assert "1 checkpoints, 4 directions, 1 sentences each" in done.output
    assert "step 12 measured" in done.output
    lines = curvature_lines(tmp_path / "m")
    assert [line["group"] for line in lines] == ["high", "low", "sum"]
    assert all(line["value"] > 0 and line["residual"] < 0.01 for line in lines)
