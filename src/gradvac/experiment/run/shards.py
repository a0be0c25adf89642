"""Checkpoints of sharded models: every rank writes its rows, any number of ranks reads them.

Uses the safetensors format of ``torch.distributed.checkpoint``: one file per rank, whose header
has the position of each piece. It cannot run code.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradvac.engine.ranks.shards import (
    as_shard,
    failure_of_a_collective,
    is_sharded,
    local_rows,
    shard_of,
)
from gradvac.errors import RunError

FOLDER = "shards"
"""The folder in a checkpoint with the rows of all ranks."""


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors; each rank writes its own rows; all ranks call it.

    Raises OSError on all ranks when the disk of one of them is full or fails; RunError for any
    other failure.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _quiet():
            save(dict(tensors), storage_writer=writer)
    except CheckpointException as e:
        for error, _ in e.failures.values():
            if isinstance(error, OSError) or failure_of_a_collective(error):
                raise error from e
        raise RunError(f"{folder}: shards that could not be written: {_reason(e)}") from e


def read_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors by name, a sharded one with the rows of this rank.

    RunError names a folder that is damaged or has a tensor missing.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with _quiet():  # no_dist: each rank reads independently
            load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, ValueError, KeyError, AssertionError) as e:
        raise RunError(f"{folder}: shards that cannot be read: {_reason(e)}") from e


def shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of every tensor in a folder of shards, by name; RunError when damaged."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        with _quiet():
            found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as e:  # a damaged header can raise anything
        raise RunError(f"{folder}: shards that cannot be read: {_reason(e)}") from e
    return {
        name: (each.size, each.properties.dtype)
        for name, each in found.items()
        if isinstance(each, TensorStorageMetadata)
    }


def whole_tensors(folder: Path, part: str) -> dict[str, Tensor]:
    """Read the complete tensors of a part, ``part/NAME`` in the shards, in one process."""
    wanted = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in shapes(folder).items()
        if name.startswith(f"{part}/")
    }
    read_shards(folder, wanted)
    return {name.removeprefix(f"{part}/"): value for name, value in wanted.items()}


def rows_of(value: Tensor, like: Tensor) -> Tensor:
    """Return this rank's rows of a complete tensor, if ``like`` is sharded.

    A tensor that is already sharded is returned as it is: splitting it would be a collective, and
    ranks resume one after the other.
    """
    if not is_sharded(like) or is_sharded(value):
        return value
    rank = like.device_mesh.get_local_rank()  # type: ignore[attr-defined]
    return shard_of(value.to(local_rows(like).device, copy=True), like, rank)


def empty_like(value: Tensor) -> Tensor:
    """Return an empty tensor with the shape and sharding of a parameter."""
    if is_sharded(value):
        return as_shard(torch.zeros_like(local_rows(value)), value)
    return torch.zeros_like(value)


def whole(value: Tensor) -> Tensor:
    """Return the complete tensor, gathered if sharded; all ranks call it."""
    found: Tensor = value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]
    return found.detach()


def shard_model(model: nn.Module, layers: list[nn.Module], device: torch.device) -> None:
    """Apply ``fully_shard`` to every layer and then to the model, over all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in [*layers, model]:
        # Joint training must sum over ranks, as the engine does with its gradients.
        unit = fully_shard(module, mesh=mesh)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # else NCCL multiplies by 1 first


def _reason(error: BaseException) -> str:
    failures: Mapping[Any, tuple[BaseException, Any]] = getattr(error, "failures", {})
    first = next(iter(failures.values()), (error, None))[0]
    return (str(first).splitlines() or [type(first).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of torch, but not errors."""
    log = logging.getLogger("torch.distributed.checkpoint")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
