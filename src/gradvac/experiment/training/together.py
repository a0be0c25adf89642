"""Starting and ending the work of several ranks under torchrun."""

from __future__ import annotations

import atexit
import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from rich.console import Console
from torch.distributed.rendezvous import rendezvous

from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.shards import failure_of_a_collective
from gradvac.errors import RankError, RecipeError

# Time until a silent rank counts as lost. Chosen here: longer than saving a checkpoint takes.
# Preparation on rank 0 and searches have no limit: see `Ranks.meet`.
TIMEOUT = timedelta(minutes=30)


# Seconds that threads of gloo have, at the end of the process, to drop the last tensors that they
# sent. Chosen here: they need microseconds, unless the machine is busy.
_LAST = 0.1


def started_by_torchrun() -> bool:
    """Whether this process is one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, on the ``device`` of a recipe.

    An error in this context is sent to the other ranks.

    Raises:
        RecipeError: if the device is one GPU, or this machine has fewer GPUs than ranks.
        RankError: if another rank is lost.
    """
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        _take_gpu(device)
    store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    # torchrun has one store for all its restarts: without a new prefix, ranks find the addresses
    # of the previous attempt there, and wait for ended processes.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.distributed_c10d.PrefixStore(f"gradvac-attempt-{attempt}", store)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)
    if not on_gpu:
        atexit.unregister(_let_go)
        atexit.register(_let_go)
    ranks = Ranks(dist.distributed_c10d._get_default_group())
    try:
        yield ranks
    except Exception as e:
        # Collectives of torch can fail too: in fully_shard, or when checkpoints are written.
        if failure_of_a_collective(e) and not ranks.broken:
            raise ranks.lost(e) from e
        if not isinstance(e, RankError):
            ranks.leave(f"{type(e).__name__}: {e}")
        raise
    finally:
        if ranks.broken and on_gpu:  # destroying it would wait forever
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()


def _let_go() -> None:
    """Wait for the threads of gloo, those of groups that are garbage and the others.

    One that drops a tensor of Python while the interpreter ends aborts the process, whose work is
    done: "terminate called without an active exception" (pytorch/pytorch#179291).
    """
    gc.collect()  # the end of a group waits for its threads
    time.sleep(_LAST)


def _take_gpu(device: str) -> None:
    """Select the GPU of this rank on this machine."""
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if device not in ("auto", "cuda"):
        raise RecipeError(
            f"device: {device!r} on several ranks would put all of them on one GPU; use cuda, by "
            "which each takes the one of its LOCAL_RANK, or CUDA_VISIBLE_DEVICES to choose among "
            "GPUs"
        )
    if own >= torch.cuda.device_count():
        raise RecipeError(
            f"device: {device!r} and LOCAL_RANK {own}, and PyTorch sees "
            f"{torch.cuda.device_count()} GPUs here; start as many ranks on a machine as it has "
            "GPUs, or use device: cpu"
        )
    torch.cuda.set_device(own)


@contextmanager
def shared(device: str, console: Console) -> Iterator[Ranks | None]:
    """Share the work in this context with the other ranks; yields None without ranks.

    The console prints only on rank 0 meanwhile.
    """
    if not started_by_torchrun():
        yield None
        return
    with joined(device) as ranks:
        before, console.quiet = console.quiet, console.quiet or ranks.rank > 0
        try:
            yield ranks
        finally:
            console.quiet = before


def gathered(ranks: Ranks | None, found: Mapping[int, str]) -> dict[int, str]:
    """Merge the results of all ranks, by number."""
    if ranks is None:
        return dict(found)
    ranks.meet()  # a search has no time limit
    said = ranks.messages({"found": {str(n): text for n, text in found.items()}})
    return {int(n): text for message in said for n, text in message["found"].items()}
