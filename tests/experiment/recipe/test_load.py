"""Recipes: every key checked before anything is loaded, every error says what to do."""

import math
import sys
from pathlib import Path

import pytest
import yaml

from gradvac.errors import GradientError, RecipeError, RunError
from gradvac.experiment.recipe.load import dump_recipe, load_recipe, parse_recipe, read_recipe_file
from gradvac.experiment.recipe.yaml_text import parse_yaml
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.training.build import build_method
from gradvac.methods import (
    CATS,
    FAMO,
    METHODS,
    MGDA,
    GradNorm,
    StaticWeights,
    TorchJD,
    register,
)

NAN = float("nan")
GOOD = {"data": {"train": [{"path": "a.tsv"}]}}


def write(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_defaults_are_the_papers():
    recipe = parse_recipe(GOOD, "r")
    assert recipe.batches.temperature == 5  # Wang et al. 2021, appendix B
    assert recipe.vocabulary.size == 64_000  # section 2.1
    assert recipe.method.granularity == "all_layer"  # appendix F
    assert recipe.training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metod": {}}, "metod: unknown key; did you mean 'method'?"),
        ({"training": {"lr": 1}}, "training.lr: unknown key; allowed here: steps, learning_rate"),
        ({"training": {"warmpu": 1}}, "training.warmpu: unknown key; did you mean 'warmup'?"),
        ({"training": {"beta": 0.1}}, "training.beta: unknown key; did you mean 'betas'?"),
        ({"model": {"granularity": "x"}}, "model.granularity: unknown key; it belongs to section"),
        ({"method": {"seed": 1}}, "method.seed: unknown key; it belongs to the top level"),
        ({"method": {"name": "gradvax"}}, "method.name: found 'gradvax', must be 'joint'"),
        ({"method": {"name": "gradvax"}}, "did you mean 'gradvac'?"),
        (
            {"method": {"name": "gradvac", "beta": 2}},
            "method.beta: found 2; it must lie in [0, 1]",
        ),
        ({"method": {"name": "mgda", "options": {"normalise": "l2"}}}, "did you mean 'normalize'?"),
        (
            {"method": {"name": "mgda", "options": {"normalize": "L2"}}},
            "method.options.normalize: found 'L2', must be 'none', 'l2', 'loss' or 'loss+'",
        ),
        ({"method": {"name": "gradnorm", "options": {"alpha": "1"}}}, "alpha: found '1', must be"),
        (
            {"method": {"name": "cats", "options": {"rho": -1}}},
            "method.options.rho: found -1; it must be",
        ),
        ({"method": {"name": "torchjd"}}, "options.weighting: required, and not there"),
        (
            {"method": {"options": {"beta": 1}}},
            "method.options.beta: found 1, unknown option of joint",
        ),
        ({"batches": {"temperature": 0}}, "batches.temperature: found 0, must be greater than 0"),
        ({"batches": {"temperature": [[0, 5], [9, 0]]}}, "batches.temperature: found 0, must be"),
        ({"batches": {"temperature": "5"}}, "found '5', must be a positive number, or [step, nu"),
        ({"batches": {"temperature": [[0, 5, 1]]}}, "found [[0, 5, 1]], must be a positive num"),
        ({"batches": {"temperature": [[1, 5]]}}, "found steps [1]; they begin at 0 and ascend"),
        ({"batches": {"temperature": [[0, 5], [0, 1]]}}, "found steps [0, 0]; they begin at 0"),
        ({"method": {"record_every": 0}}, "method.record_every: found 0, must be greater than 0"),
        ({"method": {"record_every": 2.5}}, "found 2.5, must be a number of steps, or [step, num"),
        ({"method": {"record_every": [[0, 1], [9, -1]]}}, "found -1, must be greater than 0"),
        ({"method": {"record_every": [[5, 1]]}}, "found steps [5]; they begin at 0 and ascend"),
        ({"batches": {"sampling": "unimx"}}, "batches.sampling: found 'unimx', must be 'temper"),
        ({"batches": {"max_epochs": 0}}, "batches.max_epochs: found 0, must be greater than 0"),
        ({"batches": {"every": 2}}, "unknown key; it belongs to section 'batches.multidds_s"),
        ({"batches": {"multidds_s": {"evry": 2}}}, "batches.multidds_s.evry: unknown key; did you"),
        ({"batches": {"multidds_s": {"steps": 0}}}, "batches.multidds_s.steps: found 0, must be"),
        ({"data": {"train": []}}, "data: give train (sources of text) or corpus (a folder"),
        (
            {"data": {"train": [{"path": "a", "paths": {"f": "b"}}]}},
            "data.train.0: give either path",
        ),
        ({"data": {"train": [{"pth": "a"}]}}, "data.train.0.pth: unknown key; did you mean 'path'"),
        ({"data": {}}, "data: give train (sources of text) or corpus (a folder"),
        ({"data": {"train": [{"path": "a.tsv"}], "cleaning": {"max_ratio": 0.5}}}, "max_ratio"),
        ({"data": {"train": [{"path": "a.tsv"}], "directions": ["fr"]}}, "fr"),
        ({"training": {"steps": "many"}}, "training.steps: found 'many'"),
        ({"seed": 2**64}, f"seed: found {2**64}, must be less than {2**64}"),
        ({"data": {"train": [{"path": "a"}], "languages": []}}, "data.languages: found [], "),
        (
            {"data": {"train": [{"path": "a"}], "languages": ["a" * 36]}},
            "found 'aaaa",
        ),
        (
            {"data": {"train": [{"path": "a"}], "languages": ["../a"]}},
            "found '../a'",
        ),
        ({"data": {"train": [{"path": "a"}], "directions": []}}, "data.directions: found [], "),
        ({"data": {"train": [{"path": "a", "paths": {}}]}}, "data.train.0.paths: found {}, "),
        ({"name": "n" * 256}, "name: found 'nnn"),
        ({"method": {"name": "pcgrad", "tasks": []}}, "method.tasks: found [], "),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate: found inf, must"),
        ({"search": {"length_penalty": NAN}}, "search.length_penalty: found nan, must be"),
        ({"method": {"name": "cats", "options": {"rho": NAN}}}, "options.rho: found nan"),
        (
            {"data": {"train": [{"path": "a"}], "cleaning": {"max_ratio": float("nan")}}},
            "found nan",
        ),
    ],
)
def test_errors_name_the_key_the_value_and_the_mend(tmp_path, change, message):
    path = write(tmp_path, {**GOOD, **change})
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_not_yaml_names_the_line(tmp_path):
    with pytest.raises(RecipeError, match=r"r\.yaml:2: not YAML"):
        load_recipe(write(tmp_path, "data: [\n}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!timestamp x", "a tag (tag:yaml.org,2002:timestamp): write plain values"),
        ("!!int ''", "a tag"),
        ("!!bool x", "a tag"),
        ("!!set {a}", "a tag"),
        ("!own [1]", "a tag (!own)"),
        ("1" * 5000, "a number of 5,000 digits"),
        ("{1: 2}", "a key that is no text: 1; put it in quotes"),
        ("{no: a.tsv}", "a key that is no text: False; put it in quotes"),
        ("[" * 2000, "nested too deep"),
    ],
)
def test_yaml_has_no_types_but_plain_ones(tmp_path, text, message):
    for broken in (
        lambda: load_recipe(write(tmp_path, f"search: {text}\n")),
        lambda: load_recipe(write(tmp_path, GOOD), [f"search={text}"]),
    ):
        with pytest.raises(RecipeError) as caught:
            broken()
        assert message in str(caught.value)
    (tmp_path / "recipe.yaml").write_text(f"search: {text}\n")
    with pytest.raises(RunError, match=r"recipe\.yaml") as refused:
        any_recipe(tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-13-45", "2024-13-45"),
        ("2024-01-02", "2024-01-02"),
        ("010", "010"),  # eight in YAML 1.1
        ("1:30", "1:30"),  # ninety there
        ("=", "="),
        ("12", 12),
        ("-0x1F", -31),
        ("1_000", 1000),
        ("1.0e-3", 1e-3),
        (".inf", math.inf),
        ("true", True),
        ("~", None),
    ],
)
def test_a_value_is_what_it_looks_like(text, value):
    assert parse_yaml(f"a: {text}") == {"a": value}


