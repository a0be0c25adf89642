"""The precision in which task gradients are kept, compared and summed."""

from __future__ import annotations

from functools import cache, reduce

import torch


@cache
def at_least_float32(*dtypes: torch.dtype) -> torch.dtype:
    """Return float32, or float64 if one of the dtypes is float64.

    Sums of bfloat16 gradients over micro-batches lose no precision in it.

    Example:
        >>> at_least_float32(torch.bfloat16), at_least_float32(torch.float16, torch.float64)
        (torch.float32, torch.float64)
    """
    return reduce(torch.promote_types, dtypes, torch.float32)
