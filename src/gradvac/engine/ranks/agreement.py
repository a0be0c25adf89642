"""What ranks must agree on before they exchange gradients, and what each contributes."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradvac.engine.groups import ParameterGroup
from gradvac.engine.ranks.group import Ranks
from gradvac.engine.ranks.shards import is_sharded
from gradvac.errors import GradientError, RankError
from gradvac.methods import Method

_PIECE = 2**22  # numbers processed together when parameters are compared


@dataclass
class Agreement:
    """The tasks of a step on all ranks, and their losses once these were read from the device.

    Attributes:
        tasks: K names, in the order of the ranks and of each rank's tasks.
        shares: by task, summed over the ranks; None if they were not given.
        tasks_of_ranks: for each rank, the positions among ``tasks`` of its tasks.
        free: least bytes of the device that a rank has free; None if they are not known.
        losses: by task, summed over the ranks, ``[K]``, float64, with the loss scale; NaN before
            they were read.
        bad: for each task whose loss is not finite on some rank, the first such rank.
        present: positions of the tasks that have a loss on some rank.
    """

    tasks: tuple[str, ...]
    shares: dict[str, float] | None
    tasks_of_ranks: list[list[int]]
    free: int | None

    def __post_init__(self) -> None:
        self.losses = torch.full((len(self.tasks),), torch.nan, dtype=torch.float64)
        self.bad: dict[str, int] = {}
        self.present: list[int] = []

    def table(self, rank: int, own: Tensor) -> Tensor:
        """Return zeros ``[R, 2, K]`` with what a rank contributes in its place.

        The sum over the ranks holds what each contributes, bit by bit.

        Args:
            rank: the rank.
            own: the losses of its tasks and how often they had one, ``[2, own tasks]``.
        """
        table = own.new_zeros(len(self.tasks_of_ranks), 2, len(self.tasks))
        if positions := self.tasks_of_ranks[rank]:
            table[rank].index_copy_(1, torch.tensor(positions).to(own.device), own)
        return table

    def read(self, table: Tensor) -> None:
        """Read the losses from the sum of the tables of all ranks, on the CPU."""
        self.losses = torch.zeros(len(self.tasks), dtype=torch.float64)
        for rank, (losses, _) in enumerate(table):
            self.losses += losses  # in the order of the ranks
            for n in (~losses.isfinite()).nonzero().flatten().tolist():
                self.bad.setdefault(self.tasks[n], rank)
        self.present = table[:, 1].sum(0).nonzero().flatten().tolist()


def agree(
    ranks: Ranks,
    step: int,
    loss_scale: float,
    tasks: Sequence[str],
    shares: Mapping[str, float] | None,
    sameness: Mapping[str, str] | None,
    free: int | None,
) -> Agreement:
    """Exchange with the other ranks what each contributes to a step.

    Args:
        ranks: all of them call this.
        step: number of the step.
        loss_scale: the factor of the losses.
        tasks: the tasks of this rank's losses; none if it has none.
        shares: this rank's part in the shares of its tasks.
        sameness: what must be equal on all ranks, as hashes by kind; None once it was checked.
        free: free bytes of this rank's device, if known.

    Raises:
        RankError: if a rank failed, is at another step, or runs something else.
        GradientError: if no rank has a loss.
    """
    said = ranks.messages(
        {
            "step": step,
            "loss_scale": loss_scale,
            "tasks": list(tasks),
            "shares": None if shares is None else {task: shares[task] for task in tasks},
            "sameness": sameness,
            "free": free,
        }
    )
    _raise_failures(ranks, step, said)
    for kind, what in (("step", "is at step"), ("loss_scale", "has loss scale")):
        values = [message[kind] for message in said]
        r = _different(values)
        if r:
            raise RankError(
                f"rank {r} {what} {values[r]}, rank 0 {what} {values[0]}: all ranks must make the "
                "same steps, with or without samples of their own"
            )
    if any(message["sameness"] for message in said):
        _check_sameness([message["sameness"] or {} for message in said])
    return _added_up(step, said)


def _added_up(step: int, said: Sequence[Mapping[str, Any]]) -> Agreement:
    """Sum the contributions of the ranks to a step."""
    tasks = tuple(dict.fromkeys(task for message in said for task in message["tasks"]))
    if not tasks:
        raise GradientError(f"no rank has a loss at step {step}; there is nothing to combine")
    total_shares = dict.fromkeys(tasks, 0.0)
    for message in said:
        for task, share in (message["shares"] or {}).items():
            total_shares[task] += share
    free = [message["free"] for message in said]
    given = [bool(message["shares"]) for message in said if message["tasks"]]
    if any(given) and not all(given):
        raise RankError("some ranks give shares and others do not; all that have losses must")
    return Agreement(
        tasks,
        total_shares if all(given) else None,
        [[tasks.index(task) for task in message["tasks"]] for message in said],
        None if None in free else min(free),
    )


def tell_failure(ranks: Ranks, step: int, error: Exception) -> None:
    """Tell the other ranks, which wait in :func:`agree`, that this step failed."""
    if not ranks.broken:
        ranks.messages({"step": step, "error": f"{type(error).__name__}: {error}"})


def _raise_failures(ranks: Ranks, step: int, said: Sequence[Mapping[str, Any]]) -> None:
    failed = [(r, message["error"]) for r, message in enumerate(said) if "error" in message]
    if failed:
        reasons = "; ".join(f"rank {r} failed: {reason}" for r, reason in failed)
        raise RankError(f"step {step} is given up on all ranks: {reasons}")


def _different(values: Sequence[object]) -> int:
    """The first rank whose value differs from that of rank 0; 0 if there is none."""
    return next((r for r, value in enumerate(values) if value != values[0]), 0)


# -- what must be the same -----------------------------------------------------------------------

_MENDS = {
    "code": "install the same version of gradvac on all of them",
    "torch": "install the same version of torch and Python on all of them",
    "groups": "build the same model with the same granularity and heads on all of them",
    "method": "give the same method, arguments and state to all of them",
    "parameters": "seed all ranks alike before the model is built, or load the same checkpoint",
}


def sameness(
    groups: Sequence[ParameterGroup], heads: Sequence[ParameterGroup], method: Method, policy: str
) -> dict[str, str]:
    """Return hashes, by kind, of what must be equal on all ranks.

    Parameters are hashed by their names, and by all bits of their values.
    """
    parts = [
        (g.name, g.names, [(list(p.shape), is_sharded(p)) for p in g.parameters])
        for g in (*groups, *heads)
    ]
    dtypes = [str(p.dtype) for g in (*groups, *heads) for p in g.parameters]
    chosen = {name: value for name, value in vars(method).items() if name[0] != "_"}
    chosen["seed"] = method.seed  # the class attribute until it is set
    found = [p for g in (*groups, *heads) for p in g.parameters]
    values = [_bits(p) for p in found if not is_sharded(p)]  # shards differ between ranks
    return {
        "code": _code(),
        "torch": f"torch {torch.__version__}, Python {platform.python_version()}",
        "groups": _hash(repr((parts, dtypes, policy))),
        "method": _hash(type(method).__qualname__ + _plain(chosen) + _plain(method.state_dict())),
        "parameters": _hash(repr(values)),
    }


def _check_sameness(found: Sequence[Mapping[str, str]]) -> None:
    for kind, mend in _MENDS.items():
        values = [each.get(kind) for each in found]
        r = _different(values)
        if r:
            raise RankError(
                f"{kind} of rank {r} and rank 0 differ ({values[r]} and {values[0]}); {mend}"
            )


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> str:
    """The attributes of a method as text; objects only by their type."""
    if isinstance(value, Mapping):
        return str({str(k): _plain(value[k]) for k in sorted(value, key=str)})
    if isinstance(value, (set, frozenset)):
        return str(sorted(map(_plain, value)))
    if isinstance(value, (list, tuple)):
        return str([_plain(each) for each in value])
    if isinstance(value, Tensor):
        return str((list(value.shape), _bits(value)))
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    return type(value).__qualname__


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash of this package's source."""
    found = hashlib.blake2b(digest_size=8)
    root = Path(__file__).parents[2]
    for file in sorted(root.rglob("*.py")):
        found.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return found.hexdigest()


@torch.no_grad()
def _bits(values: Tensor) -> int:
    """A hash of all bits of a tensor, the same on every device."""
    flat = values.detach().reshape(-1)
    if flat.element_size() not in (1, 2, 4, 8):
        flat = torch.view_as_real(flat).reshape(-1)
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    whole = flat.view(kinds[flat.element_size()])
    total = 0
    for start in range(0, len(whole), _PIECE):
        piece = whole[start : start + _PIECE].long()
        odd = torch.arange(start, start + len(piece), device=piece.device) * 2 + 1
        total = (total * 31 + int((piece * odd).sum())) % 2**64
    return total
