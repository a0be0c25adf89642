"""The nearest task weights that are allowed: each above a bound, and a bound on their sum."""

import torch
from torch import Tensor


def raised_to_floors(logits: Tensor, shares: Tensor, floors: Tensor) -> Tensor:
    """Nearest log weights with a share-weighted mean of 1 and each weight at its floor or above.

    Nearest in relative entropy: all weights are multiplied by one number, and those that would
    then lie below their floor are on it.

    Args:
        logits: logarithms of weights up to a common factor, [N] float64.
        shares: positive, of sum 1, [N].
        floors: least weights, in [0, 1], [N].

    Returns:
        The logarithms of the weights, [N].

    Example:
        >>> import torch
        >>> from gradvac.methods.simplex import raised_to_floors
        >>> logits = torch.tensor([3.0, 1.0, 0.2]).double().log()
        >>> shares = torch.tensor([0.5, 0.25, 0.25]).double()
        >>> raised_to_floors(logits, shares, torch.full((3,), 0.4).double()).exp()
        tensor([1.5429, 0.5143, 0.4000], dtype=torch.float64)
    """
    low = torch.zeros(len(logits), dtype=torch.bool)
    masses = logits + shares.log()
    while not bool(low.all()):
        left = 1 - (shares * floors)[low].sum()
        raised = logits + left.log() - masses[~low].logsumexp(0)
        below = low | (raised < floors.log())
        if torch.equal(below, low):
            return torch.where(low, floors.log(), raised)
        low = below
    return floors.log()


def nearest_weights(weights: Tensor, low: float, least: float, most: float) -> Tensor:
    """Nearest point [N] with entries in [low, 1] and a sum between ``least`` and ``most``.

    All entries are shifted by one number and then cut at the bounds, as the conditions of Karush,
    Kuhn and Tucker require. That number is found by bisection.
    """
    cut = lambda shift: (weights + shift).clamp(low, 1)
    found = float(cut(0).sum())
    if least <= found <= most:
        return cut(0)
    goal = least if found < least else most
    below, above = low - float(weights.max()), 1 - float(weights.min())
    for _ in range(100):  # then no number is left between the two
        middle = (below + above) / 2
        below, above = (middle, above) if float(cut(middle).sum()) < goal else (below, middle)
    return cut(above)
