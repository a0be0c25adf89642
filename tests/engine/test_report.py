"""What a step's report says of itself: cosines, JSON, one line."""

import json

import pytest
import torch
from torch import nn

from gradvac import Engine, GradVac, Joint
from gradvac.engine import StepReport
from gradvac.methods import StepGeometry


@pytest.fixture
def report() -> StepReport:
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    engine = Engine(net, GradVac(target=0.5), granularity="whole_model")
    with engine.tasks(["a", "b", "c"] * 4):
        return engine.backward((net(torch.randn(12, 4)).squeeze(1) - 1).square() / 12)


def test_cosines_are_those_of_the_vectors():
    vectors = torch.randn(2, 3, 7, dtype=torch.float64)
    vectors[1, 2] = 0
    gram = vectors @ vectors.mT
    geometry = StepGeometry(gram, torch.ones(3), ("a", "b", "c"), ("g", "h"), 0)
    found = StepReport(geometry, torch.ones(2, 3), {}).cosine
    for k in range(2):
        expected = torch.nn.functional.cosine_similarity(
            vectors[k][:, None], vectors[k][None], dim=2, eps=0
        )
        expected[vectors[k].norm(dim=1) == 0] = expected[:, vectors[k].norm(dim=1) == 0] = torch.nan
        assert torch.allclose(found[k], expected, equal_nan=True)


def test_everything_is_json(report):
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (found["step"], found["tasks"], found["groups"]) == (0, ["a", "b", "c"], ["whole_model"])
    assert found["gram"] == report.gram.tolist() and found["weights"] == report.weights.tolist()
    assert found["cosine"] == report.cosine.tolist() and found["losses"] == report.losses.tolist()
    assert found["diagnostics"]["edits"] == report.edits.tolist() and found["skipped"] == ""


def test_it_prints_one_line(report):
    off = [float(report.cosine[0, i, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    told = f"mean cosine {sum(off) / 3:.2f}, {sum(x < 0 for x in off)} of 3 below 0"
    edits = int(report.edits.sum())
    assert repr(report) == f"StepReport(step 0: tasks a, b, c; 1 groups; {told}, {edits} edits)"


def test_a_skipped_step_and_a_single_task_print_too():
    net = nn.Linear(4, 1)
    engine = Engine(net, Joint(), granularity="whole_model", nonfinite="skip")
    with engine.tasks(["a"] * 2):
        one = engine.backward(net(torch.ones(2, 4)).squeeze(1))
    assert repr(one) == "StepReport(step 0: tasks a; 1 groups)"
    with engine.tasks(["a", "b"]):
        bad = engine.backward(net(torch.ones(2, 4)).squeeze(1) * float("nan"))
    assert "; skipped: " in repr(bad) and len(repr(bad).splitlines()) == 1
    assert json.dumps(bad.to_dict(), allow_nan=False).count("null") > 4
