"""Algorithm 1 of Liu et al. 2023 (FAMO), with torch's softmax, autograd and Adam."""

import torch
from torch import Tensor


class LiteralFAMO:
    def __init__(self, n_tasks: int, learning_rate: float, weight_decay: float) -> None:
        self.w = torch.zeros(n_tasks, dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.w], lr=learning_rate, weight_decay=weight_decay)

    def task_weights(self, losses: Tensor) -> Tensor:
        """d/dL_i of ``c sum_i z_i log L_i`` with c and z held constant."""
        z = torch.softmax(self.w.detach(), 0)
        variables = losses.clone().requires_grad_()
        c = 1 / (z / losses).sum()
        (slope,) = torch.autograd.grad(c * (z * variables.log()).sum(), variables)
        return slope

    def update(self, before: Tensor, after: Tensor) -> None:
        delta = before.log() - after.log()
        self.optimizer.zero_grad()
        torch.softmax(self.w, 0).backward(delta)
        self.optimizer.step()
