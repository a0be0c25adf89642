"""Label-smoothed cross-entropy over large vocabularies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradvac.engine import register_operation


@register_operation()
def smoothed_cross_entropy(
    logits_NV: Tensor, gold_N: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return label-smoothed loss and plain negative log-likelihood, each ``[N]``, in fp32 or more.

    With ``lse = log sum exp x``: nll = lse - x_gold, loss = (1 - eps) nll + eps (lse - mean x).
    """
    loss_N, nll_N = _SmoothedCrossEntropy.apply(logits_NV, gold_N, label_smoothing)
    return loss_N, nll_N


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Fewer passes over ``[N, V]`` than autograd needs, in pieces that fit the cache."""

    @staticmethod
    def forward(logits: Tensor, gold: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        pieces = [_wide(piece) for piece in logits.split(_piece_rows(logits))]
        lse = torch.cat([piece.logsumexp(dim=1) for piece in pieces])
        mean = torch.cat([piece.mean(dim=1) for piece in pieces])
        nll = lse - _wide(logits.gather(1, gold[:, None])).squeeze(1)
        return torch.lerp(nll, lse - mean, eps), nll

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Any) -> None:
        logits, gold, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, gold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, gold = ctx.saved_tensors
        g = gradients[0][:, None]
        uniform, at_gold = g * (ctx.eps / logits.shape[1]), g * (1 - ctx.eps)
        if torch.is_grad_enabled():  # a Hessian-vector product is being built
            gradient = _wide(logits).softmax(dim=1) * g - uniform
            gradient = gradient.scatter_add(1, gold[:, None], -at_gold)
            return gradient.to(logits.dtype), None, None
        gradient = torch.empty_like(logits)
        rows = _piece_rows(logits)
        for start in range(0, len(logits), rows):
            piece = slice(start, start + rows)
            p = _wide(logits[piece]).softmax(dim=1).mul_(g[piece]).sub_(uniform[piece])
            p.scatter_add_(1, gold[piece, None], -at_gold[piece])
            gradient[piece] = p
        return gradient, None, None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _piece_rows(logits_NV: Tensor) -> int:
    """Return how many rows are 2 MiB of fp32, which fits a core's cache; all on accelerators."""
    rows, vocabulary = logits_NV.shape
    return max(1, 2**19 // vocabulary) if logits_NV.device.type == "cpu" else max(1, rows)
