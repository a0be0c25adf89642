"""The auxiliary losses of mixtures of experts, divided by the samples that they flow through.

A router's loss is one number of all tokens of a batch: it compares how often the experts were
chosen with how probable they were. Its gradient, though, reaches the parameters through the router
logits of single tokens, and the gradient at a token's logits is that token's part. The parts of all
samples add up to the gradient of the whole loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradvac.errors import GradientError

__all__ = ["router_losses"]


def router_losses(
    model: nn.Module,
    outputs: Mapping[str, Any],
    attention_mask: Tensor | None = None,
    decoder_attention_mask: Tensor | None = None,
) -> Tensor:
    """Return what a model of transformers adds to its loss for its routers, by samples.

    Call it inside ``with engine.tasks(...)`` and add the result to losses ``[B]`` that are divided
    by what the joint loss is divided by.

    Args:
        model: the model, for the coefficients of its losses.
        outputs: what it returned with ``output_router_logits=True``.
        attention_mask: as the model was given it.
        decoder_attention_mask: as the model was given it.

    Returns:
        ``[B]``. The sum is the model's loss of its routers, times its coefficients. The gradient of
        an entry is that part of the gradient that flows through the tokens of the sample; the value
        is the same for all samples, as only the gradient has parts.

    Raises:
        GradientError: if the model has no router losses, or one that is not known here.

    Example:
        >>> import torch
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> import gradvac
        >>> from gradvac.integrations.router_losses import router_losses
        >>> shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
        >>> heads = dict(num_attention_heads=2, num_key_value_heads=1)
        >>> model = MixtralForCausalLM(MixtralConfig(vocab_size=11, **shape, **heads))
        >>> engine = gradvac.Engine(model, gradvac.PCGrad())
        >>> ids = torch.arange(12).view(3, 4) % 11
        >>> with engine.tasks(["fr", "hi", "fr"]):
        ...     out = model(ids, output_router_logits=True)
        ...     losses = torch.nn.functional.cross_entropy(
        ...         out.logits[:, :-1].mT, ids[:, 1:], reduction="none"
        ...     )
        ...     report = engine.backward(losses.sum(1) / losses.numel() + router_losses(model, out))
        >>> engine.refused
        ''
    """
    get_base: Any = getattr(model, "get_base_model", None)  # of PEFT
    base: Any = model if get_base is None else get_base()
    samples = outputs["logits"].shape[0]
    masks = {"": attention_mask, "encoder_": attention_mask, "decoder_": decoder_attention_mask}
    total, flows = None, []
    for part, mask in masks.items():
        logits = [x for x in outputs.get(f"{part}router_logits") or () if isinstance(x, Tensor)]
        if not logits:
            continue
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            copies = [x.detach().requires_grad_() for x in logits]
            loss = _loss(base, copies, mask, outputs.get(f"{part}aux_loss"))
            gradients = torch.autograd.grad(loss, copies)
        flows += [
            (x * g).reshape(samples, -1).sum(1) for x, g in zip(logits, gradients, strict=True)
        ]
        total = loss.detach() if total is None else total + loss.detach()
    if total is None:
        raise GradientError(
            f"{type(base).__name__} returned no router logits; call it with "
            "output_router_logits=True, or leave this out: not every mixture of experts has a "
            "loss for its routers"
        )
    flow = torch.stack(flows).sum(0)
    return flow - flow.detach() + total / samples


def _loss(model: Any, logits: Sequence[Tensor], mask: Tensor | None, own: Tensor | None) -> Tensor:
    """Compute a router's loss from the logits of all layers, by the functions of transformers."""
    functions = vars(sys.modules[type(model).__module__])
    balance: Callable[..., Any] | None = functions.get("load_balancing_loss_func")
    z_loss: Callable[..., Any] | None = functions.get("router_z_loss_func")
    if balance is None:
        raise GradientError(
            f"the router losses of {type(model).__name__} are not known; divide them by samples "
            "yourself, or leave them out: output_router_logits=False"
        )
    if logits[0].ndim == 3 and z_loss is not None:  # [B, T, experts] of each layer: Switch
        joined = torch.cat(list(logits), dim=1)
        found = balance(joined.softmax(-1), joined.argmax(-1))
        loss = _setting(model, "router_aux_loss_coef") * found
        loss = loss + _setting(model, "router_z_loss_coef") * z_loss(joined)
    else:
        most = 2 if model.config.is_encoder_decoder else _setting(model, "num_experts_per_tok")
        found = balance(tuple(logits), logits[0].shape[-1], most, mask)
        loss = _setting(model, "router_aux_loss_coef", "aux_loss_coef") * found
    if isinstance(own, Tensor) and not torch.isclose(found, own.to(found), rtol=1e-3):
        raise GradientError(
            f"a router loss of {type(model).__name__} is {own.item():.6g} where this one is "
            f"{found.item():.6g}: give the attention masks that the model was given, or, if they "
            "are the same, divide its router loss by samples yourself"
        )
    return loss


def _setting(model: Any, *names: str) -> Any:
    """Return a number from a model, or from its configuration."""
    for place in (model, model.config):
        for name in names:
            if (found := getattr(place, name, None)) is not None:
                return found
    raise GradientError(f"{type(model).__name__} has no {' or '.join(names)}")
