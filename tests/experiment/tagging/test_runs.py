"""Whole runs: training, resuming, scoring, comparing, reporting, and an encoder of one's own."""

import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from gradvac import FAMO, MGDA, Engine, GradVac
from gradvac.cli.main import app
from gradvac.errors import CorpusError, NotFiniteError, RecipeError, RunError
from gradvac.experiment.compare.compare import compare
from gradvac.experiment.compare.comparison_view import markdown
from gradvac.experiment.recipe.load import load_recipe, of_kind
from gradvac.experiment.report import write_report
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.tagging.evaluate import TaggingScores, evaluate_tagging, score_table
from gradvac.experiment.training import replay
from gradvac.experiment.training.display import Display
from gradvac.experiment.training.kind import job_of
from gradvac.experiment.training.prepare import prepare_below
from gradvac.experiment.training.train import Trainer
from gradvac.experiment.translation.recipe import Recipe
from gradvac.tagging.scores import TaggingScore
from tests.build import QUIET, trained, trainer, write_recipe
from tests.tagging.helpers import make_encoder, make_toy, tagged_rows

transformers = pytest.importorskip("transformers")


def quiet(text: str) -> None:
    pass


def train(folder: Path, tree: dict, run: str, changes: list[str] | None = None) -> Path:
    write_recipe(folder, tree)
    return trained(folder, folder / run, changes or [])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A joint run and one with GradVac, scored, of two toy languages."""
    folder = tmp_path_factory.mktemp("tagging")
    tree = make_toy(folder)
    for name in ("joint", "gradvac"):
        train(folder, tree | {"method": {"name": name}, "name": name}, name)
        evaluate_tagging(folder / name)
    return folder


@pytest.mark.parametrize("name", ["joint", "gradvac"])
def test_a_run_learns_and_is_scored(runs, name):
    """The tag of a toy word follows from the word: two epochs are enough to see it."""
    scores = json.loads((runs / name / "scores.json").read_text())
    assert set(scores["directions"]) == {"de", "fr"}
    assert scores["averages"]["all"]["accuracy"] > 60  # the commonest of four tags: 30
    lines = [json.loads(t) for t in (runs / name / "tags.jsonl").read_text().splitlines()]
    assert len(lines) == 18
    right = [a == b for x in lines if x["task"] == "fr" for a, b in zip(x["tags"], x["predicted"])]  # noqa: B905
    assert scores["directions"]["fr"]["accuracy"] == pytest.approx(100 * sum(right) / len(right))


def test_epochs_become_steps(runs):
    """24 + 12 sentences, 4 a step, 2 epochs; a tenth of the steps is warm-up."""
    training = any_recipe(runs / "joint").training
    assert (training.steps, training.warmup, training.validate_every) == (18, 2, 9)
    lines = [json.loads(t) for t in (runs / "joint" / "metrics.jsonl").read_text().splitlines()]
    valid = [line for line in lines if line["kind"] == "valid"]
    assert [line["step"] for line in valid] == [9, 18]
    assert valid[1]["error"] == (valid[1]["error/de"] + valid[1]["error/fr"]) / 2
    words = sum(line["tokens"] for line in lines if line["kind"] == "train")
    sizes = {"de": 24, "fr": 12}  # temperature 1: both are seen twice in expectation
    once = sum(len(r) for code, n in sizes.items() for r in tagged_rows("", n))
    assert abs(words - 2 * once) < 30


def test_steps_without_epochs_are_so_many_steps(tmp_path):
    """The default of ten epochs does not win over what is given; a tenth of them is warm-up."""
    tree = make_toy(tmp_path, n=8)
    tree["training"] = {"steps": 4, "learning_rate": 0.01, "log_every": 1}
    out = train(tmp_path, tree, "run")
    training = any_recipe(out).training
    assert (training.steps, training.epochs, training.warmup) == (4, None, 1)
    assert (training.validate_every, training.checkpoint_every) == (3, 3)  # an epoch: 12 by 4
    steps = [json.loads(t) for t in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (
            {"steps": 4, "epochs": 2},
            r"training\.steps: found 4, and training\.epochs: 2\.0 makes it 6",
        ),
        (
            {"steps": 40, "warmup": 5, "warmup_share": 0.5},
            r"training\.warmup: found 5, and training\.warmup_share: 0\.5 makes it 20",
        ),
    ],
)
def test_two_keys_that_decide_the_same_thing_are_refused(tmp_path, given, found):
    tree = make_toy(tmp_path, n=8)
    tree["training"] = given
    with pytest.raises(RecipeError, match=found):
        train(tmp_path, tree, "run")
    tree["training"] = given | {list(given)[-1]: None}
    recipe = load_recipe(write_recipe(tmp_path, tree))
    prepare_below(tmp_path, recipe, tmp_path / "run", quiet)


def test_more_epochs_go_on_from_the_end(tmp_path):
    """Warm-up and validation stay where they were; a run's own recipe makes the run again."""
    tree = make_toy(tmp_path, n=8)
    train(tmp_path, tree, "run", ["training.epochs=1"])
    out = train(tmp_path, tree, "run", ["training.epochs=2"])
    training = any_recipe(out).training
    assert (training.steps, training.warmup, training.validate_every) == (6, 1, 3)
    assert json.loads((out / "done.json").read_text())["step"] == 6
    again = load_recipe(out / "recipe.yaml")
    copied = prepare_below(tmp_path, again, tmp_path / "again", quiet)
    assert any_recipe(copied).training == training


