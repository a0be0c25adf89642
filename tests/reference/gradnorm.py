"""Algorithm 1 of Chen et al. 2018 (GradNorm), with the second backward pass."""

import torch
from torch import Tensor


class LiteralGradNorm:
    def __init__(self, n_tasks: int, alpha: float, learning_rate: float, relative: bool) -> None:
        self.w = torch.ones(n_tasks, dtype=torch.float64, requires_grad=True)
        self.alpha, self.learning_rate, self.relative = alpha, learning_rate, relative
        self.initial: Tensor | None = None

    def step(self, losses: list[Tensor], parameters: list[Tensor]) -> None:
        """Update the weights from losses with a graph; norms are taken over ``parameters``."""
        stacked = torch.stack(losses)
        if self.initial is None:
            self.initial = stacked.detach()
        norms = []
        for i, loss in enumerate(losses):
            grads = torch.autograd.grad(
                self.w[i] * loss, parameters, create_graph=True, retain_graph=True
            )
            norms.append(torch.cat([g.reshape(-1) for g in grads]).norm())
        norm = torch.stack(norms)
        tilde = stacked.detach() / self.initial
        r = tilde / tilde.mean()
        target = (norm.mean() * r**self.alpha).detach()
        l_grad = (norm - target).abs().sum()
        if self.relative:
            l_grad = l_grad / (norm / self.w).mean().detach()
        (slope,) = torch.autograd.grad(l_grad, self.w, retain_graph=True)
        with torch.no_grad():
            self.w -= self.learning_rate * slope
            self.w *= len(losses) / self.w.sum()
