"""Task gradients held in bfloat16."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradvac.engine import Engine
from gradvac.errors import GradientError
from gradvac.methods import StaticWeights

TASKS = ["a", "b", "c", "a", "c", "b"]


def steps(dtype, n=4):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(30, 16), nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    )
    model.append(nn.Linear(16, 30))
    engine = Engine(model, StaticWeights({"a": 1.0, "b": 0.3, "c": 2.0}), storage=dtype)
    ids = torch.randint(30, (6, 7))
    for _ in range(n):
        model.zero_grad()
        with engine.tasks(TASKS):
            loss = F.cross_entropy(model(ids).mT, ids.roll(1, 1), reduction="none")
            report = engine.backward(loss / loss.numel())
    assert not engine.refused
    return report, torch.cat([p.grad.flatten() for p in model.parameters()]), engine


def test_half_the_memory_and_three_digits():
    full, wanted, kept = steps(None)
    half, found, other = steps(torch.bfloat16)
    error = float((found - wanted).norm() / wanted.norm())
    assert 1e-5 < error < 4e-3  # a step of bfloat16 is 2^-8
    cosine, rounded = full.cosine, half.cosine
    assert float((cosine - rounded).nan_to_num().abs().max()) < 4e-3
    size = lambda engine: sum(
        m.numel() * m.element_size() for m in engine._single_pass.collector.pool._free
    )
    assert size(other) * 2 == size(kept) > 0


def test_only_bfloat16():
    with pytest.raises(GradientError, match="storage is"):
        Engine(nn.Linear(2, 2), StaticWeights({}), storage=torch.float16)
