"""CATS (reconstruction) in units of mean losses, from gradients and all of history."""

import torch
from torch import Tensor


class LiteralMeanCATS:
    def __init__(self, rho, bound, cross_terms, loss_term, floor, learning_rate, smoothing):
        self.rho, self.bound, self.cross_terms = rho, bound, cross_terms
        self.loss_term, self.floor, self.lr = loss_term, floor, learning_rate
        self.smoothing, self.c = smoothing, 0.0
        self.weights: dict[str, float] = {}
        self.steps: list[dict[str, tuple[Tensor, float, float]]] = []
        self.texts: list[dict[str, tuple[Tensor, float, float]]] = []  # learned from

    def averaged(self, values: list[float]) -> float:
        """A moving average that starts with nothing; divide two of them."""
        return sum(v * self.smoothing**age for age, v in enumerate(reversed(values)))

    def inner(self, n: str, m: str) -> float:
        """Average of g_n . g_m, a step counting as much as the shares of both."""
        both = [text for text in self.texts if n in text and m in text]
        if not both or (n != m and not self.cross_terms):
            return 0.0
        weight = self.averaged([s[n][2] * s[m][2] for s in both])
        values = [float(s[n][0] @ s[m][0]) * s[n][2] * s[m][2] for s in both]
        return self.averaged(values) / weight

    def loss(self, task: str) -> float:
        seen = [text[task][1] for text in self.texts if task in text]
        value = seen[0]
        for own in seen:
            value = self.smoothing * value + (1 - self.smoothing) * own
        return {"raw": value, "ratio": value / seen[0], "none": 0.0}[self.loss_term]

    def step(
        self,
        found: dict[str, tuple[Tensor, float, float]],
        held_out: dict[str, tuple[Tensor, float, float]] | None = None,
    ) -> dict[str, float]:
        """Return weights of tasks from gradient [P] and value of a mean loss, and share."""
        self.steps.append(found)
        self.texts.append(held_out or found)
        for task in found:
            self.weights.setdefault(task, 1.0)
        before = {task: self.weights[task] for task in found}
        tasks = list(self.weights)
        total = [sum(s[t][2] for s in self.steps if t in s) for t in tasks]
        p = torch.tensor(total, dtype=torch.float64) / sum(total)
        w = torch.tensor([self.weights[t] for t in tasks], dtype=torch.float64)
        rows = [[self.inner(n, m) for m in tasks] for n in tasks]
        gram = torch.tensor(rows, dtype=torch.float64)
        gram = gram / (p @ gram @ p) if self.bound == "relative" else gram
        losses = torch.tensor([self.loss(t) for t in tasks], dtype=torch.float64)

        alpha = (p * w).requires_grad_()
        curvature = alpha @ gram @ alpha
        lagrangian = alpha @ losses + self.c * (curvature - self.rho)
        (slope,) = torch.autograd.grad(lagrangian, alpha)
        with torch.no_grad():
            centred = slope - (alpha * slope).sum() / alpha.sum()
            move = self.lr * centred / (1 + self.c)
            move = move / max(1.0, float(move.abs().max()) / 0.5)
            w = w * torch.exp(-move)
            least = torch.minimum(torch.ones(()).double(), self.floor / p)
            low, high = 0.0, 1e6  # of the common factor
            for _ in range(200):
                middle = (low + high) / 2
                mass = float((p * torch.maximum(least, middle * w)).sum())
                low, high = (middle, high) if mass < 1 else (low, middle)
            w = torch.maximum(least, high * w)
            self.c = max(0.0, self.c + self.lr * (float(curvature) - self.rho))
        self.weights = dict(zip(tasks, w.tolist(), strict=True))
        return before
