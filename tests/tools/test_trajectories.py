"""The toy's formulas, and what each kind of method owes on it, against closed forms."""

import math

import pytest
import torch

from gradvac.methods import METHODS
from tools.trajectories import OFFSET, descend, losses, panels, pareto_set, picture, table


def literal(x: float, y: float) -> tuple[float, float]:
    """The two losses, term by term as Liu et al. 2021 define them."""
    c1, c2 = max(math.tanh(0.5 * y), 0), max(math.tanh(-0.5 * y), 0)
    f1 = math.log(max(abs(0.5 * (-x - 7) - math.tanh(-y)), 5e-6)) + 6
    f2 = math.log(max(abs(0.5 * (-x + 3) + math.tanh(-y) + 2), 5e-6)) + 6
    g1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    g2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    return c1 * f1 + c2 * g1, c1 * f2 + c2 * g2


@pytest.mark.parametrize("point", [(-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0), (0.0, -8.0), (3.0, 1.0)])
def test_the_losses_are_the_papers(point):
    found = losses(torch.tensor(point, dtype=torch.float64)) - OFFSET
    assert found.tolist() == pytest.approx(literal(*point), abs=1e-12)


def gradients(point: torch.Tensor) -> torch.Tensor:
    """``[2, 2]``, a row per task."""
    return torch.autograd.functional.jacobian(losses, point)


def shortest(j: torch.Tensor) -> float:
    """Length of the shortest convex combination of two vectors, in closed form."""
    difference = j[0] - j[1]
    share = (-(j[1] @ difference) / (difference @ difference)).clamp(0, 1)
    return float((share * j[0] + (1 - share) * j[1]).norm())


def test_the_pareto_set_is_stationary():
    assert max(shortest(gradients(point)) for point in pareto_set(9)) < 1e-4
    assert shortest(gradients(torch.tensor([0.0, -5.0], dtype=torch.float64))) > 0.01


def test_joint_descent_goes_against_a_task_where_the_gradients_say_so_and_pcgrad_never():
    start = (-8.5, 7.5)
    joint = descend(METHODS["joint"](), start, 120, 0.05)
    against = 0
    for point in joint.points[:-1]:
        j = gradients(point)
        update = j.sum(0)
        if update.norm() >= 0.05 * j.norm(dim=1).max():
            against += bool(((j @ update) / (j.norm(dim=1) * update.norm()) < -1e-3).any())
    assert joint.opposed == against > 0
    # Of two tasks, PCGrad's update u has u.g_i = |g_i|^2 (1 - cos^2) >= 0 in a conflict.
    assert descend(METHODS["pcgrad"](), start, 120, 0.05).opposed == 0


def test_mgda_ends_where_no_direction_helps_both_tasks():
    end = descend(METHODS["mgda"](), (-8.5, -5.0), 250, 0.05).points[-1]
    assert shortest(gradients(end)) < 0.02
    assert (pareto_set(561) - end).norm(dim=1).min() < 0.1


def test_every_registered_method_has_a_panel_and_a_row():
    made = panels()
    assert all(any(title.split()[0] == name for title in made) for name in METHODS)
    paths = {title: [descend(make(), (9.0, 9.0), 2, 0.05)] * 3 for title, make in made.items()}
    assert len(table(paths).splitlines()) == len(made) + 2
    figure = picture(paths)
    assert [axes.get_title("left") for axes in figure.axes[: len(made)]] == list(made)