@pytest.mark.parametrize("text", ["", "- a", "7", "null"])
def test_the_recipe_of_a_run_is_a_mapping(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RunError, match=r"recipe\.yaml: not the recipe of a run: found"):
        any_recipe(tmp_path)


def test_yaml_cannot_run_code(tmp_path):
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(write(tmp_path, "data: !!python/object/apply:os.system ['true']"))


def test_missing_file_and_wrong_shape(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="a mapping of sections, found list"):
        load_recipe(write(tmp_path, "- a"))


def test_set_changes_a_key(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD), ["method.name=pcgrad", "batches.temperature=.inf"])
    assert recipe.method.name == "pcgrad" and recipe.batches.temperature == float("inf")
    with pytest.raises(RecipeError, match=r"write section\.key=value"):
        load_recipe(write(tmp_path, GOOD), ["method.name"])
    with pytest.raises(RecipeError, match="name is not a section"):
        load_recipe(write(tmp_path, {**GOOD, "name": "x"}), ["name.y=1"])


def test_files_are_relative_to_the_recipe(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.data.train[0].path == str(tmp_path / "a.tsv")


def test_a_corpus_folder_stands_for_its_texts(tmp_path):
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    files = [tmp_path / "corpus" / name for name in ("train/en-fr.tsv", "train/en-hi.tsv")]
    for file in (*files, tmp_path / "corpus" / "valid.tsv"):
        file.touch()
    paths = lambda sources: [source.path for source in sources]
    data = load_recipe(write(tmp_path, {"data": {"corpus": "corpus"}})).data
    assert data.corpus == str(tmp_path / "corpus") and paths(data.train) == [str(f) for f in files]
    assert paths(data.valid) == [str(tmp_path / "corpus" / "valid.tsv")] and data.test == []
    given = {"corpus": "corpus", "languages": ["hi"], "valid": [{"path": "mine.tsv"}]}
    data = load_recipe(write(tmp_path, {"data": given})).data
    assert paths(data.train) == [str(files[1])]
    assert paths(data.valid) == [str(tmp_path / "mine.tsv")]
    with pytest.raises(
        RecipeError, match=r"data\.corpus: .*no train/\*\.tsv.* there is en-fr, en-hi"
    ):
        load_recipe(write(tmp_path, {"data": {**given, "languages": ["sw"]}}))


def test_dump_and_parse_round_trip(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("mgda", {"normalize": "l2"}, MGDA),
        ("gradnorm", {"alpha": 1, "initial_losses": {"fr-en": 9.7}}, GradNorm),
        ("gradnorm", {"initial_losses": "first", "group": "whole_model"}, GradNorm),
        ("cats", {"cross_terms": True, "warmup_steps": 4000}, CATS),
        ("famo", {"min_losses": {"fr-en": 0.5}}, FAMO),
        ("torchjd", {"weighting": "IMTLG"}, TorchJD),
        ("torchjd", {"weighting": "GradVac", "options": {"beta": 0.1}}, TorchJD),
    ],
)
def test_methods_with_options(name, options, kind):
    if kind is TorchJD:
        pytest.importorskip("torchjd")
    recipe = parse_recipe({**GOOD, "method": {"name": name, "options": options}}, "r")
    method = build_method(recipe.method, {"fr-en": "high"}, seed=7)
    assert type(method) is kind
    assert kind is not TorchJD or method.seed == 7
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe


