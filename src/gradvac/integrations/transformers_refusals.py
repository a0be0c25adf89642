"""Settings of the Trainer that would be ignored or silently wrong with per-task gradients."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Trainer

from gradvac.errors import GradientError
from gradvac.integrations.accelerate import sharded_at_load
from gradvac.integrations.transformers_loss import OVERRIDE


def refuse_settings(trainer: Trainer) -> None:
    """Raise GradientError for arguments of the Trainer that leave no room for task gradients."""
    args = trainer.args
    if args.n_gpu > 1:
        raise GradientError(
            f"{args.n_gpu} GPUs are visible and the Trainer would split batches over them by "
            "DataParallel, which adds up the gradients of all tasks; start the script by "
            "torchrun, one process for each, or set CUDA_VISIBLE_DEVICES=0"
        )
    if args.torch_compile:
        raise GradientError(
            "torch_compile hides from the engine where parameters meet samples; switch it off"
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optim or "layerwise" in optim:
        raise GradientError(
            f"optim is {optim!r}, which updates inside the backward pass, before the "
            "gradients of the tasks are combined; choose one that does not"
        )
    for name in ("deepspeed", "parallelism_config"):
        if getattr(args, name, None):
            raise GradientError(
                f"{name} adds up or cuts the gradients of all tasks together; start the script by "
                f"torchrun without it. If the model does not fit on a rank, {_SHARDED}"
            )
    if args.ddp_broadcast_buffers:
        raise GradientError(
            "ddp_broadcast_buffers would be ignored: buffers that a forward pass changes stay on "
            "their rank, and rank 0's are saved; leave it out"
        )
    if args.fsdp:
        raise GradientError(
            "fsdp: Accelerate ignores it on CPUs, and elsewhere adds up the gradients of all tasks "
            f"together; {_SHARDED}"
        )
    config = getattr(trainer.model, "config", None)
    plan = getattr(config, "distributed_config", None)
    if sharded_at_load(trainer.model) and plan is not None:
        for name, usual in _ONLY_SHARDED.items():
            if (found := getattr(plan, name, usual)) not in (usual, None):
                raise GradientError(
                    f"the model was loaded with {name}={found!r}, which is not tested with task "
                    f"gradients; {_SHARDED}"
                )
    if trainer.compute_loss_func is not None:
        raise GradientError(f"compute_loss_func returns one loss for all tasks; {OVERRIDE}")


_SHARDED = (
    "load the model with from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=N)) "
    "for N ranks, and nothing else in it: docs/drop-in.md"
)
_ONLY_SHARDED = {
    "tp_size": 1, "pp_size": 1, "ep_size": 1, "dp_replicate_size": 1, "fsdp_cpu_offload": False,
    "fsdp_mixed_precision": False,
}  # fmt: skip


def refuse_other_losses(
    kind: type, behind: Sequence[type], own_losses: bool, split: Sequence[type]
) -> None:
    """Raise GradientError for a loss or a step of a base class that would not be called.

    Args:
        kind: the class of the trainer.
        behind: its base classes after ``TaskGradients``.
        own_losses: whether it has its own ``task_losses``.
        split: base classes whose loss and step it is made for.
    """
    kinds = kind.__mro__
    for base in kinds[: kinds.index(Trainer)]:
        name = base.__name__
        if base in split:
            continue
        if base.__module__ == "trl.trainer.sft_trainer":
            raise GradientError(
                f"{name} computes its loss in a way of its own; use "
                "gradvac.integrations.trl.TaskSFTTrainer"
            )
        if "compute_loss" in vars(base) and not own_losses:
            raise GradientError(
                f"{name}.compute_loss returns one loss for all tasks and would not be called in "
                f"training; {OVERRIDE}"
            )
        if "training_step" in vars(base) and base in behind:
            raise GradientError(
                f"{name}.training_step would not be called; name {name} before TaskGradients "
                "among the base classes, if it calls super()"
            )
