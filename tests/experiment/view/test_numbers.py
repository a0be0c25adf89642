"""What the similarity of gradients is about, on runs whose gradients are made to be about it."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gradvac.experiment.training.measuring import Measurement
from gradvac.experiment.view import numbers as geometry_numbers
from gradvac.experiment.view.geometry import Subject, subjects_of
from gradvac.experiment.view.numbers import Finding, findings, print_numbers, words
from gradvac.experiment.view.run_view import load_runs
from gradvac.geometry.record import Frame, GramRecord
from gradvac.geometry.statistics import mantel
from tests.experiment.synthetic import info, make_run, write_json

CODES = ("fr", "es", "de", "hi", "ne", "tr", "kk", "fi")
FAMILIES = [0, 0, 0, 1, 1, 2, 2, 3]
TASKS = tuple(f"{c}-en" for c in CODES)
SHAPES = {"encoder.layers.0.linear1.weight": [40, 5], "decoder.layers.0.linear1.weight": [40, 5]}
FAR = np.abs(np.subtract.outer(np.arange(8.0), np.arange(8.0))) / 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder's gradients are alike within families; the decoder's are not."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "about", "gradvac", TASKS)
    random = np.random.default_rng(0)
    families = random.normal(size=(4, 200))
    j = [random.normal(size=(8, 200)) + 0.8 * families[FAMILIES], random.normal(size=(8, 200))]
    grams = np.array([g @ g.T for g in j])
    measured = folder / "geometry" / "measured"
    none, weights = (0, 0), np.ones((2, 8))
    frame = Frame(10, TASKS, tuple(SHAPES), grams, weights, none, none, none)
    GramRecord(measured).append(frame)
    scripts = dict.fromkeys(CODES, "LATIN") | {"hi": "DEVANAGARI", "ne": "DEVANAGARI"}
    scripts |= {"kk": "CYRILLIC"}
    said = Measurement(list(TASKS), "parameter", 9, "text", True, "f", 0.1, SHAPES, scripts)
    write_json(measured / "measured.json", dataclasses.asdict(said))
    infos = {t: {**info(t), "pairs": 1000 * (n + 1) ** 2} for n, t in enumerate(TASKS)}
    write_json(folder / "tasks.json", infos)
    return folder


@pytest.fixture(scope="module")
def subject(run: Path) -> Subject:
    (subject,) = subjects_of(load_runs([run]))
    return subject


@pytest.fixture(scope="module")
def asked(subject: Subject) -> Iterator[tuple[list[Finding], list[str]]]:
    with pytest.MonkeyPatch.context() as patch:
        far = {"syntactic": FAR}
        patch.setattr(geometry_numbers, "typological_distances", lambda codes: far)
        yield findings(subject)


def units(run: Path) -> np.ndarray:
    (frame,) = GramRecord(run / "geometry" / "measured")
    return frame.cosine()


def test_what_the_gradients_are_about_is_found_and_what_not_is_not(asked) -> None:
    found, notes = asked
    assert notes == []
    by = {(f.part, f.question): f for f in found}
    assert by["encoder", "same family"].verdict == "evidence"
    assert by["decoder", "same family"].verdict == "not told from chance"
    assert by["encoder", "same family, given same script and similar data size"].p <= 0.05
    assert by["encoder", "like a tree (cophenetic)"].p < by["decoder", "like a tree (cophenetic)"].p
    assert {f.side for f in found} == {"Any\N{RIGHTWARDS ARROW}En"}


def test_every_closeness_is_tested_against_the_mean_cosines(run, subject, asked) -> None:
    by = {(f.part, f.question): f for f in asked[0]}
    order = [t.partner for t in subject.tasks]  # family by family, as the paper
    place = [CODES.index(c) for c in order]
    values = units(run)[0][np.ix_(place, place)]
    labels = {
        "same family": {c: FAMILIES[n] for n, c in enumerate(CODES)},
    }
    labels["same script"] = {"hi": "D", "ne": "D", "kk": "C"}
    for question, label in labels.items():
        closeness = np.array(
            [[float(label.get(a, "L") == label.get(b, "L")) for b in order] for a in order]
        )
        expected = mantel(values, closeness)
        found = by["encoder", question]
        assert (found.r, found.p, found.n) == (expected.r, expected.p, 28)
    log = np.log([1000.0 * (CODES.index(c) + 1) ** 2 for c in order])
    expected = mantel(values, -np.abs(np.subtract.outer(log, log)))
    assert by["encoder", "similar data size"].r == pytest.approx(expected.r)
    assert by["encoder", "syntactic closeness (URIEL+)"].r == pytest.approx(mantel(values, -FAR).r)


def test_quality_is_correlated_with_the_mean_similarity_to_the_others(run, asked) -> None:
    by = {(f.part, f.question): f for f in asked[0]}
    scores = json.loads((run / "scores.json").read_text())["directions"]
    off = units(run)[1][~np.eye(8, dtype=bool)].reshape(8, 7).mean(1)
    r = np.corrcoef(off, [scores[t]["bleu"] for t in TASKS])[0, 1]
    found = by["decoder", "BLEU of the direction"]
    assert found.r == pytest.approx(r)
    assert found.low <= found.r <= found.high
    assert found.n == 8


def test_the_number_of_tests_is_said(asked) -> None:
    found, _ = asked
    assert f"{len(found)} tests, not corrected for their number" in words(found)


def test_numbers_are_printed_and_kept(run, asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry_numbers, "findings", lambda subject: asked)
    out = io.StringIO()
    measured = run / "geometry" / "measured"
    print_numbers(run, measured, Console(file=out, width=140))
    assert "same family" in out.getvalue()
    assert "not told from chance" in out.getvalue()
    with (measured / "numbers.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {r["part"] for r in rows} == {"whole_model", "encoder", "decoder"}
    assert all(float(r["p"]) > 0 for r in rows)


def test_what_cannot_be_asked_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(geometry_numbers, "typological_distances", lambda codes: "no typology here")
    few = make_run(tmp_path / "few", "gradvac", ("fr-en", "hi-en", "sw-en"))
    (subject,) = subjects_of(load_runs([few]))
    found, notes = findings(subject)
    assert found == []
    assert notes == ["Any\N{RIGHTWARDS ARROW}En: 3 directions are too few to test anything"]

    alone = make_run(tmp_path / "alone", "gradvac", ("fr-en", "hi-en", "sw-en", "tr-en"))
    (subject,) = subjects_of(load_runs([alone]))
    found, notes = findings(subject)
    assert "no typology here" in notes
    by = {f.question: f for f in found if f.part == "encoder"}
    assert by["same family"].verdict == "cannot be asked: no variation"
    assert "same script" not in by  # the run keeps no text