def test_verbs_that_advice_names_serve_runs_of_every_kind(runs, tmp_path, monkeypatch):
    """`gradvac train`, `evaluate` and `replay`, as a report and a kept step name them."""
    monkeypatch.chdir(tmp_path)
    call = lambda *words: CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    recipe = runs / "gradvac" / "recipe.yaml"
    done = call("train", recipe, "--run", tmp_path / "run")
    assert done.exit_code == 0, done.output
    best = "best/model.safetensors"
    assert (tmp_path / "run" / best).read_bytes() == (runs / "gradvac" / best).read_bytes()
    table = call("evaluate", tmp_path / "run", "--checkpoint", "last")
    assert table.exit_code == 0 and "accuracy" in table.output
    scores = [json.loads((f / "scores.json").read_text()) for f in (tmp_path / "run",)]
    assert scores[0]["checkpoint"] == "last" and set(scores[0]["directions"]) == {"de", "fr"}
    with pytest.raises(RunError, match=r"--beam, --zero-shot: of translation alone"):
        call("evaluate", tmp_path / "run", "--beam", 2, "--zero-shot", "all")
    job = job_of(tmp_path / "run")
    error = NotFiniteError("the loss of task 'de' is not finite", "de")
    told = replay.keep(job, [job.batch(0)], 0, {}, error)
    command = told.rpartition("kept: gradvac ")[2].split()
    assert command[0] == "replay"
    repeated = call(*command)
    assert repeated.exit_code == 1 and "it does not fail here" in repeated.output


