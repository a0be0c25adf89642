"""The adapter against TorchJD's own aggregators on the Jacobian."""

import pytest
import torch

from gradvac.errors import GradientError
from gradvac.methods import TorchJD
from gradvac.methods.orders import digest
from tests.methods.helpers import geometry, names, relative, task_gradients

aggregation = pytest.importorskip("torchjd.aggregation")
K = 5
CVXPY = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

AGGREGATORS = {
    "AlignedMTL": ({}, 1e-8),
    "CAGrad": ({"c": 0.4}, 1e-4),  # a cone solver, to its own tolerance
    "Constant": ({"weights": torch.arange(1.0, K + 1).double()}, 1e-10),
    "DualProj": ({}, 1e-6),
    "FairGrad": ({"alpha": 1.0}, 1e-4),
    "GradVac": ({"beta": 0.1}, 1e-10),
    "IMTLG": ({}, 1e-8),
    "Krum": ({"n_byzantine": 1, "n_selected": 2}, 1e-10),
    "MGDA": ({}, 1e-8),
    "Mean": ({}, 1e-10),
    "NashMTL": ({"n_tasks": K}, 1e-4),
    "PCD": ({}, 1e-8),
    "PCGrad": ({}, 1e-10),
    "Random": ({}, 1e-10),
    "Sum": ({}, 1e-10),
    "UPGrad": ({}, 1e-6),
}


def drawn(step, regime="conflicting"):
    g = task_gradients(regime, K, 40, torch.Generator().manual_seed(step))
    return g / g.norm(dim=1, keepdim=True) * torch.linspace(0.5, 2, K).double()[:, None]


@CVXPY
@pytest.mark.parametrize("name", AGGREGATORS)
def test_against_the_aggregator(name):
    options, tolerance = AGGREGATORS[name]
    ours = TorchJD(name, options)
    theirs = getattr(aggregation, name)(**options)
    for step in range(4):
        g = drawn(step)
        torch.default_generator.manual_seed(digest(f"0 {step} g"))
        expected = theirs(g)
        assert relative(ours.weights(geometry(g, step=step))[0] @ g, expected) <= tolerance


def test_a_weighting_an_aggregator_and_a_name_are_the_same():
    g = geometry(drawn(0))
    weighting, aggregator = aggregation.AlignedMTLWeighting(), aggregation.AlignedMTL()
    expected = TorchJD(weighting).weights(g)
    for other in (aggregator, "AlignedMTL", "AlignedMTLWeighting"):
        assert torch.equal(TorchJD(other).weights(g), expected)


def test_every_group_has_its_own_memory():
    together = TorchJD("GradVac", {"beta": 0.1})
    alone = {k: TorchJD("GradVac", {"beta": 0.1}) for k in "ab"}
    for step in range(5):
        groups = {"a": drawn(step), "b": drawn(step + 100)}
        weights = together.weights(geometry(groups, step=step))
        for n, k in enumerate("ab"):
            one = alone[k].weights(geometry({k: groups[k]}, step=step))
            assert torch.equal(weights[n], one[0])


def test_a_wrapped_weighting_remembers_too():
    make = lambda: TorchJD(aggregation.CRMOGMWeighting(aggregation.AlignedMTLWeighting()))
    method, resumed = make(), make()
    for step in range(5):
        method.weights(geometry(drawn(step), step=step))
    resumed.load_state_dict(method.state_dict())
    expected = method.weights(geometry(drawn(9), step=9))
    assert torch.equal(resumed.weights(geometry(drawn(9), step=9)), expected)
    with pytest.raises(GradientError, match="CRMOGMWeighting remembers tasks by row"):
        method.weights(geometry(drawn(9)[:2], step=10))


@CVXPY
def test_nash_mtl_resumes():
    method = TorchJD("NashMTL", {"n_tasks": K, "update_weights_every": 3})
    for step in range(5):
        method.weights(geometry(drawn(step), step=step))
    resumed = TorchJD("NashMTL", {"n_tasks": K, "update_weights_every": 3})
    resumed.load_state_dict(method.state_dict())
    for step in range(5, 9):
        geo = geometry(drawn(step), step=step)
        assert relative(resumed.weights(geo), method.weights(geo)) <= 1e-6  # a warm start


def test_rows_are_in_the_order_of_the_names():
    method = TorchJD("Constant", {"weights": torch.tensor([1.0, 2.0, 3.0]).double()})
    weights = method.weights(geometry(torch.eye(3).double(), ("b", "c", "a")))
    assert weights.tolist() == [[2.0, 3.0, 1.0]]


@pytest.mark.parametrize(
    ("weighting", "says"),
    [
        ("UPGrat", r"torchjd.aggregation has no 'UPGrat'; did you mean 'UPGrad'\?"),
        ("ConFIG", "ConFIG is no weighted sum"),
        ("ExcessMTL", "ExcessMTLWeighting needs more than the Gram matrix"),
        ("MoDoWeighting", "MoDoWeighting needs more than the Gram matrix of one batch"),
        ("Constant", "torchjd.aggregation.Constant: .*weights"),
        (3, "weighting is 3"),
    ],
)
def test_what_cannot_run_is_refused_by_name(weighting, says):
    with pytest.raises(GradientError, match=says):
        TorchJD(weighting)


def test_a_matrix_torchjd_refuses_is_named():
    method = TorchJD("Krum", {"n_byzantine": 3})
    with pytest.raises(
        GradientError, match=r"KrumWeighting, group 'g', step 7, tasks t0, t1.*rows"
    ):
        method.weights(geometry(drawn(0), names("t", K), 7))
