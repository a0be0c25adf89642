"""The papers' convergence theorems on random convex quadratics.

L_i(x) = 1/2 (x - m_i)^T A_i (x - m_i); the gradient of L = L_1 + L_2 is Lipschitz with the largest
eigenvalue of A_1 + A_2.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvac.methods import MGDA, GradVac, PCGrad
from tests.methods.helpers import geometry


class Quadratics:
    def __init__(self, seed: int, n_tasks: int = 2, size: int = 6, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        roots = torch.randn(n_tasks, size, size, generator=generator).double()
        scale = torch.logspace(0, 1, n_tasks).double()[:, None, None]
        self.a = scale * (roots @ roots.mT + 0.1 * torch.eye(size))
        self.m = spread * torch.randn(n_tasks, size, generator=generator).double()
        self.x = 3 * torch.randn(size, generator=generator).double()
        self.lipschitz = float(torch.linalg.eigvalsh(self.a.sum(0))[-1])

    def loss(self) -> float:
        d = self.x - self.m
        return float((d[:, None] @ self.a @ d[:, :, None]).sum() / 2)

    def gradients(self):
        return (self.a @ (self.x - self.m)[:, :, None]).squeeze(2)

    def lowest(self) -> float:
        rest = self.x
        self.x = torch.linalg.solve(self.a.sum(0), (self.a @ self.m[:, :, None]).squeeze(2).sum(0))
        loss, self.x = self.loss(), rest
        return loss


def cosine(g):
    return float(torch.nn.functional.cosine_similarity(g[0], g[1], dim=0).clamp(-1, 1))


SEEDS = st.integers(0, 10**6)


@settings(max_examples=40, derandomize=True)
@given(SEEDS, st.floats(0.05, 0.95), st.floats(0.05, 0.99))
def test_theorem_1_of_gradvac(seed, target, fraction):
    """Wang et al. 2021, E.3: for phi > 0, L falls by (t - (1 + a^2) L t^2 / 2) ||g||^2 or more."""
    problem, method = Quadratics(seed, spread=0.3), GradVac(target=target)
    for step in range(30):
        g, before = problem.gradients(), problem.loss()
        phi, norm = cosine(g), float(g.sum(0).norm())
        if norm < 1e-6:
            break
        if phi <= 0:  # the theorem says nothing here; a plain step leads on
            problem.x = problem.x - fraction / problem.lipschitz * g.sum(0)
            continue
        theta, gamma = math.acos(phi), math.acos(target)
        a = max(0.0, math.sin(theta - gamma) / math.sin(gamma))  # 0: no edit
        t = fraction * min(2 / (problem.lipschitz * (1 + a**2)), 1 / problem.lipschitz)
        bound = (t - (1 + a**2) / 2 * problem.lipschitz * t**2) * norm**2
        assert bound > 0
        problem.x = problem.x - t * (method.weights(geometry(g, step=step))[0] @ g)
        assert problem.loss() <= before - bound + 1e-9 * before


@settings(max_examples=40, derandomize=True)
@given(SEEDS, st.floats(0.05, 1.0))
def test_theorem_1_of_pcgrad(seed, fraction):
    """Yu et al. 2020: with t <= 1/L every step lowers L by (1 - cos^2) t ||g||^2 / 2."""
    problem, method = Quadratics(seed), PCGrad()
    t = fraction / problem.lipschitz
    for step in range(30):
        g, before = problem.gradients(), problem.loss()
        bound = 0.5 * t * (1 - cosine(g) ** 2) * float(g.sum(0).square().sum())
        problem.x = problem.x - t * (method.weights(geometry(g, step=step))[0] @ g)
        assert problem.loss() <= before - bound + 1e-9 * before


@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_ends_at_the_optimum_or_in_total_conflict(seed):
    problem, method = Quadratics(seed), PCGrad()
    for step in range(2000):
        g = problem.gradients()
        problem.x = problem.x - (method.weights(geometry(g, step=step))[0] @ g) / problem.lipschitz
    lowest = problem.lowest()
    assert problem.loss() == pytest.approx(lowest, rel=1e-3) or cosine(problem.gradients()) < -0.999


@settings(max_examples=20, derandomize=True)
@given(SEEDS, st.integers(2, 5), st.sampled_from(["none", "l2"]))
def test_mgda_lowers_every_loss(seed, n_tasks, normalize):
    """Sener & Koltun 2018, section 3: the solution is 0 or a descent direction of all tasks."""
    problem, method = Quadratics(seed, n_tasks), MGDA(normalize)
    for step in range(10):
        g = problem.gradients()
        x = method.weights(geometry(g, step=step))[0] @ g
        assert float((g @ x).min()) >= -1e-9 * float(x.norm()) * float(g.norm())
        problem.x = problem.x - 0.5 / problem.lipschitz * x
