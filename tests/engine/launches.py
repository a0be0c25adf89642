"""What a step launches on a make-believe device, and how often the host waits, as JSON.

python -m tests.engine.launches
"""

import json

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.believe import Believe
from gradvac.engine import Engine
from gradvac.methods import GradVac

SAMPLES, LENGTH, V, D = 64, 4, 64, 16


class Translator(nn.Module):
    """``nn.Transformer`` with an embedding shared by both sides and the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.body = nn.Transformer(D, 2, 3, 3, 2 * D, 0.0, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(self.embedding(x), self.embedding(y)) @ self.embedding.weight.T


def tasks(n_tasks: int, equal: bool) -> list[str]:
    """Return a name for each sample, in mixed order; every task has one."""
    owners = torch.arange(SAMPLES) % n_tasks
    if not equal:  # the first task has half of the samples
        owners[SAMPLES // 2 :] = 0
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    return [f"task {n}" for n in owners[order].tolist()]


def main() -> None:
    found = {"plain": step(None, []), "per task": step({"engine": "per_task"}, tasks(2, True))}
    for n_tasks, equal in ((2, True), (64, True), (2, False), (8, False), (32, False)):
        name = f"{n_tasks} {'equal' if equal else 'unequal'}"
        found[name] = step({}, tasks(n_tasks, equal))
    print(json.dumps(found))


def step(options: dict | None, names: list[str]) -> dict:
    """Count one step after two others."""
    torch.manual_seed(0)
    with Believe() as device:
        model = Translator().to("believe")
        x, y = (torch.randint(V, (SAMPLES, LENGTH)).to("believe") for _ in range(2))
        engine = None if options is None else Engine(model, GradVac(), **options)

        def train() -> None:
            model.zero_grad()
            if engine is None:
                F.cross_entropy(model(x, y).mT, y).backward()
                return
            with engine.tasks(names):
                losses = F.cross_entropy(model(x, y).mT, y, reduction="none")
                engine.backward(losses / losses.numel())

        train(), train()
        device.clear()
        train()
        return {"launches": device.launches, "waits": device.waits}


if __name__ == "__main__":
    main()
