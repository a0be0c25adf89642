"""CATS (reconstruction) in shares, against its Lagrangian under autograd; where it settles."""

import itertools
from functools import partial

import pytest
import torch
from scipy.optimize import minimize

from gradvac.errors import GradientError
from gradvac.methods import CATS
from gradvac.methods.simplex import nearest_weights
from tests.methods.helpers import geometry, relative
from tests.reference.cats import LiteralCATS

ShareCATS = partial(CATS, units="share")


def drawn(step, n=5, size=20):
    generator = torch.Generator().manual_seed(step)
    norms = torch.linspace(0.3, 1.0, n).double()[:, None]
    g = torch.randn(n, size, generator=generator).double() * norms / size**0.5
    return g, 2 + 2 * torch.rand(n, generator=generator).double()


@pytest.mark.parametrize(
    ("parametrization", "bound", "cross_terms", "loss_term"),
    list(
        itertools.product(
            ["softmax", "lagrangian"],
            ["relative", "absolute"],
            [False, True],
            ["raw", "ratio", "none"],
        )
    ),
)
def test_against_autograd_of_the_lagrangian(parametrization, bound, cross_terms, loss_term):
    rho = 0.8 if bound == "relative" else 0.05
    lr = 0.1
    if parametrization == "lagrangian":  # free alphas of raw losses move fast
        lr = 0.01 if loss_term == "none" else 2e-4
    settings = {
        "rho": rho, "bound": bound, "parametrization": parametrization,
        "cross_terms": cross_terms, "loss_term": loss_term, "floor": 0.2, "learning_rate": lr,
    }  # fmt: skip
    ours = ShareCATS(**settings, update_every=1, smoothing=0.0)
    literal = LiteralCATS(5, **settings)
    for step in range(40):
        g, losses = drawn(step)
        groups = {"a": g[:, :7], "b": g[:, 7:]}  # curvature is of the whole model
        weights = ours.weights(geometry(groups, step=step, losses=losses))
        expected = literal.step(g, losses)
        assert relative(weights[0], 5 * expected) <= 1e-10
        assert torch.equal(weights[0], weights[1])
        # A free alpha at 0 or 1 is clamped by us alone; this test keeps away from there.
        assert float(expected.min()) > 0 and float(expected.max()) < 1
    assert relative(weights[0], torch.ones(5).double()) > 1e-5


