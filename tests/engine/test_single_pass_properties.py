"""Random chains of operations: the split is exact, or refused and one backward per task is."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gradvac.engine import Engine
from gradvac.errors import GradientError
from tests.engine.partition import largest_error

D = 4


def attend(x, batch_dim):
    x = x.transpose(0, batch_dim)  # samples to the front
    return F.scaled_dot_product_attention(*x.chunk(3, -1)).transpose(0, batch_dim)


def put(x, mask, values):
    y = x.clone()
    y[mask] = values
    return y


class Chain(nn.Module):
    """Applies named operations to ``[B, T, D]`` (or ``[T, B, D]``) one after the other."""

    def __init__(self, names, batch_dim):
        super().__init__()
        self.names, self.batch_dim = names, batch_dim
        self.linears = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
        self.norm, self.rms = nn.LayerNorm(D), nn.RMSNorm(D)
        self.wide = nn.Linear(D, 3 * D)
        self.scale, self.table = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(7, D))

    def forward(self, x):
        for name in self.names:
            x = OPERATIONS[name](self, x)
        return x


OPERATIONS = {
    "linear": lambda m, x: m.linears[0](x).tanh(),
    "other linear": lambda m, x: F.linear(x, m.linears[1].weight),
    "linear by its transpose": lambda m, x: x @ m.linears[0].weight,
    "layer norm": lambda m, x: m.norm(x),
    "shift after norm": lambda m, x: F.layer_norm(x, (D,), None, m.scale),
    "rms norm": lambda m, x: m.rms(x),
    "scale": lambda m, x: x * m.scale,
    "scale in place": lambda m, x: (x + 0).mul_(2.0).add_(m.scale),
    "flatten": lambda m, x: m.linears[0](x.flatten(0, 1)).unflatten(0, x.shape[:2]),
    "transpose": lambda m, x: m.linears[1](x.transpose(0, 1)).transpose(1, 0),
    "heads": lambda m, x: m.norm(
        x.unflatten(2, (2, 2)).permute(0, 2, 1, 3).transpose(1, 2).reshape(x.shape)
    ),
    "attention": lambda m, x: attend(m.wide(x), m.batch_dim),
    "mean over the other": lambda m, x: x + m.linears[0](x.mean(1 - m.batch_dim, keepdim=True)),
    "mean over samples": lambda m, x: x + m.linears[0](x.mean(m.batch_dim, keepdim=True)),
    "positions": lambda m, x: x + m.table[: x.shape[1 - m.batch_dim]].unsqueeze(m.batch_dim),
    "wrong positions": lambda m, x: x + m.table[: x.shape[m.batch_dim]].unsqueeze(1 - m.batch_dim),
    "lookup": lambda m, x: x + F.embedding((x.detach().sum(-1).abs() * 9).long() % 7, m.table),
    "reverse time": lambda m, x: m.linears[0](x.flip(1 - m.batch_dim)),
    "reverse samples": lambda m, x: m.linears[0](x.flip(m.batch_dim)),
    "pick": lambda m, x: m.linears[1](
        x[:, torch.arange(x.shape[1]).flip(0)] if m.batch_dim == 0 else x[[*range(len(x))][::-1]]
    ),
    "halves": lambda m, x: torch.cat([m.scale[:2] * x[..., :2], m.linears[0](x)[..., 2:]], -1),
    "stack": lambda m, x: torch.stack([x, m.linears[0](x)], 1).sum(1),
    "einsum": lambda m, x: torch.einsum("abi,ij->abj", x, m.linears[0].weight * m.scale),
    "some positions": lambda m, x: put(x, x.sum(-1) > 0, m.linears[0](x[x.sum(-1) > 0])),
    "some numbers": lambda m, x: put(x, x > 0, x.masked_select(x > 0) * m.scale[0]),
    "softmax": lambda m, x: m.norm(x).softmax(-1),
    "cumulate": lambda m, x: m.linears[1](x.cumsum(1 - m.batch_dim)),
    "mask": lambda m, x: torch.where(x > 0, x, m.scale).masked_fill(x > 3, 0.0),
}  # fmt: skip


@settings(max_examples=80, derandomize=True)
@given(
    names=st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=5),
    batch_dim=st.sampled_from([0, 1]),
    tasks=st.lists(st.sampled_from("abc"), min_size=1, max_size=5),
    length=st.integers(1, 5),
)
def test_exact_or_refused(names, batch_dim, tasks, length):
    torch.manual_seed(0)
    model = Chain(["linear", *names], batch_dim).double()
    shape = (len(tasks), length, D) if batch_dim == 0 else (length, len(tasks), D)
    x = torch.randn(shape, dtype=torch.float64)
    losses = lambda: (model(x).square().sum(-1).movedim(batch_dim, 0), None)
    mixes = {"mean over samples", "reverse samples"} & set(names)
    try:
        error = largest_error(model, losses, tasks, batch_dim=batch_dim)
    except GradientError:
        assert mixes, names
        rows = torch.arange(len(tasks)).repeat_interleave(length)
        of_rows = lambda: (losses()[0].flatten(), rows)
        error = largest_error(model, of_rows, tasks, Engine, batch_dim=batch_dim)
    assert error < 1e-9, names
