"""Random visiting orders that depend only on names, not on position, rank or the other tasks.

"For T_j in B \\ T_i in random order" (Wang et al. 2021, Algorithm 1, line 11) needs one fresh
order per step, parameter group and task. With a shared random stream it would depend on how many
groups and tasks were drawn for before. Instead every ordered pair gets a key, a hash of (seed,
step, group, i, j), and task i visits the others by increasing key. So ranks agree without
communication, groups may come in any order or alone, and permuting the tasks permutes the result.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=65536)
def digest(text: str) -> int:
    """Hash a name to a signed 64-bit integer, the same in every process (unlike ``hash``)."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _signed(value: int) -> int:
    """Wrap a Python integer to signed 64 bits, as tensor arithmetic does."""
    return (value + 2**63) % 2**64 - 2**63


_MIX_1, _MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right as an unsigned number; torch's int64 shift copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Scramble 64-bit integers one to one: the finalizer of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def visiting_order(seed: int, step: int, groups: tuple[str, ...], tasks: tuple[str, ...]) -> Tensor:
    """Return in which order each task visits the others, ``[groups, K, K - 1]``, int64, CPU.

    ``order[k, i]`` has the positions in ``tasks`` of all tasks except i, uniformly at random.

    Example:
        >>> from gradvac.methods import visiting_order
        >>> order = visiting_order(seed=0, step=0, groups=("all",), tasks=("fr", "hi", "tr"))
        >>> order.shape, sorted(order[0, 0].tolist())  # fr visits hi and tr
        (torch.Size([1, 3, 2]), [1, 2])
    """
    start = digest(f"{seed} {step}")
    group = torch.tensor([_signed(start + digest(name)) for name in groups], dtype=torch.int64)
    task = torch.tensor([digest(name) for name in tasks], dtype=torch.int64)
    first = _mix(_mix(group)[:, None] + task)
    key = _mix(first[:, :, None] + task)
    key.diagonal(dim1=1, dim2=2).fill_(torch.iinfo(torch.int64).max)  # itself last, then cut off
    return key.argsort(dim=2)[:, :, :-1]