def test_a_registered_method_of_ones_own():
    @register("halves")
    class Halves(StaticWeights):
        def __init__(self, factor: float = 0.5) -> None:
            super().__init__({"fr-en": factor})

    try:
        recipe = parse_recipe({**GOOD, "method": {"name": "halves", "options": {"factor": 2}}}, "r")
        assert isinstance(build_method(recipe.method, {"fr-en": "high"}, 0), Halves)
        with pytest.raises(GradientError, match="a method named 'halves' exists: Halves"):
            register("halves")(StaticWeights)
    finally:
        del METHODS["halves"]


@pytest.fixture
def my_method(tmp_path, monkeypatch):
    """A module that registers ``thirds``."""
    source = """
from gradvac import Method
from gradvac.methods import register

@register("thirds")
class Thirds(Method):
    def __init__(self, factor: float = 1 / 3) -> None:
        self.factor = factor

    def _weights(self, geometry):
        return geometry.gram[:, 0] * 0 + self.factor
"""
    (tmp_path / "my_thirds.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield {"module": "my_thirds", "name": "thirds", "options": {"factor": 0.25}}
    METHODS.pop("thirds", None)
    sys.modules.pop("my_thirds", None)


def test_a_module_named_in_the_recipe_brings_its_method(my_method):
    recipe = parse_recipe({**GOOD, "method": my_method}, "r")
    method = build_method(recipe.method, {"fr-en": "high"}, 0)
    assert type(method).__name__ == "Thirds" and vars(method) == {"factor": 0.25}
    with pytest.raises(
        RecipeError, match=r"method\.options\.factr: found 1, unknown option of thirds; did"
    ):
        parse_recipe({**GOOD, "method": {**my_method, "options": {"factr": 1}}}, "r")


def test_reading_a_recipe_runs_no_code(my_method):
    recipe = parse_recipe({**GOOD, "method": my_method}, "r", run_code=False)
    assert recipe.method.name == "thirds" and recipe.method.module == "my_thirds"
    assert "my_thirds" not in sys.modules and "thirds" not in METHODS


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        (
            "no_such_thing",
            None,
            "No module named 'no_such_thing'; install its package, or name its",
        ),
        ("no.such", None, "No module named 'no'; install its package"),
        (
            "my_broken",
            "import nothing_there",
            "ModuleNotFoundError: No module named 'nothing_there'",
        ),
        ("my_broken", "1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch, module, source, says):
    if source:
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
    method = {"module": module, "name": "thirds"}
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**GOOD, "method": method}, "r")
    assert f"r: method.module: found '{module}', which cannot be imported: " in str(caught.value)
    assert says in str(caught.value)
    assert "method.name" not in str(caught.value)  # it may be in the module


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (4, [0, 4, 8, 12, 16, 20, 24]),
        ([[0, 1], [5, 3], [12, 10]], [0, 1, 2, 3, 4, 6, 9, 20]),
    ],
)
def test_which_steps_are_recorded_is_a_function_of_the_step(given, kept):
    method = parse_recipe({**GOOD, "method": {"record_every": given}}, "r").method
    assert [step for step in range(25) if method.records(step)] == kept


