"""Per-task gradients in a loop of Hugging Face Accelerate, in place of ``accelerator.backward``.

Accelerate still does accumulation, mixed precision, clipping and skipped steps: after
:func:`backward` every ``p.grad`` is what ``accelerator.backward`` would have written for the same
combined gradient, scaled if there is a scaler. On several ranks the engine adds the gradients up
itself: :func:`without_wrapper` keeps ``accelerator.prepare`` from wrapping the model.
"""

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from gradvac.engine import Engine, StepReport
from gradvac.engine.ranks.shards import is_sharded
from gradvac.engine.step import Shares
from gradvac.errors import GradientError

__all__ = ["backward", "without_wrapper"]

_REDUCED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Kinds of parallelism in which the engine can add up the gradients of the ranks."""


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

    Like ``accelerator.backward`` it divides by ``gradient_accumulation_steps`` and takes the mean
    over the ranks: a loss that is a mean over this rank's tokens needs no change.

    Args:
        accelerator: the one that prepared model and optimizer.
        engine: the engine of the model, which has no wrapper; see :func:`without_wrapper`.
        loss: as for the engine, ``[B, ...]`` or, with ``rows``, ``[N]``.
        rows: the sample that each loss belongs to, ``[N]``.
        mask: weights of the losses; of the shape of ``loss``.
        step: number of this step; by default one more than the last.
        shares: by task, what its mean loss on this rank was multiplied by.

    Returns:
        The report of the step; None for a micro-batch that does not end a step.

    Raises:
        GradientError: if the gradients of the ranks would be added up by others than the engine,
            and as the engine does.

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
    refuse_other_reduction(accelerator)
    _check_ranks(accelerator, engine)
    scaler, ranks = accelerator.scaler, accelerator.num_processes
    parts = accelerator.gradient_accumulation_steps * ranks
    if parts > 1 or scaler is not None:  # by the mask: the samples of a new loss are not known
        mask = torch.ones_like(loss) if mask is None else mask
        mask = mask / parts
        mask = mask if scaler is None else scaler.scale(mask)
    if not accelerator.sync_gradients:
        engine.accumulate(loss, rows, mask)
        return None
    scale = 1.0 if scaler is None else scaler
    if shares is not None and ranks > 1:
        shares = {task: share / ranks for task, share in shares.items()}
    return engine.backward(loss, rows, mask, scale, step, shares)


def without_wrapper(accelerator: Accelerator) -> Accelerator:
    """Let ``accelerator.prepare`` leave the model without DistributedDataParallel.

    As with DistributedDataParallel all ranks then begin with the parameters and buffers of rank 0.

    Args:
        accelerator: changed in place, before it prepares a model.

    Returns:
        The same accelerator.

    Raises:
        GradientError: for kinds of parallelism in which the engine cannot add up gradients.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from gradvac.integrations.accelerate import without_wrapper
        >>> accelerator = without_wrapper(Accelerator(cpu=True))
        >>> type(accelerator.prepare(torch.nn.Linear(2, 1))).__name__
        'Linear'
    """
    refuse_other_reduction(accelerator)
    accelerator.prepare_model = _Bare(accelerator)
    return accelerator


class _Bare:
    """``accelerator.prepare_model`` without a wrapper: devices, precision, equal parameters."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._prepare: Any = accelerator.prepare_model

    def __call__(
        self,
        model: nn.Module,
        device_placement: bool | None = None,
        evaluation_mode: bool = False,
    ) -> nn.Module:
        sharded = any(is_sharded(p) for p in model.parameters())
        if sharded and not sharded_at_load(model):
            raise GradientError(
                "the model is sharded, and Accelerate would save and load a part of it; train it "
                "in a loop of your own, without Accelerate: docs/distributed.md. The Trainer of "
                "transformers takes one that from_pretrained sharded: docs/drop-in.md"
            )
        found = self._prepare(model, device_placement, evaluation_mode=True)
        if self._accelerator.num_processes > 1 and (sharded or not evaluation_mode):
            for values in (*found.parameters(), *found.buffers()):
                if not is_sharded(values):  # each rank has rows of its own
                    dist.broadcast(values.detach(), 0)
        return found


def sharded_at_load(model: Any) -> bool:
    """Whether transformers sharded a model in ``from_pretrained``, and will save it whole."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def refuse_other_reduction(accelerator: Accelerator) -> None:
    """Raise GradientError if others than the engine would add up the gradients of the ranks."""
    kind = accelerator.distributed_type
    if kind not in _REDUCED:
        raise GradientError(
            f"Accelerate runs {kind.value} on {accelerator.num_processes} process(es), which adds "
            "up gradients over ranks once for all tasks; per-task gradients would stay local and "
            "the ranks drift apart without an error. Start the same script by torchrun without "
            f"{kind.value}: every rank then keeps the whole model, and the engine adds the "
            "gradients up. If the model does not fit: the Trainer takes one that transformers "
            "shards, from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=...)), "
            "see docs/drop-in.md; in a loop of your own use fully_shard, without Accelerate: "
            "docs/distributed.md"
        )


def _check_ranks(accelerator: Accelerator, engine: Engine) -> None:
    """Check that the engine trains with the ranks of the accelerator, on a model without wrapper.

    Raises:
        GradientError: if it does not.
    """
    if accelerator.num_processes == 1:
        return
    if not isinstance(accelerator.prepare_model, _Bare):
        raise GradientError(
            f"the accelerator runs on {accelerator.num_processes} ranks and wraps models in "
            "DistributedDataParallel, which adds up one gradient for all tasks; make it by "
            "without_wrapper(Accelerator(...)), and the engine adds up the gradients itself"
        )
    ranks = engine._setup.ranks
    if ranks is None or ranks.size != accelerator.num_processes:
        raise GradientError(
            f"the engine trains on {1 if ranks is None else ranks.size} rank(s) and Accelerate on "
            f"{accelerator.num_processes}; make the engine after the accelerator, without "
            "process_group="
        )
