"""The fused head of TRL's trainers, in a form whose gradient is split by tasks.

TRL computes the log-probabilities of labels from hidden states by an autograd function, in chunks,
so that the logits of a whole batch never exist. Here the same function is declared to keep tokens
apart if the head is frozen, as with adapters. If the head is trained, the log-probabilities are
composed of operations that the engine splits, in chunks that are computed again in the backward
pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import trl
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from trl.trainer import utils

from gradvac.engine import register_operation
from gradvac.errors import GradientError

_NAME = "_ChunkedLogProbFunction"
_CHUNK = 2**26  # logits that exist at once, chosen here: 256 MiB in float32

PerToken = tuple[Tensor, Tensor, None, None, Tensor]
"""Log-probability of the label, entropy, and whether the label is the likeliest token: ``[N]``."""


def refuse_unknown_head() -> None:
    """Raise GradientError if the installed TRL computes its losses in another way."""
    if not hasattr(getattr(utils, _NAME, None), "apply") or not hasattr(utils, "_use_triton"):
        raise GradientError(
            f"TRL {trl.__version__} computes its losses in a way that is not known here; install "
            "a version that is tested: trl==1.16.0"
        )


def labels_alone(log_probs: Tensor) -> bool:
    """Whether TRL's head had the positions with a label alone, as its GPU kernels have."""
    return bool(cast(Any, utils)._use_triton(log_probs.device))


@contextmanager
def split_head() -> Iterator[list[Tensor]]:
    """Compute the log-probabilities of TRL's fused head so that the engine can split them inside.

    Yields:
        The log-probabilities of each call, ``[N]``: of all positions or of those with a label.
    """
    before = getattr(utils, _NAME)
    found: list[Tensor] = []

    class Head:
        @staticmethod
        def apply(
            hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *rest: Any
        ) -> PerToken:
            trained = weight.requires_grad or (bias is not None and bias.requires_grad)
            if trained and torch.is_grad_enabled():
                out = _composed(hidden, weight, bias, targets, *rest)
            else:
                out = _declared(hidden, weight, bias, targets, *rest)
            found.append(out[0])
            return out

    setattr(utils, _NAME, Head)
    try:
        yield found
    finally:
        setattr(utils, _NAME, before)


@register_operation(dim=0)
def _declared(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> PerToken:
    """Per-token values of hidden states ``[N, d]``, by the function of TRL."""
    from trl.kernels import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(hidden, weight, bias, *rest)


def _composed(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    chunk_size: int,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    outputs: tuple[str, ...] = (),
) -> PerToken:
    """Per-token values of hidden states ``[N, d]``, with a head ``[V, d]`` that is trained."""

    def values(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = F.linear(h, weight, bias)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits * logit_scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        with torch.no_grad():
            log_p = logits.log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            top = log_p.argmax(-1) == t
        return -F.cross_entropy(logits, t, reduction="none"), entropy, top

    rows = max(1, _CHUNK // len(weight))
    if len(hidden) <= rows:
        log_probs, entropy, top = values(hidden, targets)
        return log_probs, entropy, None, None, top
    pieces = [
        checkpoint(values, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    log_probs, entropy, top = (torch.cat(each) for each in zip(*pieces, strict=True))
    return log_probs, entropy, None, None, top
