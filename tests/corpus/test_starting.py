"""`gradvac new`: any text becomes a project whose recipe trains."""

import json
import random
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.corpus.importing.build import Options
from gradvac.corpus.starting import new_project
from gradvac.errors import CorpusError
from gradvac.experiment.recipe.load import load_recipe
from gradvac.experiment.training.kind import job_of
from gradvac.experiment.training.prepare import prepare

FR = "fichier page tableau image feuille cadre index style bordure colonne".split()
TR = "dosya sayfa tablo resim yaprak kare dizin stil kenar sütun".split()
EN = "file page table image sheet frame index style border column".split()


def rows(count: int, seed: int = 1) -> list[tuple[str, str, str]]:
    """Sentences of eight words, translated word by word; the last language for half of them."""
    draw = random.Random(seed)
    found = []
    for n in range(count):
        words = [draw.randrange(10) for _ in range(8)]
        sides = [" ".join(side[w] for w in words) for side in (EN, FR, TR)]
        found.append((sides[0], sides[1], sides[2] if n % 2 else ""))
    return found


def write(file: Path, lines: list[tuple[str, ...]], *codes: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join("\t".join(x) for x in [codes, *lines]) + "\n", encoding="utf-8")


def new(text: Path, out: Path, directions: str = "to_en") -> tuple[Path, str]:
    said: list[str] = []
    made = new_project([text], out, directions, Options(check=False), said.append)
    return made, "\n".join(said)


def english(file: Path) -> set[str]:
    return {line.split("\t")[0] for line in file.read_text(encoding="utf-8").splitlines()[1:]}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """Of text without evaluation text."""
    folder = tmp_path_factory.mktemp("new")
    write(folder / "text" / "all.tsv", rows(400), "en", "fr", "tr")
    return new(folder / "text", folder / "project")


def test_the_recipe_trains(made, tmp_path):
    recipe = load_recipe(made[0])
    assert recipe.method.name == "gradvac" and recipe.training.steps == 200
    prepare(recipe, tmp_path / "run", lambda text: None)
    job = job_of(tmp_path / "run")
    assert job.tasks == ("fr-en", "tr-en") and job.metrics()
    loss, *_ = job.losses(job.batch(0))
    assert bool(loss.isfinite().all())


def test_evaluation_text_is_taken_from_training_text_and_is_not_in_it(made):
    corpus = made[0].parent / "corpus"
    train, valid, test = (
        english(corpus / part) for part in ("train/en-fr.tsv", "valid.tsv", "test.tsv")
    )
    assert not train & (valid | test) and not valid & test
    assert 10 <= len(valid) <= 40 and 10 <= len(test) <= 40  # one of 20 of each language, at most
    assert len(train) <= 400 - len(valid) - len(test)
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert manifest["pairs"]["test"]["tr"] > 0


def test_what_was_found_is_printed_and_written(made):
    recipe, said = made
    text = recipe.read_text(encoding="utf-8")
    for line in (
        "fr    French    Latin",
        "tr    Turkish   Latin",
        "It had no valid and no test text",
    ):
        assert line in text and line in said
    left_out = next(line for line in text.splitlines() if "English side held out" in line)
    assert left_out.startswith("#   ")


def test_own_test_text_is_kept_and_its_overlap_counted(tmp_path):
    text = rows(400)
    write(tmp_path / "text" / "train.tsv", text, "en", "fr", "tr")
    write(tmp_path / "text" / "test.tsv", [*text[:7], *rows(20, seed=2)], "en", "fr", "tr")
    recipe, said = new(tmp_path / "text", tmp_path / "project", "both")
    assert "It had no valid text" in said and "no test text" not in said
    assert len(english(recipe.parent / "corpus" / "test.tsv")) == 27
    assert load_recipe(recipe).data.directions == "both"


def test_a_single_direction_is_trained_jointly(tmp_path):
    write(tmp_path / "text" / "all.tsv", [row[:2] for row in rows(200)], "en", "fr")
    assert (
        load_recipe(new(tmp_path / "text", tmp_path / "one", "from_en")[0]).method.name == "joint"
    )


def test_without_english_every_pair_is_learned_both_ways(tmp_path):
    write(tmp_path / "text" / "all.tsv", [row[1:] for row in rows(400) if row[2]], "fr", "tr")
    recipe, said = new(tmp_path / "text", tmp_path / "project")
    assert load_recipe(recipe).data.directions == ["fr-tr", "tr-fr"]
    assert "Latin" in said


def test_what_cannot_be_used_leaves_nothing_behind(tmp_path):
    write(tmp_path / "text" / "all.tsv", rows(10), "en", "fr", "tr")
    with pytest.raises(CorpusError, match=r"text: too few pairs to hold any out for "):
        new(tmp_path / "text", tmp_path / "project")
    assert not (tmp_path / "project").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(CorpusError, match="is there already"):
        new(tmp_path / "text", tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_a_terminal_nothing_is_asked():
    found = CliRunner().invoke(app, ["new", "text"])
    assert found.exit_code == 2 and "there is no terminal to ask" in found.output


def test_on_a_terminal_what_is_missing_is_asked_for(tmp_path, monkeypatch):
    write(tmp_path / "text" / "all.tsv", rows(200), "en", "fr", "tr")
    answers = iter([str(tmp_path / "text"), str(tmp_path / "asked"), "to_en"])
    monkeypatch.setattr("gradvac.cli.options.typer.prompt", lambda *a, **k: next(answers))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    from gradvac.cli.start import new as verb

    verb()
    assert (tmp_path / "asked" / "recipe.yaml").exists()
