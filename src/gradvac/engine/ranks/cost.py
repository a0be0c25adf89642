"""What training on several ranks costs: bytes and messages that one rank sends in a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradvac.engine.ranks.group import bucket_of

PLAIN_BUCKET = 25 * 2**20 // 4
"""Numbers that PyTorch's data parallel training sends at once by default."""


@dataclass(frozen=True)
class Cost:
    """What one rank sends and holds in a step, in bytes.

    Attributes:
        exchanged: slices of its tasks' gradients, to the ranks that add them up.
        gathered: its slice of the combined gradient, to all the others; of a sharded model, its
            rows of the parameters, before the forward and the backward pass.
        small: Gram matrices and what the ranks tell each other before a step, about.
        plain: what plain data parallel training sends, for comparison.
        held: the slices of the gradients of all tasks that it keeps until they can be combined,
            and the gradients of its own tasks that are under way.
        messages: how many it sends, one after the other, a collective being a round of R - 1, and
            of 2 (R - 1) where numbers are summed.
        plain_messages: how many plain data parallel training sends.
        waits: how often the host waits for the device, to decide groups; at most.
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
        """All of what is sent."""
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

    A rank with k of the K tasks sends (k + 1) P (R - 1) / R numbers, P being the parameters and R
    the ranks: the gradients of its tasks, and its slice of the combined one to everybody. Where
    each rank has one task that is 2 P, as in plain training; where all have all, (K + 1) P. Of a
    sharded model the combined gradient stays where it is, and parameters travel twice: (k + 2) P,
    3 P in plain training.

    Args:
        parameters: P.
        ranks: R.
        tasks: K, on all ranks together.
        tasks_per_rank: k, a mean.
        groups: parameter groups.
        largest_group: parameters of the largest; that of one of equal size by default.
        itemsize: bytes of a number; gradients of tasks are float32 at least.
        sharded: whether parameters are, by ``fully_shard``; they are taken to travel as wide.
        bucket: numbers of a bucket; by default those the engine chooses.
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
