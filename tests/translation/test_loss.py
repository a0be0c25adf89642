import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradvac.translation.loss import smoothed_cross_entropy


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 700])  # less and more than one piece of 2 MiB
def test_values_and_gradients_equal_torch(eps: float, rows: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(rows, 1000, dtype=torch.float64, requires_grad=True)
    gold, weight = torch.randint(1000, (rows,)), torch.rand(rows, dtype=torch.float64)
    loss, nll = smoothed_cross_entropy(logits, gold, eps)
    expected = F.cross_entropy(logits, gold, label_smoothing=eps, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nll, F.cross_entropy(logits, gold, reduction="none"))
    assert not nll.requires_grad
    ours = torch.autograd.grad((weight * loss).sum(), logits)[0]
    theirs = torch.autograd.grad((weight * expected).sum(), logits)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_the_loss_is_twice_differentiable() -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    gold = torch.tensor([4, 0, 2])

    def loss(x: Tensor) -> Tensor:
        return smoothed_cross_entropy(x, gold, 0.1)[0]

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


def test_half_precision_logits_are_scored_in_fp32() -> None:
    logits = torch.randn(3, 5).bfloat16()
    loss, nll = smoothed_cross_entropy(logits, torch.tensor([1, 2, 3]), 0.1)
    assert loss.dtype == nll.dtype == torch.float32