def test_both_runs_begin_alike(runs):
    """The same parameters and batches whatever the method: the first loss is the same."""
    first = [
        json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[1])["task_nll"]
        for name in ("joint", "gradvac")
    ]
    assert first[0].keys() == first[1].keys()
    jobs = [job_of(prepared(runs, name)) for name in ("joint", "gradvac")]
    a, b = (job.batch(3) for job in jobs)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels)
    assert a.ids.shape[0] == 4
    for p, q in zip(jobs[0].model.parameters(), jobs[1].model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_validation_is_in_the_precision_of_training(runs):
    """As in translation: its NLL is that of the losses trained on."""
    job = job_of(prepared(runs, "joint"))
    seen = {}
    for job.bf16 in (False, True):
        line = job.validate()
        for index, task in enumerate(job.prepared.valid):
            losses = [job.losses(batch)[1] for batch in job._in_order(index)]
            assert line[f"nll/{task}"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
            seen.setdefault(task, set()).add(line[f"nll/{task}"])
    assert all(len(values) == 2 for values in seen.values())  # the precision shows


def prepared(runs: Path, name: str) -> Path:
    """A run folder of that method in which nothing is trained yet."""
    recipe = load_recipe(runs / name / "recipe.yaml")
    return prepare_below(runs, recipe, runs / f"fresh-{name}", quiet)


def test_the_best_parameters_open_in_hugging_face(runs):
    model = transformers.AutoModelForTokenClassification.from_pretrained(runs / "joint" / "best")
    assert list(model.config.id2label.values()) == ["DET", "NOUN", "PUNCT", "VERB"]
    kept = load_file(runs / "joint" / "best" / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name])
    assert transformers.AutoTokenizer.from_pretrained(runs / "joint" / "best").is_fast


def test_comparison_table_and_report(runs, tmp_path):
    found = compare([runs / "joint", runs / "gradvac"], baseline="joint", test="randomization")
    assert set(found.metrics) == {"f1", "accuracy", "nll"}
    row = found.rows[1]
    assert 0 < row.cells["f1"]["de"].p <= 1
    scores = json.loads((runs / "gradvac" / "scores.json").read_text())
    assert row.cells["f1"]["avg"].mean == pytest.approx(scores["averages"]["all"]["f1"])
    assert "approximate randomisation over sentences" in markdown(found, True)
    page = write_report(
        tmp_path / "r.html", [runs / "joint", runs / "gradvac"], title="t", start=None, notes=[]
    )
    assert "4 sentences" in page.read_text(encoding="utf-8")


def test_a_stopped_run_resumes_to_the_same_parameters(runs, tmp_path, monkeypatch):
    """After the first epoch, and with the encoder gone."""
    tree = make_toy(tmp_path) | {"method": {"name": "gradvac"}, "name": "gradvac"}
    shutil.copytree(runs / "encoder", tmp_path / "encoder", dirs_exist_ok=True)
    out = tmp_path / "run"
    first = trainer(write_recipe(tmp_path, tree).parent, out)
    step = first.train_step

    def stop_at_10() -> int:
        if first.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    monkeypatch.setattr(first, "train_step", stop_at_10)
    assert first.train() == 128 + signal.SIGTERM
    (tmp_path / "encoder" / "model.safetensors").unlink()
    assert Trainer(job_of(out), Display(QUIET)).train() == 0
    for part in ("metrics.jsonl", "best/model.safetensors"):
        assert (out / part).read_bytes() == (runs / "gradvac" / part).read_bytes()


def test_another_recipe_is_refused(runs):
    recipe = load_recipe(runs / "joint" / "recipe.yaml", ["training.learning_rate=0.5"])
    with pytest.raises(RunError, match=r"these keys differ: training\.learning_rate"):
        prepare_below(runs, recipe, runs / "joint", quiet)


@pytest.mark.parametrize("kind", ["xlm-roberta", "modernbert"])
def test_other_encoders(kind, tmp_path):
    tree = make_toy(tmp_path, n=8)
    make_encoder(tmp_path / "other", kind)
    changes = ["model.encoder=other", "training.epochs=1", "method.name=pcgrad"]
    run = train(tmp_path, tree, "run", changes)
    assert set(evaluate_tagging(run).languages) == {"de", "fr"}


def test_per_task_and_learned_shares(tmp_path):
    """The other engine, and MultiDDS-S, which takes gradients of validation text."""
    tree = make_toy(tmp_path, n=8)
    changes = ["method.name=gradvac", "method.engine=per_task", "batches.sampling=multidds_s"]
    changes += ["batches.multidds_s.every=3", "training.epochs=2"]
    run = train(tmp_path, tree, "run", changes)
    lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
    shares = [line["task_share"] for line in lines if line["kind"] == "sampling"]
    assert len(shares) == 2 and shares[0] != shares[1]


def test_entities(tmp_path):
    """Validation and test measure entity F1 where the task is ner."""
    tree = make_toy(tmp_path, n=8)
    names = {"VERB": "O", "DET": "O", "PUNCT": "O", "NOUN": "B-LOC"}
    tree["data"] |= {"task": "ner", "labels": ["LOC"]}
    for own in tree["data"]["languages"].values():
        own["map"] = names
    run = train(tmp_path, tree, "run")
    scores = evaluate_tagging(run)
    assert scores.task == "ner"
    lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["error"] <= 100 for line in lines if line["kind"] == "valid")


@pytest.mark.parametrize("count", [2, 12, 13, 30])
@pytest.mark.parametrize("task", ["ner", "pos"])
def test_every_number_of_the_table_is_legible_in_80_columns(task, count):
    codes = (
        "fr es de en bg hu hi mr ar ta te vi pt ru kk sw xh yo zu cs pl uk fi et tr id sk da sv nl"
    )
    own = {
        code: TaggingScore(100.0, 10.5 + n, 20.5 + n, 30.5 + n, 9, 99)
        for n, code in enumerate(codes.split()[:count])
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(score_table("t", TaggingScores(task, own)))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    cells = text.split()
    assert cells.count("100") == count + 1 and set(own) <= set(cells)
    wanted = [f"{10.5 + n:.1f}" for n in range(count)]
    assert all(number in cells for number in wanted)


ENCODER = {
    "job": "encoder",
    "name": "encoder",
    "device": "cpu",
    "vocabulary": {"size": 110},
    "model": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 32,
    },
    "batches": {"tokens": 60, "pool": 3},
    "training": {
        "steps": 12, "warmup": 2, "learning_rate": 0.01, "validate_every": 4,
        "checkpoint_every": 4, "log_every": 4, "precision": "fp32",
    },
    "method": {"name": "gradvac"},
}  # fmt: skip


