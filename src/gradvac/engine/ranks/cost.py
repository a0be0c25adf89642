"""What training on several ranks costs: bytes and messages that one rank sends in a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradvac.engine.ranks.group import bucket_of

PLAIN_BUCKET = 25 * 2**20 // 4
"""Numbers per bucket in PyTorch's data parallel training by default."""


@dataclass(frozen=True)
class Cost:
    """What one rank sends and holds in a step, in bytes.

    Attributes:
        exchanged: slices of its tasks' gradients, to the ranks that sum them.
        gathered: its slice of the combined gradient, to all the others; of a sharded model, its
            rows of the parameters, before the forward and the backward pass.
        small: Gram matrices and the messages between ranks before a step, approximately.
        plain: what plain data parallel training sends, for comparison.
        held: the slices of the gradients of all tasks that it keeps until they are combined, and
            the gradients of its own tasks in transit.
        messages: how many it sends, one after the other; R - 1 per collective, 2 (R - 1) for a sum.
        plain_messages: how many plain data parallel training sends.
        waits: how often at most the host waits for the device to get the weights of groups.
    """

    exchanged: float
    gathered: float
    small: float
    plain: float
    held: float
    messages: int
    plain_messages: int
    waits: int

    @property
    def sent(self) -> float:
        """Total bytes sent."""
        return self.exchanged + self.gathered + self.small


def cost(
    parameters: int,
    ranks: int,
    tasks: int,
    tasks_per_rank: float,
    groups: int,
    largest_group: int | None = None,
    itemsize: int = 4,
    sharded: bool = False,
    bucket: int | None = None,
) -> Cost:
    """Return what one rank sends in a step and holds for it.

    A rank with k of the K tasks sends (k + 1) P (R - 1) / R numbers for P parameters and R ranks:
    the gradients of its tasks, and its slice of the combined gradient to all others. If each rank
    has one task this is about 2 P, as in plain training; if each has all tasks, (K + 1) P. In a
    sharded model the combined gradient is not sent, and parameters are sent twice: (k + 2) P, 3 P
    in plain training.

    Args:
        parameters: P.
        ranks: R.
        tasks: K, over all ranks.
        tasks_per_rank: k, a mean.
        groups: parameter groups.
        largest_group: parameters of the largest group; by default all groups have equal size.
        itemsize: bytes of a number; gradients of tasks are float32 at least.
        sharded: whether parameters are sharded by ``fully_shard``; they are sent with the same item
            size.
        bucket: numbers per bucket; by default the engine's choice.
    """
    slice_ = parameters * (ranks - 1) / ranks * itemsize
    largest = largest_group or parameters / groups
    small = 2 * (ranks - 1) / ranks * groups * tasks * (tasks + 1) * 8 + (ranks - 1) * 1024
    size = min(bucket or bucket_of(parameters, ranks), parameters)
    held = (tasks * largest / ranks + tasks_per_rank * (largest + 2 * size)) * itemsize
    gathered = 2 * slice_ if sharded else slice_
    buckets, plain = math.ceil(parameters / size), math.ceil(parameters / PLAIN_BUCKET)
    # Exchanged, summed and gathered, or the parameters gathered twice; one message of the hosts.
    messages = (buckets * (5 if sharded else 4) + 1) * (ranks - 1)
    return Cost(
        exchanged=tasks_per_rank * slice_,
        gathered=gathered,
        small=small,
        plain=gathered + slice_,
        held=held,
        messages=messages,
        plain_messages=plain * (3 if sharded else 2) * (ranks - 1),
        waits=min(groups, buckets),
    )
