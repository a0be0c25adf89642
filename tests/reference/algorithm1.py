"""Algorithm 1 of Wang et al. 2021 (Gradient Vaccine), line by line, on plain vectors.

Written from the paper's pseudo-code; slow and obvious on purpose. Numbers in comments are the
paper's line numbers.
"""

from collections import defaultdict
from collections.abc import Callable
from math import sqrt

from torch import Tensor


class Algorithm1:
    def __init__(self, beta: float, vaccinated: set[str]) -> None:
        self.beta = beta
        self.vaccinated = vaccinated  # the set G
        self.phi_hat: dict[tuple[str, str, str], float] = defaultdict(float)  # 3: 0 for all i, j, k
        self.edits: dict[str, int] = defaultdict(int)

    def step(
        self,
        gradients: dict[str, dict[str, Tensor]],
        random_order: Callable[[str, str], list[str]],
    ) -> dict[str, Tensor]:
        """One pass of lines 7-20; gradients[k][i] is a float64 vector; returns line 19's sums."""
        phi_hat, combined = self.phi_hat, {}
        self.edits.clear()
        for k, g in gradients.items():  # 7, 8
            g_prime = dict(g)  # 9
            for i in g:
                if i not in self.vaccinated:  # 10
                    continue
                for j in random_order(k, i):  # 11
                    norm_i, norm_j = float(g_prime[i].norm()), float(g[j].norm())
                    phi = float(g_prime[i] @ g[j]) / (norm_i * norm_j)  # 12
                    target = phi_hat[i, j, k]
                    if phi < target:  # 13
                        a = norm_i * (target * sqrt(1 - phi**2) - phi * sqrt(1 - target**2))
                        a = a / (norm_j * sqrt(1 - target**2))
                        g_prime[i] = g_prime[i] + a * g[j]  # 14
                        self.edits[k] += 1
                    phi_hat[i, j, k] = (1 - self.beta) * target + self.beta * phi  # 16
            combined[k] = sum(g_prime.values())  # 19
        return combined
