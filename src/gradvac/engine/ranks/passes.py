"""Gives ranks that gather sharded parameters the same number of backward passes.

Every pass gathers, so a rank that needs fewer passes than another runs idle ones with a zero
gradient. And a rank that waits for task gradients during a pass must not wait for a rank that has
to gather first: gradients are sent during the pass only if they arrive in the same order on all
ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gradvac.engine.ranks.group import Ranks


class Passes(NamedTuple):
    """The backward passes of a batch, on all ranks.

    Attributes:
        number: how many every rank runs.
        streams: whether gradients may be sent during the pass.
        units: modules to gather at the end, for tensors computed only from their parameters.
        checks: passes before these, after which the ranks agree again.
    """

    number: int
    streams: bool
    units: frozenset[int]
    checks: int = 0


def agree_on_passes(
    ranks: Ranks,
    count: int,
    uses: Sequence[int] = (),
    units: frozenset[int] = frozenset(),
    checks: int = 0,
) -> Passes:
    """Exchange with the other ranks what each batch needs.

    Args:
        ranks: all of them call this.
        count: passes that this rank needs.
        uses: how many gradients each store expects in the pass; empty if they are not split.
        units: modules with parameters from which tensors used with samples were computed.
        checks: passes that this rank runs before, to check its batch.
    """
    own = {"passes": count, "uses": list(uses), "units": sorted(units), "checks": checks}
    said = ranks.messages(own)
    same_order = all(message["uses"] == said[0]["uses"] for message in said)
    most = max(message["passes"] for message in said)
    together = frozenset(n for message in said for n in message["units"])
    checked = max(message["checks"] for message in said)
    return Passes(most, same_order and bool(uses) and most == 1, together, checked)


NO_SAMPLES = (
    "this rank has made no backward pass since the last step; a model sharded by fully_shard "
    "gathers its parameters in every pass, with all ranks: a rank without samples of its own runs "
    "its forward and backward passes on any samples of the step, with mask=torch.zeros_like(loss)"
)
