"""The share of drawn pairs of each direction: by temperature, UniMax, or learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradvac.errors import RecipeError


def sampling_probabilities(sizes: np.ndarray, temperature: float) -> np.ndarray:
    """P_i = n_i^(1/T) / sum_j n_j^(1/T) (Wang et al. 2021, appendix B).

    T=1 is proportional to size, T=inf uniform. ``sizes`` [N] positive; returns [N], sum 1.
    """
    if not temperature > 0:
        raise RecipeError(f"temperature must be positive, found {temperature}")
    logs = np.log(np.asarray(sizes, dtype=np.float64)) / temperature
    p = np.exp(logs - logs.max())
    return p / p.sum()


def unimax(sizes: np.ndarray, budget: float, max_epochs: float) -> np.ndarray:
    """Share a budget equally, but at most ``max_epochs`` times a task's text (UniMax).

    ``sizes`` [N] and ``budget`` in the same unit, such as target tokens; returns [N] in that unit.
    The sum is ``budget``, or less if ``max_epochs`` of all text is less. Chung et al. 2023,
    Algorithm 1: from the smallest size up, the remaining budget / the remaining tasks.
    """
    shares = np.zeros(len(sizes))
    left = float(budget)
    for taken, i in enumerate(np.argsort(sizes, kind="stable")):
        shares[i] = min(left / (len(sizes) - taken), max_epochs * sizes[i])
        left -= shares[i]
    return shares


class MultiDDS:
    """Shares learned from gradient cosines, MultiDDS-S (Wang, Tsvetkov and Neubig 2020, 4.2).

    Shares are softmax(psi). psi begins at the logarithm of ``sizes`` [N], proportional sampling;
    the authors fit psi to this by gradient descent. An update takes ``steps`` Adam steps on
    -sum_i R_i log softmax(psi)_i for rewards R; Adam's averages are kept between updates.
    Everything is float64.
    """

    def __init__(self, sizes: np.ndarray, *, steps: int = 200, learning_rate: float = 1e-4) -> None:
        self.steps, self.learning_rate = steps, learning_rate
        self.psi = np.log(np.asarray(sizes, dtype=np.float64))
        self.psi -= self.psi.mean()  # does not change the softmax; keeps the numbers readable
        self.mean, self.square = np.zeros_like(self.psi), np.zeros_like(self.psi)  # Adam's averages
        self.taken = 0

    @property
    def shares(self) -> np.ndarray:
        """softmax(psi), [N]."""
        p = np.exp(self.psi - self.psi.max())
        return p / p.sum()

    def update(self, rewards: np.ndarray) -> np.ndarray:
        """Learn from ``rewards`` [N]; returns the new shares [N]."""
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8  # Adam's defaults, as in the authors' code
        for _ in range(self.steps):
            gradient = rewards.sum() * self.shares - rewards
            self.taken += 1
            self.mean = beta1 * self.mean + (1 - beta1) * gradient
            self.square = beta2 * self.square + (1 - beta2) * gradient**2
            mean = self.mean / (1 - beta1**self.taken)
            root = np.sqrt(self.square / (1 - beta2**self.taken))
            self.psi = self.psi - self.learning_rate * mean / (root + epsilon)
        return self.shares

    def state_dict(self) -> dict[str, Any]:
        """State that JSON stores exactly: psi, Adam's averages and step count."""
        return {
            "psi": self.psi.tolist(),
            "mean": self.mean.tolist(),
            "square": self.square.tolist(),
            "taken": self.taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from the returned ``state`` of another object."""
        self.psi, self.mean, self.square = (
            np.array(state[key], dtype=np.float64) for key in ("psi", "mean", "square")
        )
        self.taken = int(state["taken"])
