"""The top eigenvalue equals that of the dense Hessian."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradvac.errors import GradientError
from gradvac.geometry.curvature import curvature, hessian_product, top_eigenvalue
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer


def dense(model: nn.Module, loss: torch.Tensor) -> np.ndarray:
    """The Hessian, row by row: one backward pass through the gradient for each of its entries."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    rows = [
        torch.cat([r.flatten() for r in torch.autograd.grad(entry, parameters, retain_graph=True)])
        for g in gradient
        for entry in g.flatten()
    ]
    return torch.stack(rows).numpy()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Hundreds of tiny backward passes: more threads only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_eigenvalue_is_that_of_the_dense_hessian_of_a_transformer() -> None:
    torch.manual_seed(1)
    config = TransformerConfig(
        12, d_model=2, d_ffn=4, heads=1, encoder_layers=1, decoder_layers=1, dropout=0.3
    )
    model = Transformer(config).double()
    high = [torch.randint(1, 12, (3, 3, 4)), torch.randint(1, 12, (3, 2, 5))]
    groups = {"high": high, "sum": [*high, torch.randint(1, 12, (3, 2, 3))]}

    def parts(name: str):
        return lambda: (model.token_losses(*batch, 0.1)[0].sum() / 10 for batch in groups[name])

    found = curvature(model, {name: parts(name) for name in groups}, tolerance=1e-9)

    model.eval()
    for name, batches in groups.items():
        loss = torch.zeros((), dtype=torch.float64)
        with sdpa_kernel(SDPBackend.MATH):
            for source, target_in, gold in batches:
                logits = model(source, target_in) @ model.embedding.weight.T
                logp = logits.log_softmax(-1)
                nll = -logp.gather(-1, gold[..., None]).sum()
                loss = loss + (0.9 * nll - 0.1 * logp.mean(-1).sum()) / 10
            h = dense(model, loss)
        values = np.linalg.eigvalsh(h)
        assert found[name].value == pytest.approx(values[-1], rel=1e-8)
        assert found[name].residual < 1e-8
        assert 0 < found[name].products < len(h)

        v = torch.randn(len(h), dtype=torch.float64)
        product = hessian_product(parts(name), list(model.parameters()), v)
        assert product.numpy() == pytest.approx(h @ v.numpy(), abs=1e-10)


def test_it_is_the_largest_eigenvalue_and_not_the_one_of_largest_magnitude() -> None:
    x = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    curves = torch.tensor([-9.0, 4.0, 1.0], dtype=torch.float64)  # the Hessian of the quadratic
    found = top_eigenvalue(lambda: [(curves * x.square()).sum() / 2], [x])
    assert found.value == pytest.approx(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parts_add_up_whatever_the_precision(dtype: torch.dtype) -> None:
    x = nn.Parameter(torch.ones(5, dtype=dtype))
    curves = torch.arange(1.0, 6.0).to(dtype)
    halves = lambda: [(curves * x * x).sum() / 4, (curves * x * x).sum() / 4]
    assert top_eigenvalue(halves, [x]).value == pytest.approx(5, rel=1e-2)


def test_what_has_no_spectrum_is_refused_with_the_name_of_the_loss() -> None:
    model = nn.Linear(1, 1, bias=False)
    with pytest.raises(GradientError, match="low: the loss has 1 parameters"):
        curvature(model, {"low": lambda: [model(torch.ones(1, 1)).sum()]})
    model = nn.Linear(2, 1)
    with pytest.raises(GradientError, match="high: a Hessian-vector product is not finite"):
        curvature(model, {"high": lambda: [model(torch.full((1, 2), torch.inf)).exp().sum()]})
