"""A pseudo-random permutation of any size, computed element by element and never stored.

A Feistel network is a bijection for any round function (Luby and Rackoff 1988). It works on numbers
of 2h bits; a result that is not below the size goes through it again until it is, which keeps the
bijection (cycle walking: Black and Rogaway 2002). The domain is less than four times the size, so
four passes are enough on average.
"""

from __future__ import annotations

import numpy as np

# Chosen here: four rounds look random to an observer with few samples, and the domain of a
# small corpus has few bits to mix.
_ROUNDS = 8
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the multiplier of SplitMix64
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # the first multiplier of its finaliser (Steele et al. 2014)


def permuted(places: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """The elements, of ``size``, at ``places`` [N] of the order given by ``key``.

    ``places`` are from 0 to ``size`` - 1, and ``size`` may be up to 2^62; memory grows only with
    ``places``. Returns [N], int64.
    """
    keys = np.random.default_rng(key).integers(2**64, size=_ROUNDS, dtype=np.uint64)
    bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    half, mask, end = np.uint64(bits), np.uint64(2**bits - 1), np.uint64(size)
    found = np.asarray(places).astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        left, right = found[walking] >> half, found[walking] & mask
        for k in keys:
            mixed = ((right ^ k) * _PRIME) ^ k
            mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        found[walking] = (left << half) | right
        walking = walking[found[walking] >= end]
    return found.astype(np.int64)
