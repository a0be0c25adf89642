"""Scoring a run, translating as a filter, exporting: through the command line as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.experiment.translation.prepare import open_prepared

runner = CliRunner()


@pytest.fixture
def trained(toy: Path) -> Path:
    result = runner.invoke(app, ["train", str(toy / "recipe.yaml"), "--run", str(toy / "run")])
    assert result.exit_code == 0, result.output
    return toy / "run"


def gradvac(*arguments: str, text: bytes = b"") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gradvac", *arguments],
        input=text,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_evaluate_scores_what_it_wrote(trained):
    result = runner.invoke(app, ["evaluate", str(trained)])
    assert result.exit_code == 0, result.output
    lines = [json.loads(x) for x in (trained / "translations.jsonl").read_text().splitlines()]
    scores = json.loads((trained / "scores.json").read_text())
    assert set(scores["directions"]) == {"fr-en", "ne-en"}
    for direction, found in scores["directions"].items():
        pairs = [x for x in lines if x["direction"] == direction]
        hypotheses = [x["hypothesis"] for x in pairs]
        references = [[x["reference"] for x in pairs]]
        assert found["sentences"] == len(pairs)
        bleu = sacrebleu.corpus_bleu(hypotheses, references).score
        chrf = sacrebleu.corpus_chrf(hypotheses, references, word_order=2).score
        assert found["bleu"] == pytest.approx(bleu) and found["chrf"] == pytest.approx(chrf)
    mean = sum(s["chrf"] for s in scores["directions"].values()) / 2
    assert scores["averages"]["Any->En"]["chrf"] == pytest.approx(mean)
    assert scores["averages"]["low"]["chrf"] == scores["directions"]["ne-en"]["chrf"]
    assert "BLEU|" in result.output and "chrF2++|" in result.output
    rows = [" ".join(line.replace("│", " ").split()) for line in result.output.splitlines()]
    count = scores["directions"]["fr-en"]["sentences"]
    assert any(row.startswith(f"fr-en high Western European {count} ") for row in rows)
    assert any(row.startswith("any-en all 2 dir. ") for row in rows)


ODD = [
    ("open the file", "elif nepoa"),
    ("open the file", "elif nepoa"),  # a repetition
    ("London", "London"),  # a copy
    ("OK", "elif nepoa " * 20 + "x"),  # far longer
    ("Yes", "Oui"),
    ("file " * 239 + "file", "elif " * 239 + "elif"),  # 1,199 characters
    ("open  the   file", "e\u0301lif"),  # spaces and NFD
    ("save … the file", "elif ▁ nepoa"),
]


def test_test_and_validation_text_is_scored_as_it_is_given(toy):
    lines = ["en\tfr\tne", *(f"{en}\t{fr}\t" for en, fr in ODD), "a\t\tb", "c\td", "e\tf\tg"]
    for part in ("test", "valid"):
        (toy / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run = toy / "run"
    train = ["train", str(toy / "recipe.yaml"), "--run", str(run), "--set", "training.steps=4"]
    done = runner.invoke(app, train)
    assert done.exit_code == 0, done.output
    valid = json.loads((run / "data" / "account.json").read_text())["corpora"]["valid fr-en"]
    assert (valid["kept"], valid["dropped"]["not in both languages"]["count"]) == (9, 1)
    assert len(open_prepared(run).valid["fr-en"].source) == 9

    done = runner.invoke(app, ["evaluate", str(run)])
    assert done.exit_code == 0, done.output
    texts = [json.loads(x) for x in (run / "translations.jsonl").read_text().splitlines()]
    own = [x for x in texts if x["direction"] == "fr-en"]
    assert [(x["reference"], x["source"]) for x in own] == [*ODD, ("e", "f")]
    scores = json.loads((run / "scores.json").read_text())
    assert scores["directions"]["fr-en"]["sentences"] == len(ODD) + 1
    unscored = {(x["of"], x["what"]): (x["count"], x["first"]) for x in scores["unscored"]}
    test = str(toy / "test.tsv")
    assert unscored == {
        (test, "wrong number of columns"): (1, [f"{test}:11"]),
        ("fr-en", "not in both languages"): (1, [f"{run / 'data' / 'test.jsonl'}:9"]),
        ("ne-en", "not in both languages"): (
            8,
            [f"{run / 'data/test.jsonl'}:{n}" for n in (1, 2, 3)],
        ),
    }
    assert scores["remarks"] == []
    assert "not scored: not in both languages: fr-en 1, ne-en 8" in " ".join(done.output.split())


def test_what_a_score_suffers_from_is_said(toy):
    rows = ["en\tfr", "cafe\u0301 …\ta", "½\tb", f"x\t{'elif ' * 800}"]
    (toy / "test.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    sets = ["training.steps=2", "vocabulary.normalization=nmt_nfkc"]
    train = ["train", str(toy / "recipe.yaml"), "--run", str(toy / "run")]
    done = runner.invoke(app, [*train, *(word for s in sets for word in ("--set", s))])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["evaluate", str(toy / "run"), "--sentences", "3", "--beam", "1"])
    assert done.exit_code == 0, done.output
    scores = json.loads((toy / "run" / "scores.json").read_text())
    remarks = {r["what"]: (r["of"], r["count"], r["scored"]) for r in scores["remarks"]}
    assert remarks == {
        "sources cut after 2,048 tokens": ("fr-en", 1, True),
        "references that the vocabulary cannot write (nmt_nfkc)": ("fr-en", 2, True),
        "references scored in Unicode NFC": ("fr-en", 1, True),
    }
    assert scores["first_sentences"] == 3
    printed = " ".join(done.output.split())
    assert "references that the vocabulary cannot write (nmt_nfkc): fr-en 2" in printed


def test_both_sides_have_averages_of_their_own(toy):
    run = toy / "both"
    sets = ["--set", "data.directions=both", "--set", "training.steps=2"]
    done = runner.invoke(app, ["train", str(toy / "recipe.yaml"), "--run", str(run), *sets])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["evaluate", str(run)])
    assert done.exit_code == 0, done.output
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores["directions"]) == {"fr-en", "ne-en", "en-fr", "en-ne"}
    for side, names in {"Any->En": ("fr-en", "ne-en"), "En->Any": ("en-fr", "en-ne")}.items():
        mean = sum(scores["directions"][n]["bleu"] for n in names) / 2
        assert scores["averages"][side]["bleu"] == pytest.approx(mean)
    family = [scores["directions"][n]["chrf"] for n in ("fr-en", "en-fr")]
    assert scores["averages"]["Western European"]["chrf"] == pytest.approx(sum(family) / 2)
    assert "Western European" in done.output


def test_evaluate_limits_sentences_and_names_a_missing_checkpoint(trained):
    assert runner.invoke(app, ["evaluate", str(trained), "--sentences", "2"]).exit_code == 0
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["directions"]["fr-en"]["sentences"] == 2
    done = gradvac("evaluate", str(trained), "--checkpoint", "5")
    assert done.returncode == 2
    assert b"no checkpoint '5'; there: step-00000004, step-00000008" in done.stderr


def test_translate_is_a_filter(trained):
    done = gradvac("translate", str(trained), text=b"elif nepoa\n\ntamrof  elbat\r\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 3 and done.stdout.split(b"\n")[1] == b""


def test_translate_names_what_is_wrong(trained):
    done = gradvac("translate", str(trained), text=b"good\n\xff\xfe\n")
    assert (done.returncode, done.stderr) == (2, b"error: <stdin>:2: not UTF-8 at byte 0\n")
    done = gradvac("translate", str(trained), "--to", "xx", text=b"a\n")
    assert done.returncode == 2
    assert b"not trained to translate into 'xx'; it translates into: en\n" in done.stderr
    done = gradvac("translate", str(trained.parent), text=b"a\n")
    assert done.returncode == 2 and b"holds no model" in done.stderr


def test_export_is_half_precision_and_translates_alike(trained, tmp_path):
    out = tmp_path / "model"
    assert runner.invoke(app, ["export", str(trained), str(out)]).exit_code == 0
    assert {f.name for f in out.iterdir()} == {
        "model.json",
        "tasks.json",
        "model.safetensors",
        "vocabulary.model",
        "SHA256SUMS",
        "README.md",
    }
    half = load_file(out / "model.safetensors")
    whole = load_file(trained / "best" / "model.safetensors")
    for name, tensor in half.items():
        assert torch.equal(tensor, whole[name].half())


def test_bad_recipes_and_folders_exit_2_without_a_traceback(toy):
    done = gradvac("train", str(toy / "recipe.yaml"), "--set", "method.name=gradvax")
    assert done.returncode == 2 and b"did you mean 'gradvac'" in done.stderr
    done = gradvac("evaluate", str(toy / "nothing"))
    assert done.returncode == 2 and b"not a run folder" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["demo", "train", "evaluate", "translate", "export", "report"])
def test_every_verb_has_help_with_an_example(verb):
    result = runner.invoke(app, [verb, "--help"])
    assert result.exit_code == 0 and "Example: " in result.output
