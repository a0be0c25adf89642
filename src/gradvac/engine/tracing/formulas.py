"""Special formulas for calls that use parameters with samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradvac.engine.gradients.parameter_slot import ParameterSlot
from gradvac.engine.samples import recurrent
from gradvac.engine.samples.calls import inner
from gradvac.engine.samples.places import Call, Mixed
from gradvac.engine.tracing.layer_functions import embedding, layer_norm, linear
from gradvac.engine.tracing.parameter_use import ParameterUse

if TYPE_CHECKING:
    from gradvac.engine.tracing.parameter_trace import ParameterTrace

Formula = Callable[["ParameterTrace", Call, list[Tensor]], tuple[Tensor, ParameterUse] | None]
"""Runs a call on samples and on tensors made of parameters; None if it does not apply."""


def _linear(
    trace: ParameterTrace, call: Call, parameters: list[Tensor]
) -> tuple[Tensor, ParameterUse] | None:
    x, w, b = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    return _affine(trace, call, parameters, x, w, b, False)


def _addmm(
    trace: ParameterTrace, call: Call, parameters: list[Tensor]
) -> tuple[Tensor, ParameterUse] | None:
    if call.kwargs or any(x is call.args[1] for x in parameters):
        return None
    b, x, w = call.args
    return _affine(trace, call, parameters, x, w, b, True) if b.ndim == 1 else None


def _matmul(
    trace: ParameterTrace, call: Call, parameters: list[Tensor]
) -> tuple[Tensor, ParameterUse] | None:
    x, w = call.args[:2] if len(call.args) > 1 else (None, None)
    if x is None or w is None or w.ndim != 2 or x.ndim < 2 or call.name == "rmatmul":
        return None
    return _affine(trace, call, parameters, x, w, None, True)


def _affine(
    trace: ParameterTrace,
    call: Call,
    parameters: list[Tensor],
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    t: bool,
) -> tuple[Tensor, ParameterUse] | None:
    place = call.place(x)
    if place is None or place.dim == x.ndim - 1 or len(call.inputs) > 1:
        return None
    slot_of = lambda p: trace.slot(p) if any(p is f for f in parameters) else None
    use = trace.new_use([slot_of(w), slot_of(b)], call.name)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w, b = x.to(dtype), w.to(dtype), None if b is None else b.to(dtype)
    return linear(trace.anchor, x, w, b, t, use), use


def _embedding(
    trace: ParameterTrace, call: Call, parameters: list[Tensor]
) -> tuple[Tensor, ParameterUse] | None:
    ids, table = call.argument(0, "input"), call.argument(1, "weight")
    padding = call.argument(2, "padding_idx")
    if call.argument(3, "max_norm") is not None or call.argument(5, "scale_grad_by_freq", False):
        raise Mixed("max_norm and scale_grad_by_freq depend on all samples")
    padding = -1 if padding is None else padding % len(table)
    slot = trace.slot(table)
    if call.argument(6, "sparse", False) and isinstance(slot, ParameterSlot):
        slot.wants_sparse = True
    use = trace.new_use([slot], call.name)
    out = embedding(trace.anchor, ids, table, padding, use)
    return out, use


def _layer_norm(
    trace: ParameterTrace, call: Call, parameters: list[Tensor]
) -> tuple[Tensor, ParameterUse] | None:
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    w, b = call.argument(2, "weight"), call.argument(3, "bias")
    if call.place(x) is None or len(call.inputs) > 1:
        return None
    slot_of = lambda p: trace.slot(p) if any(p is f for f in parameters) else None
    use = trace.new_use([slot_of(w), slot_of(b)], call.name)
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        x = x.float()  # as autocast does there; on a CPU it keeps the dtype
    eps = call.argument(4, "eps", 1e-5)
    out = layer_norm(trace.anchor, x, shape, w, b, eps, use)
    return out, use


FORMULAS: dict[str, Formula] = {
    "linear": _linear,
    "addmm": _addmm,
    "matmul": _matmul,
    "mm": _matmul,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
}


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention in steps, for a mask or queries made of parameters."""
    if query.dtype in (torch.bfloat16, torch.float16):  # the fused one is more precise inside
        with torch.autocast(query.device.type, enabled=False):
            mask = attn_mask
            if mask is not None and mask.dtype != torch.bool:
                mask = mask.float()
            wide = (query.float(), key.float(), value.float())
            return _attention(*wide, mask, dropout_p, is_causal, scale, enable_gqa).to(query.dtype)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), float("-inf"))
        else:
            scores = scores + attn_mask
    return torch.dropout(scores.softmax(-1), dropout_p, True) @ value


# Operations split into parts when they use parameters with samples: they draw random numbers and
# cannot be recomputed in the backward, or have several outputs.
COMPOSED: dict[str, Callable[[ParameterTrace, Callable[..., Any]], Callable[..., Any]]] = {
    "multi_head_attention_forward": lambda trace, func: inner(func),
    "scaled_dot_product_attention": lambda trace, func: _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent.layers),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), recurrent.cell),
}
