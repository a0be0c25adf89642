"""MGDA against every face of the simplex, a QP solver, and TorchJD; normalisations; its bound."""

import pytest
import torch
from scipy.optimize import minimize

from gradvac.errors import GradientError
from gradvac.methods import MGDA, StepGeometry
from tests.methods.helpers import REGIMES, geometry, relative, task_gradients
from tests.reference.min_norm import min_norm_weights


def draw(regime, n_tasks, seed, size=30):
    return task_gradients(regime, n_tasks, size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n_tasks", [1, 2, 3, 5, 7])
def test_against_every_face(regime, n_tasks):
    for seed in range(10):
        g = draw(regime, n_tasks, seed)
        weights = MGDA().weights(geometry(g))[0]
        expected = min_norm_weights(g)
        assert relative(weights @ g, expected @ g) <= 1e-8
        assert float((weights - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("n_tasks", [3, 8, 12])
def test_against_a_qp_solver(regime, n_tasks):
    for seed in range(5):
        g = draw(regime, n_tasks, seed)
        g = g / g.norm(dim=1, keepdim=True)  # SLSQP's tolerance is absolute
        gram = (g @ g.T).numpy()
        solved = minimize(
            lambda a, gram=gram: a @ gram @ a,
            [1 / n_tasks] * n_tasks,
            jac=lambda a, gram=gram: 2 * gram @ a,
            bounds=[(0, 1)] * n_tasks,
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        ours = MGDA().weights(geometry(g))[0].numpy()
        assert ours @ gram @ ours <= solved.fun + 1e-12
        assert abs(ours - solved.x).max() <= 1e-5


@pytest.mark.parametrize("n_tasks", [2, 4, 8, 16, 40])
@pytest.mark.parametrize("regime", REGIMES)
def test_no_gradient_points_against_the_result_more_than_its_length(regime, n_tasks):
    """The optimality condition: x . g_i >= ||x||^2 for all i, so that every loss falls."""
    for seed in range(5):
        g = draw(regime, n_tasks, seed, size=60)
        weights = MGDA().weights(geometry(g))[0]
        x = weights @ g
        assert float((g @ x).min()) >= float(x @ x) * (1 - 1e-8)
        assert float(weights.min()) >= 0 and float(weights.sum()) == pytest.approx(1, abs=1e-14)


def test_against_torchjd():
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed in range(10):
        g = draw("independent", 2, seed)  # two tasks: one step of Frank-Wolfe is exact
        theirs = aggregation.MGDA(epsilon=1e-15, max_iters=10)(g)
        assert relative(MGDA().weights(geometry(g))[0] @ g, theirs) <= 1e-10
        g = draw("shared", 4, seed)
        theirs = aggregation.MGDA(epsilon=1e-15, max_iters=3000)(g)
        ours = MGDA().weights(geometry(g))[0] @ g
        assert relative(ours, theirs) <= 1e-2  # their error falls like 1 / steps
        assert float(ours.norm()) <= float(theirs.norm()) * (1 + 1e-9)


def test_weights_go_to_the_gradients_as_they_are():
    g, losses = draw("independent", 4, 0), torch.tensor([0.5, 1.0, 2.0, 4.0]).double()
    norm = g.norm(dim=1)
    for normalize, s in {"l2": norm, "loss": losses, "loss+": losses * norm}.items():
        weights = MGDA(normalize).weights(geometry(g, losses=losses))[0]
        assert relative(weights, min_norm_weights(g / s[:, None])) <= 1e-6


def test_dividing_by_the_loss_does_not_see_the_share_of_the_batch():
    g, losses = draw("independent", 3, 0), torch.tensor([0.5, 1.0, 2.0]).double()
    share = torch.tensor([0.7, 0.2, 0.1]).double()
    plain = MGDA("loss").weights(geometry(g, losses=losses))
    geo = geometry(g * share[:, None], losses=losses * share)
    mixed = StepGeometry(geo.gram, geo.losses, geo.tasks, geo.groups, 0, share)
    assert relative(MGDA("loss").weights(mixed), plain) <= 1e-10


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("seed", range(4))
def test_equal_tasks_share_their_weight_whatever_their_order(normalize, seed):
    """Equal once they are normalised; of all minima the one of the shortest weights, by SLSQP."""
    g = draw("conflicting", 5, seed, size=12)
    losses = torch.tensor([1.0, 1.0, 2.0, 3.0, 1.0]).double()
    factor = {"none": 1.0, "l2": 3.0, "loss": 3.0, "loss+": 3.0}[normalize]
    g[3], losses[3] = g[1] * factor, losses[1] * (factor if normalize == "loss" else 1.0)
    norm = g.norm(dim=1)
    s = {"none": 1 + 0 * norm, "l2": norm, "loss": losses, "loss+": losses * norm}[normalize]
    v = g / s[:, None]
    weights = MGDA(normalize).weights(geometry(g, losses=losses))[0]
    assert float(weights[1]) == pytest.approx(float(weights[3]), rel=1e-12)
    x = min_norm_weights(v) @ v
    unit = float(x.norm())
    solved = minimize(
        lambda a: a @ a,
        weights.numpy(),
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda a: ((a @ v.numpy()) - x.numpy()) / unit},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert weights.tolist() == pytest.approx(solved.x.tolist(), abs=1e-5)
    order = torch.tensor([3, 0, 2, 1, 4])
    moved = MGDA(normalize).weights(geometry(g[order], losses=losses[order]))[0]
    assert relative(moved @ g[order], weights @ g) <= 1e-8


def test_two_tasks_in_closed_form():
    g = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert MGDA().weights(geometry(g)).tolist() == [[pytest.approx(0.2), pytest.approx(0.8)]]
    assert MGDA("l2").weights(geometry(g)).tolist() == [[pytest.approx(0.5), pytest.approx(0.5)]]


def test_a_task_with_zero_gradient_does_not_stop_the_others():
    g = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert MGDA().weights(geometry(g))[0].tolist() == [pytest.approx(0.2), 0, pytest.approx(0.8)]


def test_iterations_are_bounded_and_the_result_is_still_on_the_simplex():
    g = draw("conflicting", 40, 0, size=60)
    weights = MGDA(max_iterations=3).weights(geometry(g))[0]
    assert float(weights.min()) >= 0 and float(weights.sum()) == pytest.approx(1)
    with pytest.raises(GradientError, match="max_iterations is 0"):
        MGDA(max_iterations=0)


def test_losses_that_cannot_divide_are_refused():
    with pytest.raises(
        GradientError, match=r"loss of task 't1' is 0.0 at step 0; normalize='loss'"
    ):
        losses = torch.tensor([1.0, 0.0]).double()
        MGDA("loss").weights(geometry(draw("shared", 2, 0), losses=losses))
    with pytest.raises(GradientError, match="normalize is 'L2'; it must be one of none, l2"):
        MGDA("L2")
