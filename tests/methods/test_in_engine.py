"""Every method trains a small network through the engine, and its state survives in it."""

import pytest
import torch

from gradvac.engine import PerTaskEngine
from tests.methods.test_properties import CASES


@pytest.mark.parametrize("case", CASES)
def test_losses_fall_and_the_engine_resumes(case):
    if case.startswith("torchjd"):
        pytest.importorskip("torchjd")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    x, target = torch.randn(64, 4), torch.randn(4, 5)
    engine = PerTaskEngine(net, CASES[case]())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)

    def losses():
        error = (net(x) - x @ target).square().mean(0) + 0.01
        return {f"t{n}": error[n] for n in range(5)}

    def step(engine):
        optimizer.zero_grad()
        report = engine.backward(losses())
        optimizer.step()
        return report

    first = sum(losses().values()).item()
    for _ in range(60):
        step(engine)
    assert sum(losses().values()).item() < 0.6 * first
    resumed = PerTaskEngine(net, CASES[case]())
    resumed.load_state_dict(engine.state_dict())
    values = losses()
    one = engine.backward(values)
    assert torch.equal(resumed.backward(losses()).weights, one.weights)
    assert one.weights.shape == (2, 5)
