"""How ranks that gather sharded parameters together make the same backward passes.

Every pass gathers, so a rank that needs fewer passes than another makes idle ones, in which the
gradient is zero. And a rank that waits for task gradients in the middle of a pass must not wait for
one that is to gather first: only where the same gradients come in the same order on all ranks do
they travel during the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gradvac.engine.ranks.group import Ranks


class Passes(NamedTuple):
    """The backward passes of a batch, on all ranks.

    Attributes:
        number: how many every rank makes.
        streams: whether gradients may travel during the pass.
        units: modules to gather at the end, for what was made of their parameters alone.
        checks: passes before these, after which the ranks are to agree once more.
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
    """Tell the other ranks what this one's batch asks for, and hear what theirs do.

    Args:
        ranks: all of them call this.
        count: passes that this rank needs.
        uses: of each store of gradients, how many are to come in the pass; empty if they are not
            split.
        units: modules whose parameters something was made of that met samples.
        checks: passes that this rank makes before, to check its batch.
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
