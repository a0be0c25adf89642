"""The table of docs/defaults.md against the code."""

import inspect
from pathlib import Path

import pytest
import torch

from gradvac.experiment.translation.recipe import CLSRSection, Recipe
from gradvac.methods import METHODS, MGDA, GradNorm, StepGeometry
from gradvac.translation.clsr import make_transformer
from gradvac.translation.shapes import PRESETS, TransformerConfig

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
}
SECTIONS = {name: field.annotation for name, field in Recipe.model_fields.items()}


def geometry(norms: list[float], losses: list[float]) -> StepGeometry:
    """Two tasks with orthogonal gradients, in the last layer."""
    gram = torch.diag(torch.tensor(norms, dtype=torch.float64).square())[None]
    tasks = ("a", "b")
    return StepGeometry(
        gram, torch.tensor(losses, dtype=torch.float64), tasks, ("layers.0",), 0, None
    )


def default_of(key: str) -> object:
    """The value that stands in the code."""
    head, _, name = key.partition(".")
    if head in METHODS:
        return inspect.signature(METHODS[head]).parameters[name].default
    section, _, name = key.rpartition(".")
    if section == "model.clsr":
        return CLSRSection.model_fields[name].default
    if section == "model":
        return inspect.signature(TransformerConfig).parameters[name].default
    return SECTIONS[section].model_fields[name].default


@pytest.mark.parametrize("key", [key for key in ROWS if "." in key and "*" not in key])
def test_a_default_is_the_one_of_the_table(key):
    value, source, why = ROWS[key]
    assert str(default_of(key)) == value
    assert source and why


@pytest.mark.parametrize(("relative", "other"), [(False, 1 + 1.0), (True, 1 + 1 / 5)])
def test_gradnorm_has_its_floor_whether_its_steps_are_relative_or_not(relative, other):
    """Norms 9 and 1, equal rates, a step of 1: the first weight would be 1 - 9, or 1 - 9 / 5."""
    floor = float(ROWS["gradnorm floor"][0])
    method = GradNorm(relative=relative, learning_rate=1.0)
    for _ in range(2):  # weights are those learned before the step
        weights = method.weights(geometry([9.0, 1.0], [1.0, 1.0]))[0]
    total = (floor + other) / 2
    assert weights.tolist() == pytest.approx([floor / total, other / total])


def test_weights_of_mgda_sum_to_one_and_are_of_gradients_as_they_are():
    assert ROWS["mgda weights"][0] == "sum to 1"
    for normalize in ("none", "l2"):
        weights = MGDA(normalize)._weights(geometry([2.0, 1.0], [1.0, 1.0]))[0]
        # The shortest combination of orthogonal vectors: inverse squares of the lengths.
        expected = [0.2, 0.8] if normalize == "none" else [0.5, 0.5]
        assert weights.tolist() == pytest.approx(expected)


def test_clsr_counts_tokens_not_sentences():
    assert ROWS["clsr loss"][0] == "per token"
    shape = {**PRESETS["tiny"], "d_model": 8, "d_ffn": 8, "heads": 2}
    shape |= {"encoder_layers": 1, "decoder_layers": 1, "clsr_tags": (5,)}
    model = make_transformer(TransformerConfig(vocabulary_size=20, **shape))
    source = torch.tensor([[5, 7, 8], [5, 7, 0]])
    target = torch.tensor([[9, 10, 3], [9, 3, 0]])
    loss, _, rows = model.token_losses(source, target, target, 0.0)
    assert loss.shape == rows.shape == (5,)  # a value for each target token, which are averaged
