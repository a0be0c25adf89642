"""``method.options`` of every method, and the keys that once stood in the section itself."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.load import dump_recipe, load_recipe, parse_recipe
from gradvac.experiment.recipe.paths import RECIPE, TASKS
from gradvac.experiment.run.folder import any_recipe
from gradvac.experiment.run.resuming import differing
from gradvac.experiment.training.build import build_method
from gradvac.methods import GradVac, PCGrad, StaticWeights

GOOD = {"data": {"train": [{"path": "a.tsv"}]}}
LEVELS = {"fr-en": "high", "ne-en": "low"}
PLAIN = {  # of a section as earlier versions recorded it: every key, whoever reads it
    "engine": "single_pass",
    "granularity": "all_layer",
    "tasks": "all",
    "beta": 0.01,
    "target": "adaptive",
    "max_target": 0.999,
    "rescale": False,
    "weights": {},
    "options": {},
    "record_every": 10,
}


def parse(**method: Any):
    return parse_recipe({**GOOD, "method": method}, "r").method


def built(section: Any) -> Any:
    return build_method(section, LEVELS, seed=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradvac", {"tasks": "low", "beta": 0.2, "max_target": 0.9, "rescale": True}),
        ("gradvac", {"tasks": ["fr-en"], "target": 0.5}),
        ("pcgrad", {"tasks": "high"}),
        ("static", {"weights": {"fr-en": 2}}),
    ],
)
def test_an_old_key_is_the_option_of_its_name(name, options):
    old, new = parse(name=name, **options), parse(name=name, options=options)
    assert old == new
    assert new.options.items() >= options.items()
    assert parse_recipe(yaml.safe_load(dump_recipe(old_recipe(old))), "r").method == old


def old_recipe(section: Any):
    return parse_recipe(GOOD, "r").model_copy(update={"method": section})


def test_options_become_the_arguments_of_the_method():
    method = built(parse(name="gradvac", options={"tasks": "low", "beta": 0.2, "rescale": True}))
    assert isinstance(method, GradVac)
    assert (method.tasks, method.beta, method.rescale) == (frozenset({"ne-en"}), 0.2, True)
    assert (method.target, method.max_target, method.seed) == ("adaptive", 0.999, 3)
    assert method.compare_pcgrad  # a run records what PCGrad would have edited
    pcgrad = built(parse(name="pcgrad", options={"tasks": ["fr-en"]}))
    assert isinstance(pcgrad, PCGrad) and pcgrad.tasks == frozenset({"fr-en"})
    static = built(parse(name="static", options={"weights": {"ne-en": 4}}))
    assert isinstance(static, StaticWeights) and static._by_task == {"fr-en": 1.0, "ne-en": 4}
    assert built(parse(name="joint")) is None


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"name": "mgda", "beta": 0.9},
            "method.beta: found 0.9, unknown option of mgda; allowed here: normalize, ",
        ),
        ({"name": "mgda", "tasks": "low"}, "method.tasks: found 'low', unknown option of mgda"),
        ({"name": "mgda", "weights": {"x": 2}}, "method.weights: found {'x': 2}, unknown option"),
        ({"name": "joint", "beta": 0.2}, "method.beta: found 0.2, unknown option of joint; allow"),
        ({"name": "pcgrad", "target": 0.5}, "method.target: found 0.5, unknown option of pcgrad"),
        ({"name": "static", "tasks": "low"}, "method.tasks: found 'low', unknown option of static"),
        (
            {"name": "gradvac", "weights": {"x": 2}},
            "method.weights: found {'x': 2}, unknown option",
        ),
        ({"name": "pcgrad", "options": {"task": "low"}}, "did you mean 'tasks'?"),
        ({"name": "gradvac", "bta": 0.1}, "method.bta: unknown key; did you mean 'beta'?"),
        ({"name": "gradvac", "options": {"seed": 1}}, "method.options.seed: found 1, unknown op"),
        (
            {"name": "gradvac", "beta": 0.1, "options": {"beta": 0.1}},
            "method.beta: given twice; keep method.options.beta",
        ),
        ({"name": "gradvac", "rescale": 1}, "method.rescale: found 1, must be a valid boolean"),
        ({"name": "gradvac", "target": "x"}, "method.target: found 'x', must be 'adaptive'"),
        ({"name": "gradvac", "tasks": "lo"}, "method.tasks: found 'lo', must be 'all', 'high'"),
        ({"name": "static", "options": {"weights": {"a": "1"}}}, "method.options.weights: found"),
        ({"name": ["gradvac"], "beta": 0.1}, "method.name: found ['gradvac']"),
        ({"name": "gradvac", "options": [], "beta": 0.1}, "method.options: found [], must be"),
    ],
)
def test_what_a_method_does_not_read_is_rejected_by_name(method, message):
    with pytest.raises(RecipeError) as caught:
        parse(**method)
    assert f"r: {message}" in str(caught.value) or message in str(caught.value)


def test_tasks_that_are_not_there_are_named_when_the_method_is_made():
    for options, message in (
        (
            {"tasks": ["xx-en"]},
            r"method\.options\.tasks: \['xx-en'\] are no tasks; tasks: fr-en, n",
        ),
        (
            {"tasks": "medium"},
            r"method\.options\.tasks: no task is 'medium'; levels: fr-en high, n",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            built(parse(name="gradvac", options=options))
    with pytest.raises(RecipeError, match=r"method\.options\.weights: \['xx-en'\] are no tasks"):
        built(parse(name="static", options={"weights": {"xx-en": 1}}))


def test_a_complete_section_of_an_earlier_version_is_valid_for_every_method():
    for name in ("joint", "gradvac", "pcgrad", "static", "mgda", "gradnorm", "cats", "famo"):
        assert parse(name=name, **PLAIN) == parse(name=name)


def recorded(folder: Path, **method: Any) -> Path:
    """The recipe of a run, as a version before `method.options` wrote it."""
    folder.mkdir()
    tree = {**GOOD, "method": {**PLAIN, **method}}
    (folder / RECIPE).write_text(yaml.safe_dump(tree), encoding="utf-8")
    (folder / TASKS).write_text("{}", encoding="utf-8")
    return folder


def test_recorded_recipes_of_earlier_versions_load_as_they_were_meant(tmp_path):
    joint = recorded(tmp_path / "joint", name="joint", beta=0.2, weights={"fr-en": 3})
    assert any_recipe(joint).method.options == {}  # never read, and not now
    assert load_recipe(joint / RECIPE).method.options == {}
    gradvac = recorded(tmp_path / "gradvac", name="gradvac", beta=0.2, tasks="low")
    kept, now = any_recipe(gradvac), parse(name="gradvac", options={"beta": 0.2, "tasks": "low"})
    assert kept.method == now and not differing(kept, kept.model_copy(update={"method": now}))


def test_a_recorded_recipe_may_be_run_with_another_method(tmp_path):
    run = recorded(tmp_path / "gradvac", name="gradvac") / RECIPE
    assert load_recipe(run, ["method.name=mgda"]).method.options == {}
    run.write_text(dump_recipe(load_recipe(run)), encoding="utf-8")  # as this version writes it
    assert load_recipe(run, ["method.name=mgda"]).method.options == {}
    assert load_recipe(run, ["method.beta=0.3"]).method.options["beta"] == 0.3


@pytest.mark.parametrize("body", [{"beta": 0.1}, {"options": {"beta": 0.1}}])
@pytest.mark.parametrize("change", ["method.beta=0.3", "method.options.beta=0.3"])
def test_either_spelling_may_be_changed_by_either(tmp_path, body, change):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "method": {"name": "gradvac", **body}}))
    assert load_recipe(path, [change]).method.options["beta"] == 0.3


def test_one_entry_of_an_old_key_may_be_set_by_a_variant(tmp_path):
    tree = {**GOOD, "method": {"name": "static", "weights": {"fr-en": 2}}}
    tree["variants"] = {"more": {"method.weights.ne-en": 4}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert load_recipe(path, variant="more").method.options == {"weights": {"fr-en": 2, "ne-en": 4}}
