"""Ours against TorchJD 0.18, made to visit tasks in our order and without its absolute eps."""

import pytest
import torch

from gradvac.methods import GradVac, PCGrad, visiting_order
from tests.methods.helpers import REGIMES, geometry, relative, task_gradients

aggregation = pytest.importorskip("torchjd.aggregation")
K = 6


def their_draws(monkeypatch, order, include_self):
    """Make torch.randperm return our orders, one task after the other, as TorchJD asks for them."""

    def draws():
        for i, row in enumerate(order.tolist()):
            if include_self:  # its PCGrad permutes all tasks and skips i
                yield torch.tensor([*row, i])
            else:  # its GradVac permutes the list of the others
                yield torch.tensor([j - (j > i) for j in row])

    queue = draws()
    monkeypatch.setattr(torch, "randperm", lambda n: next(queue))


@pytest.mark.parametrize("regime", REGIMES)
def test_gradvac(regime, monkeypatch):
    ours = GradVac(beta=0.1)
    theirs = aggregation.GradVac(beta=0.1, eps=0.0).gramian_weighting
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        g = task_gradients(regime, K, 50, generator)
        geo = geometry(g, step=step)
        their_draws(monkeypatch, visiting_order(0, step, geo.groups, geo.tasks)[0], False)
        assert relative(ours.weights(geo)[0] @ g, theirs(geo.gram[0]) @ g) <= 1e-10


@pytest.mark.parametrize("regime", REGIMES)
def test_pcgrad(regime, monkeypatch):
    ours, theirs = PCGrad(), aggregation.PCGrad().gramian_weighting
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        g = task_gradients(regime, K, 50, generator)
        geo = geometry(g, step=step)
        their_draws(monkeypatch, visiting_order(0, step, geo.groups, geo.tasks)[0], True)
        assert relative(ours.weights(geo)[0] @ g, theirs(geo.gram[0]) @ g) <= 1e-10