@pytest.mark.parametrize("loss_term", ["raw", "ratio", "none"])
@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("n", [2, 8, 64])
def test_free_weights_never_leave_the_tasks_without_training(n, every, loss_term):
    method = ShareCATS(parametrization="lagrangian", update_every=every, loss_term=loss_term)
    last = torch.ones(n).double()
    for step in range(600):
        g, losses = drawn(step, n, 80)
        weights = method.weights(geometry(g, step=step, losses=losses))[0]
        assert 0.5 * n - 1e-9 <= float(weights.sum()) <= 2 * n + 1e-9
        assert float(weights.min()) >= 0.2 - 1e-9
        if step % every:
            assert torch.equal(weights, last)
        last = weights


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_weights_against_a_qp_solver(seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(6, generator=generator).double() - 0.5) * 10 ** (seed % 3 - 1) + seed % 2
    low, least, most = 0.02, 0.5, 2.0
    solved = minimize(
        lambda a: ((a - x.numpy()) ** 2).sum(),
        [1 / 6] * 6,
        bounds=[(low, 1)] * 6,
        constraints=[
            {"type": "ineq", "fun": lambda a: a.sum() - least},
            {"type": "ineq", "fun": lambda a: most - a.sum()},
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    found = nearest_weights(x, low, least, most)
    assert found.tolist() == pytest.approx(solved.x.tolist(), abs=1e-6)
    inside = torch.full((6,), 0.2).double()
    assert torch.equal(nearest_weights(inside, low, least, most), inside)


def high_and_low():
    """4 tasks with ||g|| = 1 and L = 3, 4 with ||g|| = 0.4 and L = 4.3, orthogonal gradients."""
    g = torch.diag(torch.tensor([1.0] * 4 + [0.4] * 4)).double()
    return g, torch.tensor([3.0] * 4 + [4.3] * 4).double()


@pytest.mark.parametrize("cross_terms", [False, True])
@pytest.mark.parametrize("rho", [0.6, 0.8, 0.9])
def test_curvature_settles_at_the_bound_by_scaling_down_the_sharp_tasks(rho, cross_terms):
    g, losses = high_and_low()
    method = ShareCATS(rho=rho, cross_terms=cross_terms, update_every=1)
    for step in range(3000):
        weights = method.weights(geometry(g, step=step, losses=losses))[0]
    assert method.report()["curvature"].item() == pytest.approx(rho, abs=1e-3)
    assert 0 < method.report()["multiplier"].item() < 100
    # Closed form: 4 alphas h and 4 alphas l with 4 h + 4 l = 1 and 4 h^2 + 0.64 l^2 = rho * unit.
    unit = (4 + 0.64) / 64
    h, l = float(weights[0]) / 8, float(weights[7]) / 8
    assert 4 * h + 4 * l == pytest.approx(1, abs=1e-12)
    assert 4 * h**2 + 0.64 * l**2 == pytest.approx(rho * unit, rel=2e-3)
    assert h < 1 / 8 < l


def test_an_infeasible_bound_stops_at_the_cap_and_the_floor():
    g, losses = high_and_low()
    method = ShareCATS(rho=0.05, update_every=1, lambda_max=20.0)
    for step in range(1500):
        weights = method.weights(geometry(g, step=step, losses=losses))[0]
    assert method.report()["multiplier"].item() == 20.0
    assert float(weights.min()) >= 0.2


def test_updates_come_after_the_warm_up_and_every_so_many_steps():
    method = ShareCATS(update_every=3, warmup_steps=4)
    changes, last = [], torch.ones(5).double()
    for step in range(13):
        g, losses = drawn(step)
        weights = method.weights(geometry(g, step=step, losses=losses))[0]
        if not torch.equal(weights, last):
            changes.append(step)
        last = weights
    assert changes == [6, 9, 12]  # updates at the end of steps 6, 9, 12, counted from 1


def test_equal_weights_are_the_plain_sum():
    g, losses = drawn(0)
    assert ShareCATS().weights(geometry(g, losses=losses)).tolist() == [[1.0] * 5]


def test_averages_are_unbiased_and_by_name():
    method = ShareCATS(smoothing=0.9, update_every=1, loss_term="none")
    same = ShareCATS(smoothing=0.0, update_every=1, loss_term="none")
    g, losses = drawn(0)
    for step in range(30):  # constant gradients: an average from any step on is the same
        one = method.weights(geometry(g, step=step, losses=losses))
        two = same.weights(geometry(g, step=step, losses=losses))
        assert relative(one, two) <= 1e-12


def test_gradients_that_cancel_leave_nothing_to_bound():
    g = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    method = ShareCATS(cross_terms=True, update_every=1, loss_term="none")
    for step in range(20):
        weights = method.weights(geometry(g, step=step))
    assert weights.tolist() == [[1.0, 1.0]]


def test_state_of_another_parametrization_is_refused():
    with pytest.raises(GradientError, match="parametrization is 'softmax'; it must be lagrangian"):
        ShareCATS(parametrization="lagrangian").load_state_dict(ShareCATS().state_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rho": 0}, "rho is 0"),
        ({"bound": "abs"}, "bound is 'abs'; it must be relative or absolute"),
        ({"loss_term": "log"}, "loss_term is 'log'"),
        ({"floor": 1.0}, "floor is 1.0"),
        ({"update_every": 0}, "update_every is 0"),
        ({"lambda_max": float("inf")}, "lambda_max is inf"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(GradientError, match=says):
        CATS(**options)


def test_the_ratio_needs_positive_losses():
    g, _ = drawn(0)
    method = ShareCATS(loss_term="ratio")
    with pytest.raises(GradientError, match=r"'t0' is 0.0 at step 0; loss_term='ratio'"):
        method.weights(geometry(g))
    assert method.state_dict()["alpha"] == {}