def test_an_encoder_of_ones_own_is_trained_and_fine_tuned(tmp_path):
    """Masked text of both languages with GradVac, then tags; transformers opens the encoder."""
    tree = make_toy(tmp_path)
    data = {"tagged": tree["data"]["languages"], "max_tokens": 32}
    run = train(tmp_path, ENCODER | {"data": data}, "encoder-run")
    again = train(tmp_path, ENCODER | {"data": data}, "encoder-again")
    for file in ("metrics.jsonl", "best/model.safetensors", "best/tokenizer.json"):
        assert (run / file).read_bytes() == (again / file).read_bytes()
    job = job_of(run)
    assert any(len(job.batch(n).present) == 2 for n in range(12))  # the method has work to do
    lines = [json.loads(t) for t in (run / "metrics.jsonl").read_text().splitlines()]
    nll = [line["nll"] for line in lines if line["kind"] == "valid"]
    assert nll[-1] < nll[0]
    model = transformers.AutoModelForMaskedLM.from_pretrained(run / "best")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    kept = load_file(run / "best" / "model.safetensors")
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters())
    with pytest.raises(RunError, match="encoder has no test set"):
        CliRunner().invoke(app, ["evaluate", str(run)], catch_exceptions=False)
    for verb in ("translate", "geometry"):
        with pytest.raises(RunError, match=r"no run of translation; its|of an encoder; those of"):
            CliRunner().invoke(app, [verb, str(run)], input="x", catch_exceptions=False)
    page = write_report(tmp_path / "r.html", [run], title="t", start=None, notes=[]).read_text()
    assert "gradvac evaluate" not in page and "names no test text" in page
    tagger = train(tmp_path, tree, "tagger", ["model.encoder=encoder-run", "training.epochs=1"])
    assert set(evaluate_tagging(tagger).languages) == {"de", "fr"}


@pytest.mark.parametrize("method", [GradVac(), MGDA(), FAMO()])
def test_an_encoder_has_the_gradients_of_its_languages(tmp_path, method):
    """Of a batch of both, the Gram matrix and losses are those of a backward pass for each."""
    tree = make_toy(tmp_path)
    data = {"tagged": tree["data"]["languages"], "max_tokens": 32}
    model = ENCODER["model"] | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    recipe = load_recipe(write_recipe(tmp_path, ENCODER | {"data": data, "model": model}))
    job = job_of(prepare_below(tmp_path, recipe, tmp_path / "run", quiet))
    batch = next(b for b in map(job.batch, range(12)) if len(b.present) == 2)
    losses, gradients = [], []
    for index in batch.present:
        job.model.zero_grad()
        loss = job.losses(batch.of_task(index))[0].sum() / batch.tokens
        loss.backward()
        losses.append(float(loss.detach()))
        parameters = dict(job.model.named_parameters()).values()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    job.model.zero_grad()
    engine = Engine(job.model, method, "whole_model")
    with engine.tasks((batch.task, batch.tasks)):
        loss, _, rows = job.losses(batch)
        report = engine.backward(loss / batch.tokens, rows)
    gram = torch.stack(gradients) @ torch.stack(gradients).T
    assert torch.allclose(report.losses, torch.tensor(losses, dtype=torch.float64))
    assert torch.allclose(report.gram[0], gram.double(), rtol=1e-4)


def test_paths_of_a_command_line_begin_where_it_is_typed(tmp_path, monkeypatch):
    """Not beside the recipe, where nothing of that name is; what is there comes first."""
    tree = make_toy(tmp_path, n=4)
    recipes, below = tmp_path / "recipes", tmp_path / "recipes" / "data"
    below.mkdir(parents=True)
    path = write_recipe(recipes, tree)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "config.json").write_text("{}")
    recipe = load_recipe(path, ["data.folder=.", "model.encoder=run"])
    assert recipe.data.folder == str(recipes)  # it exists beside the recipe
    assert recipe.model.encoder == str(tmp_path / "run" / "best")
    (tmp_path / "corpora").mkdir()
    assert load_recipe(path, ["data.folder=corpora"]).data.folder == str(tmp_path / "corpora")
    assert load_recipe(path, ["data.folder=data"]).data.folder == str(below)
    assert load_recipe(path, ["data.folder=none"]).data.folder == str(recipes / "none")


def test_errors_name_key_or_line(tmp_path):
    tree = make_toy(tmp_path, n=4)
    path = write_recipe(tmp_path, tree)
    with pytest.raises(RecipeError, match=r"data\.languages\.de\.format: .*must be conllu"):
        load_recipe(path, ["data.languages.de.format=conll"])
    with pytest.raises(RecipeError, match="job: this is a recipe of another job"):
        of_kind(load_recipe(path), Recipe, str(path))
    with pytest.raises(RecipeError, match="job: found 'tag', must be tagging, encoder"):
        load_recipe(write_recipe(tmp_path, tree | {"job": "tag"}))
    # The encoder before the text, which takes minutes to read: of two mistakes this is the first.
    with pytest.raises(RecipeError, match=r"model\.encoder: no encoder in .*: no such folder, and"):
        train(tmp_path, tree, "a", [f"model.encoder={tmp_path}/nothing", "data.labels=[X]"])
    with pytest.raises(CorpusError, match=rf"{tmp_path}/de.train:1: word 3 .* has tag 'NOUN'"):
        train(tmp_path, tree, "b", ["data.labels=[DET, NOUNS, PUNCT, VERB]"])
