"""Recipe files that hold several experiments: what wins, what is refused, where runs go."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gradvac.cli.main import app
from gradvac.errors import RecipeError
from gradvac.experiment.recipe.load import load_recipe, read_recipe_file
from gradvac.experiment.recipe.variants import row_of, run_folder
from gradvac.experiment.run.folder import run_recipe
from gradvac.experiment.translation.recipe import Recipe

FILE = """
name: many
data: {train: [{path: a.tsv}], cleaning: {max_ratio: 3.0}}
training: {steps: 100, warmup: 10}
method: {name: joint, record_every: 7}
sizes:
  small: {training.steps: 5, data: {max_pairs: 9, cleaning.min_words: 2}}
  paper:
    batches.tokens: 500000
    variants:
      cats: {method.options.warmup_steps: 30000, training.warmup: 30000}
variants:
  joint: {}
  cats: {method: {name: cats, options: {rho: 0.6}}, training.warmup: 20}
  bilingual/fr-en: {data.directions: [fr-en]}
seeds: [3, 4]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "many.yaml"
    path.write_text(FILE)
    return path


def test_later_words_win_and_the_rest_stays(file):
    small = load_recipe(file, size="small", variant="joint")
    assert (small.training.steps, small.training.warmup, small.data.max_pairs) == (5, 10, 9)
    assert (small.data.cleaning.max_ratio, small.data.cleaning.min_words) == (3.0, 2)
    assert (small.size, small.variant, small.method.record_every) == ("small", "joint", 7)

    cats = load_recipe(file, size="small", variant="cats", seed=4)
    assert cats.training.warmup == 20  # the variant, over the body
    assert (cats.method.options, cats.method.record_every, cats.seed) == ({"rho": 0.6}, 7, 4)

    paper = load_recipe(file, ["training.steps=8"], size="paper", variant="cats")
    assert paper.training.warmup == 30_000  # the size's word on the variant, over the variant
    assert paper.method.options == {"rho": 0.6, "warmup_steps": 30_000}
    assert (paper.batches.tokens, paper.training.steps) == (500_000, 8)  # --set, over all


def test_a_file_that_extends_another_says_only_what_differs(file):
    child = file.parent / "child.yaml"
    child.write_text(
        "extends: many.yaml\nname: child\nsizes: {small: {training.steps: 6}}\n"
        "variants: {one: {method.name: pcgrad}}\nseeds: [9]\n"
    )
    found = read_recipe_file(child)
    assert list(found.variants) == ["one"] and found.seeds == (9,)
    recipe = load_recipe(found, size="small", variant="one")
    assert (recipe.name, recipe.method.name, recipe.method.record_every) == ("child", "pcgrad", 7)
    assert (recipe.training.steps, recipe.data.max_pairs) == (6, 9)


@pytest.mark.parametrize("key", ["size", "variant"])
def test_a_size_that_is_no_name_is_refused(file, key):
    file.write_text(file.read_text() + f"{key}: [small]\n")
    chosen = {"size": "small", "variant": "joint"} | {key: None}
    with pytest.raises(RecipeError, match=rf"{key}: found \['small'\], must be the name of one"):
        load_recipe(file, **chosen)


@pytest.mark.parametrize(
    ("size", "variant", "message"),
    [
        (None, "joint", r"many\.yaml: choose a size with --size: small, paper$"),
        ("small", None, r"choose a variant with --variant: joint, cats, bilingual/fr-en, or run"),
        ("smal", "joint", r"has no size 'smal'; there are: small, paper; did you mean 'small'\?"),
        ("small", "cat", r"has no variant 'cat'; .* did you mean 'cats'\?"),
    ],
)
def test_a_choice_must_be_made_and_exist(file, size, variant, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, size=size, variant=variant)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [1]}, r"sizes: found \[1\], must map names to what they change"),
        ({"sizes": {"small": 3}}, r"sizes\.small: found 3, must map keys to values"),
        ({"variants": {"a/b/c": {}}}, r"'a/b/c' is no name of a size or variant"),
        ({"variants": {"../a": {}}}, r"'../a' is no name"),
        ({"sizes": {"small": {"variants": {"kats": {}}}}}, r"\['kats'\] are no variants; there"),
        ({"baseline": "kats"}, r"baseline: found 'kats', must be a variant: joint, cats, bilingu"),
        ({"seeds": [1, 1]}, r"seeds: found \[1, 1\], must be different numbers from 0"),
        ({"seeds": 3}, r"seeds: found 3"),
        ({"seeds": [2**64]}, r"seeds: found \[18446744073709551616\], must be different numbers"),
        (
            {"sizes": {"small": {"variants": [1]}}},
            r"sizes\.small\.variants: found \[1\], must map names",
        ),
        ({"extends": "../x.yaml"}, r"extends: found '\.\./x\.yaml', must be a file in the same"),
        (
            {"sizes": {"small": {"methd.name": "x"}}},
            r"\(size small, variant joint\): methd\.name: ",
        ),
        ({"sizes": {"small": {"method.nam": "x"}}}, r"method\.nam: unknown key; did you mean 'na"),
        ({"method": {"name": "x"}}, r"variant joint\): method\.name: found 'x'"),
    ],
)
def test_errors_name_the_key(file, change, message):
    tree = yaml.safe_load(FILE)
    file.write_text(yaml.safe_dump({**tree, **change}, sort_keys=False))
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, size="small", variant="joint")


def test_extending_stops_at_one(file):
    (file.parent / "b.yaml").write_text("extends: many.yaml\n")
    (file.parent / "c.yaml").write_text("extends: b.yaml\n")
    with pytest.raises(RecipeError, match=r"b\.yaml extends another file itself"):
        read_recipe_file(file.parent / "c.yaml")


def test_size_of_a_recipe_that_has_none_is_refused(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text("data: {train: [{path: a.tsv}]}")
    with pytest.raises(RecipeError, match="has no sizes; --size small says nothing here"):
        load_recipe(path, size="small")


def test_names_of_rows_and_folders():
    assert row_of("bilingual/fr-en") == "bilingual" and row_of("joint") == "joint"
    root = Path("runs")
    assert run_folder(root, "r", None, None, 1) == Path("runs/r")
    assert run_folder(root, "r", "small", None, 1) == Path("runs/r-small")
    assert run_folder(root, "r", "small", "b/fr-en", 2) == Path("runs/r-small/b/fr-en/seed-2")


def test_the_command_trains_the_chosen_one_and_the_folder_says_which(toy, monkeypatch):
    tree = yaml.safe_load((toy / "recipe.yaml").read_text())
    tree["sizes"] = {"smoke": {"training.steps": 2, "training.validate_every": 2}}
    tree["variants"] = {"joint": {}, "pcgrad": {"method.name": "pcgrad"}}
    (toy / "recipe.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(toy)
    command = "train recipe.yaml --size smoke --variant pcgrad --seed 5".split()
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    run = Path("runs/toy-smoke/pcgrad/seed-5")
    assert (run / "done.json").exists()
    recipe = run_recipe(run, Recipe)
    assert (recipe.size, recipe.variant, recipe.seed) == ("smoke", "pcgrad", 5)
    assert (recipe.training.steps, recipe.method.name) == (2, "pcgrad")
