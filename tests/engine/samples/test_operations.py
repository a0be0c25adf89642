"""Operations through which samples are followed, each against separate backward passes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradvac.engine import Engine
from gradvac.methods import Joint
from tests.engine.partition import largest_error

TASKS = ["a", "b", "a", "c", "b"]
B, T, D = 5, 4, 6
X = torch.linspace(-1, 1, B * T * D, dtype=torch.float64).sin().view(B, T, D)
IDS = torch.arange(B * T).view(B, T) * 7 % 5

FOLLOWED = {
    "tensordot": lambda y, m: torch.tensordot(y, m.square, 1),
    "tensordot both": lambda y, m: torch.tensordot(y, m.cube, ([2, 1], [0, 1])),
    "inner": lambda y, m: torch.inner(y, m.square),
    "inner flipped": lambda y, m: torch.inner(m.square, y).movedim(0, -1),
    "inner with a number": lambda y, m: torch.inner(m.vector[0], y),
    "outer": lambda y, m: torch.outer(y[:, 0, 0], m.vector),
    "mv": lambda y, m: y[:, 0].mv(m.vector),
    "matmul vector": lambda y, m: y @ m.vector,
    "vector matmul": lambda y, m: m.vector @ y.mT,
    "addmv": lambda y, m: torch.addmv(m.vector[:1], y[:, 0], m.vector),
    "addmm keywords": lambda y, m: torch.addmm(m.vector, mat1=y[:, 0], mat2=m.square, beta=2),
    "baddbmm keywords": lambda y, m: torch.baddbmm(
        y.new_zeros(1), batch1=y, batch2=y.mT, alpha=0.3
    ),
    "logaddexp": lambda y, m: torch.logaddexp(y, m.vector),
    "vector_norm": lambda y, m: torch.linalg.vector_norm(y * m.vector, dim=-1),
    "cosine_similarity": lambda y, m: F.cosine_similarity(y, y.flip(1) * m.vector, dim=-1),
    "cdist": lambda y, m: torch.cdist(y, y.flip(2)[:, :2] * 2),
    "cdist learned": lambda y, m: torch.cdist(y, m.square[:3] * 2),
    "fft": lambda y, m: torch.fft.rfft(y).abs(),
    "fft2": lambda y, m: torch.fft.fft2(y).real,
    "einsum implicit": lambda y, m: torch.einsum("btd,de", y, m.square),
    "einsum dots": lambda y, m: torch.einsum("...d,ed->...e", y, m.square),
    "einsum tuple": lambda y, m: torch.einsum("btd,de->bte", (y, m.square)),
    "pixel_shuffle": lambda y, m: F.pixel_shuffle(y.view(B, T, 2, 3), 2),
    "embedding_bag": lambda y, m: y[:, 0, :3] + F.embedding_bag(IDS, m.table),
    "tile": lambda y, m: y.tile((2,)) * m.wide,
    "roll": lambda y, m: y.roll(shifts=1, dims=1) * m.vector,
    "pad names samples": lambda y, m: F.pad(y, (1, 1, 0, 1, 0, 0)).cumsum(1),
    "windows": lambda y, m: y.contiguous().as_strided(
        (B, T - 1, 2, D), (T * D, D, D, 1)
    ) * m.vector,
    "lookup": lambda y, m: y[..., :3] * m.table[IDS],
    "lookup columns": lambda y, m: y[..., :5] * m.table.T[0, IDS][..., None],
    "index_select": lambda y, m: y[:, 0, :3] + m.table.index_select(0, IDS[:, 0]),
    "gather": lambda y, m: y[:, 0, 0] * m.vector.gather(0, IDS[:, 0]),
    "take_along_dim": lambda y, m: y[:, 0, :3] * m.table.take_along_dim(IDS[:, :3], 0),
    "learned rows": lambda y, m: m.table[torch.arange(T)][:, :1] + y,
    "masked rows": lambda y, m: y[:, :3, :3] * m.table[torch.tensor([1, 0, 1, 0, 1]).bool()],
    "reshaped table": lambda y, m: y[..., :5] * m.table.T.reshape(5, 3)[:, 0],
    "experts": lambda y, m: torch.bmm(
        y.reshape(-1, 1, D), m.experts[IDS.reshape(-1)]
    ).view(B, T, D).cumsum(1),
    "assigned": lambda y, m: assigned(torch.zeros(B, T, 2 * D, dtype=y.dtype), y * m.vector),
    "copied": lambda y, m: copied(y.new_empty(B, T, 2 * D), y * m.vector),
    "columns of images": lambda y, m: F.unfold(y.view(B, 1, T, D), 2),
    "index_add": lambda y, m: torch.zeros_like(y).index_add(
        0, torch.tensor([2, 0, 0]), y[torch.tensor([2, 0, 0])] * m.vector
    ) + y,
    "index_add to constants": lambda y, m: torch.zeros(B, T, D, dtype=y.dtype).index_add(
        0, torch.tensor([2, 0, 0]), y[torch.tensor([2, 0, 0])] * m.vector
    ),
    "baddbmm with samples": lambda y, m: (y[:, :, :T] * m.vector[:T]).baddbmm(y, y.mT),
    "complex": lambda y, m: torch.view_as_real(
        torch.view_as_complex(y.view(B, T, 3, 2)) * torch.polar(torch.ones(3), torch.arange(3.0))
    ),
    "a parameter that gives the shape": lambda y, m: y + X.reshape(B, 2, -1)[:, :, :T * D // 2]
    .reshape(B, T, D).expand_as(m.experts[:1, :1].expand(B, T, D)),
    "inverse": lambda y, m: torch.linalg.inv(y @ y.mT + torch.eye(T)) @ y,
    "added in place": lambda y, m: m.vector.expand(B, T, D).clone().add_(y * m.vector),
}  # fmt: skip


def assigned(buffer, y):
    buffer[..., :D] = y
    buffer[:, 1:, D:] = y[:, 1:]
    buffer[:, 0, D:] = 2 * y[:, 0]
    return buffer


def copied(buffer, y):
    buffer[..., :D].copy_(y)
    buffer[..., D:].copy_(2 * y)
    return buffer


class Net(nn.Module):
    def __init__(self, operation):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.operation = nn.Linear(D, D), operation
        shapes = {"square": (D, D), "cube": (D, T), "vector": (D,), "table": (5, 3)}
        shapes |= {"wide": (2 * D,), "experts": (5, D, D), "last": (2, 1)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.double()

    def forward(self, x, ids):
        y = self.operation(self.first(x).tanh(), self)
        y = y.reshape(B, -1).square().sum(1, keepdim=True)
        return F.linear(y, self.last).sum(1)  # a parameter, so that samples must have been followed


@pytest.mark.parametrize("name", FOLLOWED)
def test_it_is_split_exactly(name):
    model = Net(FOLLOWED[name])
    losses = lambda: (model(X, IDS), None)
    for options in ({}, {"inputs": [X, IDS]}):
        assert largest_error(model, losses, TASKS, Engine, 2, **options) < 1e-10
    engine = Engine(model, Joint())
    with engine.tasks(TASKS):
        engine.backward(model(X, IDS))
    assert not engine.refused
