"""The losses of Hugging Face models before they are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradvac.errors import GradientError

OVERRIDE = (
    "override task_losses(model, inputs), which returns the unreduced losses [B, ...] and None, or "
    "losses [N] and the sample each belongs to [N]"
)
_ROUTER = (
    " (it includes a router's loss of all samples: leave that out by model.config."
    "output_router_logits = False, or add gradvac.integrations.router_losses)"
)
_IGNORED = -100  # label of a position without loss, by the convention of transformers


def cross_entropies(
    logits: Tensor,
    labels: Tensor,
    shift: bool = False,
    smoothing: float = 0.0,
    width: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return :func:`padded_cross_entropies` of labels that count, and the sample of each: ``[N]``.

    ``width`` is that of :func:`samples_of`.
    """
    losses, counted = padded_cross_entropies(logits, labels, shift, smoothing)
    return losses[counted], samples_of(counted, width)


def samples_of(counted: Tensor, width: int) -> Tensor:
    """Return the sample of each loss that counts, ``[N]``.

    Args:
        counted: which losses count, ``[B, ...]``.
        width: 0 if rows are the samples; how many tokens a row has if tokens are.

    Raises:
        GradientError: if it is not clear which token a loss belongs to.

    Example:
        >>> import torch
        >>> counted = torch.tensor([[True, False, True], [True, True, False]])
        >>> samples_of(counted, 0), samples_of(counted, 4)  # of 4 tokens, 3 of them predict one
        (tensor([0, 0, 1, 1]), tensor([0, 2, 4, 5]))
    """
    if width and (counted.ndim != 2 or not width - 1 <= counted.shape[1] <= width):
        raise GradientError(
            f"losses are {list(counted.shape)} and packed rows have {width} tokens, so it is not "
            "known which token each belongs to (prompt tuning puts tokens before a row; leave it "
            f"or packing out); or {OVERRIDE}"
        )
    at = counted.nonzero()
    return at[:, 0] * width + at[:, 1] if width else at[:, 0]


def padded_cross_entropies(
    logits: Tensor, labels: Tensor, shift: bool = False, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every label, as transformers defines it: 0 if it does not count.

    On an accelerator the host does not wait to learn how many labels count.

    Args:
        logits: ``[B, ..., V]``.
        labels: classes ``[B, ...]``, -100 where there is none.
        shift: position t predicts label t + 1, as in causal language models.
        smoothing: label smoothing, as ``TrainingArguments.label_smoothing_factor``.

    Returns:
        Losses ``[B, ...]``, and which of them are of a label that counts, of the same shape.

    Raises:
        GradientError: if logits and labels do not fit a classification.
    """
    if logits.shape[:-1] != labels.shape or labels.is_floating_point():
        raise GradientError(
            f"logits are {list(logits.shape)} and labels {labels.dtype} {list(labels.shape)}; a "
            f"cross-entropy needs [B, ..., V] and integers [B, ...]. For another loss {OVERRIDE}"
        )
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=smoothing
    )
    return losses.view(labels.shape), labels != _IGNORED


class ModelLoss:
    """The cross-entropy of a model's logits and labels, checked to be the model's own loss.

    Without smoothing, the first batch also asks the model for its loss and compares.

    Args:
        shift: whether position t predicts label t + 1.
        smoothing: label smoothing; the Trainer then leaves out the model's own loss.

    Attributes:
        adds_up_means: the model is given the number of labels of a step and divides by those of
            the micro-batch all the same. Known after the first batch.
    """

    def __init__(self, shift: bool, smoothing: float) -> None:
        self.shift = shift
        self.smoothing = smoothing
        self.adds_up_means = False
        self._known = smoothing > 0

    def __call__(
        self, model: nn.Module, inputs: dict[str, Any], n_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """Return losses ``[B, ...]`` of a batch, and which of them are of a label that counts.

        Args:
            model: returns a mapping with ``logits``, and with ``loss`` if there are labels.
            inputs: the batch, with ``labels``.
            n_items: number of labels of the step, if the model's loss may know it.

        Raises:
            GradientError: if the model's own loss is different.
        """
        name = type(model).__name__
        labels = inputs.get("labels")
        if labels is None:
            raise GradientError(
                f"the batch has no 'labels', only {', '.join(inputs)}; for another loss {OVERRIDE}"
            )
        if self._known:
            outputs = model(**_without_labels(model, inputs))
        else:
            given = {} if n_items is None else {"num_items_in_batch": n_items}
            outputs = model(**inputs, **given)
        fields: Mapping[str, Any] = outputs if isinstance(outputs, Mapping) else {}
        logits = fields.get("logits")
        if not isinstance(logits, Tensor):
            raise GradientError(f"{name} returns no logits; {OVERRIDE}")
        labels = _beside_virtual_tokens(model, logits, labels)
        losses, counted = padded_cross_entropies(logits, labels, self.shift, self.smoothing)
        if not self._known and bool(counted.any()):
            self._compare(name, losses.detach()[counted], fields, n_items)
        return losses, counted

    def _compare(
        self, name: str, losses: Tensor, fields: Mapping[str, Any], n_items: Tensor | int | None
    ) -> None:
        """Compare losses ``[N]`` with the model's own loss, and find what that divides by."""
        own: Tensor | None = fields.get("loss")
        if own is None:
            raise GradientError(f"{name} returns no loss to compare with; {OVERRIDE}")
        tolerance = 1e-4 if own.dtype.itemsize >= 4 else 1e-2  # the latter for 16 bits
        close = lambda n: torch.isclose(losses.sum() / n, own.detach().to(losses), rtol=tolerance)
        if n_items is None or not close(n_items):
            if not close(len(losses)):
                raise GradientError(
                    f"the loss of {name} is {own.item():.6g} where the mean cross-entropy of its "
                    f"logits and labels is {losses.mean().item():.6g}, so it is another loss"
                    f"{_ROUTER if any('aux_loss' in field for field in fields) else ''}; {OVERRIDE}"
                )
            self.adds_up_means = n_items is not None
        self._known = True


def _beside_virtual_tokens(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """Return labels ``[B, T]`` as PEFT pads them where it puts learned tokens before a text."""
    config = getattr(model, "active_peft_config", None)
    if not getattr(config, "is_prompt_learning", False) or logits.ndim != 3:
        return labels
    return F.pad(labels, (max(0, logits.shape[1] - labels.shape[1]), 0), value=_IGNORED)


def _without_labels(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Leave out the labels if possible, so that the model does not compute its loss for nothing."""
    rest = {key: value for key, value in inputs.items() if key != "labels"}
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
        prepare: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if prepare is None:
            return inputs
        rest["decoder_input_ids"] = prepare(labels=inputs["labels"])
    return rest
