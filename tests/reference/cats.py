"""The Lagrangian of CATS (reconstruction) written down, and autograd for everything else."""

import torch
from torch import Tensor


def curvature(alpha: Tensor, gradients: Tensor, cross_terms: bool) -> Tensor:
    if cross_terms:
        return (alpha @ gradients).square().sum()
    return (alpha[:, None] * gradients).square().sum()


class LiteralCATS:
    def __init__(
        self, n_tasks, rho, bound, parametrization, cross_terms, loss_term, floor, learning_rate
    ):
        self.n, self.rho, self.bound, self.cross_terms = n_tasks, rho, bound, cross_terms
        self.softmax, self.loss_term = parametrization == "softmax", loss_term
        self.floor, self.lr = floor / n_tasks, learning_rate
        start = 0.0 if self.softmax else 1 / n_tasks
        self.a = torch.full((n_tasks,), start, dtype=torch.float64, requires_grad=True)
        zeros = (torch.zeros(()), torch.zeros(()), torch.zeros(n_tasks))
        self.c, self.s, self.l = (z.double().requires_grad_() for z in zeros)
        self.initial = None

    def alpha(self) -> Tensor:
        if not self.softmax:
            return self.a
        return self.floor + (1 - self.n * self.floor) * torch.softmax(self.a, 0)

    def step(self, gradients: Tensor, losses: Tensor) -> Tensor:
        """Return alpha before the update from task gradients [N, P] and losses [N]."""
        self.initial = losses if self.initial is None else self.initial
        alpha = self.alpha()
        unit = 1.0
        if self.bound == "relative":
            uniform = torch.full((self.n,), 1 / self.n, dtype=torch.float64)
            unit = curvature(uniform, gradients, self.cross_terms)
        values = {"raw": losses, "ratio": losses / self.initial, "none": 0 * losses}
        lagrangian = (alpha * values[self.loss_term]).sum() + self.c * (
            curvature(alpha, gradients, self.cross_terms) / unit - self.rho
        )
        if not self.softmax:
            lagrangian = lagrangian + self.s * (alpha.sum() - 1) ** 2
            lagrangian = lagrangian - (self.l * (alpha - self.floor)).sum()
        multipliers = [self.c] if self.softmax else [self.c, self.s, self.l]
        da, *dl = torch.autograd.grad(lagrangian, [self.a, *multipliers])
        before = alpha.detach().clone()
        with torch.no_grad():
            self.a -= self.lr * da  # descent
            for multiplier, slope in zip(multipliers, dl, strict=True):
                multiplier += self.lr * slope  # ascent
                multiplier.clamp_(min=0)
        return before
