"""Per-task gradients in a loop of Hugging Face Accelerate, in place of ``accelerator.backward``.

Accelerate still does accumulation, mixed precision, clipping and skipped steps: after
:func:`backward` every ``p.grad`` is what ``accelerator.backward`` would have written for the same
combined gradient, scaled if there is a scaler.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from gradvac.engine import Engine, StepReport
from gradvac.engine.step import Shares
from gradvac.errors import GradientError

__all__ = ["backward"]


def backward(
    accelerator: Accelerator,
    engine: Engine,
    loss: Tensor,
    rows: Tensor | None = None,
    mask: Tensor | None = None,
    step: int | None = None,
    shares: Shares | None = None,
) -> StepReport | None:
    """Run the backward pass of a micro-batch; combine the gradients if it is the step's last.

    Like ``accelerator.backward`` it divides by ``gradient_accumulation_steps``.

    Args:
        accelerator: the one that prepared model and optimizer.
        engine: the engine of the unwrapped model.
        loss: as for the engine, ``[B, ...]`` or, with ``rows``, ``[N]``.
        rows: the sample that each loss belongs to, ``[N]``.
        mask: weights of the losses; of the shape of ``loss``.
        step: number of this step; by default one more than the last.
        shares: by task, what its mean loss was multiplied by.

    Returns:
        The report of the step; None for a micro-batch that does not end a step.

    Raises:
        GradientError: with more than one process, and as the engine does.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> import gradvac
        >>> from gradvac.integrations.accelerate import backward
        >>> accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 1, bias=False)
        >>> engine = gradvac.Engine(model, gradvac.PCGrad())
        >>> with engine.tasks(["fr", "hi"]):
        ...     loss = model(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        ...     report = backward(accelerator, engine, loss)
        >>> report.weights  # of gradients (1, 0) and (-1, 1)
        tensor([[2.0000, 1.5000]], dtype=torch.float64)
    """
    refuse_ranks(accelerator)
    scaler, steps = accelerator.scaler, accelerator.gradient_accumulation_steps
    # Factors go into the mask: a product of the losses made here, perhaps after the block of
    # `engine.tasks`, would hide from the engine which samples they belong to.
    if steps > 1 or scaler is not None:
        factor = torch.ones_like(loss.detach()) if mask is None else mask
        factor = factor / steps
        mask = factor if scaler is None else scaler.scale(factor)
    if not accelerator.sync_gradients:
        engine.accumulate(loss, rows, mask)
        return None
    scale = 1.0 if scaler is None else scaler
    return engine.backward(loss, rows, mask, scale, step, shares)


def refuse_ranks(accelerator: Accelerator) -> None:
    """Raise GradientError if gradients would have to be averaged over processes."""
    kind = accelerator.distributed_type
    if kind != DistributedType.NO:
        raise GradientError(
            f"Accelerate runs {kind.value} on {accelerator.num_processes} process(es), where "
            "gradients are averaged over ranks once for all tasks; per-task gradients would stay "
            "local and the ranks drift apart without an error. Train on one process and one device"
        )