def test_the_reference_recipe_lists_every_key_at_its_default():
    file = Path(__file__).parents[3] / "recipes" / "reference.yaml"
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    defaults = parse_recipe({"data": {"train": tree["data"]["train"]}}, "defaults")
    complete = defaults.model_dump(mode="json")
    complete["data"]["train"] = tree["data"]["train"]
    assert tree == complete


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml")))
def test_every_recipe_is_valid(file):
    load_recipe(file)


def test_the_shipped_recipe_loads_by_its_name():
    assert load_recipe(Path("shipped:recipes/demo.yaml")).training.start_from == "shipped:start"


def test_the_runs_of_the_figures_are_all_valid():
    file = read_recipe_file(Path("shipped:recipes/figures.yaml"))
    recipes = {name: load_recipe(file, variant=name) for name in file.variants}
    starts = {name: recipe.training.start_from for name, recipe in recipes.items()}
    assert starts["base"] is None and starts["with/es"] == starts["together"] == "shipped:start"
    assert len({r.model for n, r in recipes.items() if starts[n]}) == 1


def test_routing_by_language_is_trained_jointly():
    tree = {**GOOD, "model": {"clsr": {}}}
    assert parse_recipe(tree, "r").model.clsr.budget == 0.3
    with pytest.raises(
        RecipeError, match=r"its budget is of whole batches.*set method\.name to 'j"
    ):
        parse_recipe({**tree, "method": {"name": "gradvac"}}, "r")
