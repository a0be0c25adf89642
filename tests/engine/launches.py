"""What a step launches on a make-believe device, and how often the host waits, as JSON.

python -m tests.engine.launches
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.believe import Believe
from gradvac.engine import Engine
from gradvac.errors import NotFiniteError
from gradvac.methods import METHODS, GradVac, Method

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


class Headed(nn.Module):
    """Words and positions from tables, a scale made of a parameter, a bias that one task has."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(V, D), nn.Embedding(LENGTH, D)
        self.log_scale, self.bias = nn.Parameter(torch.randn(D)), nn.Parameter(torch.randn(D))
        self.register_buffer("places", torch.arange(LENGTH))

    def forward(self, x: Tensor, has_bias: Tensor) -> Tensor:
        hidden = self.words(x) + self.positions(self.places)
        hidden = (hidden * self.log_scale.exp()).tanh() + has_bias[:, None, None] * self.bias
        return (hidden @ self.words.weight.T).logsumexp(-1)


def headed(device: str, method: Method, **options: Any) -> list[Tensor]:
    """Gradients of three steps of a model with a head."""
    torch.manual_seed(0)
    model = Headed().double().to(device)
    x, names = torch.randint(V, (8, LENGTH)).to(device), list("abcdabcd")
    has_bias = torch.tensor([float(name == "a") for name in names], dtype=torch.float64).to(device)
    engine = Engine(model, method, heads={"a": "bias"}, **options)
    for _ in range(3):
        if device != "cpu":
            Believe.current.clear()
        with engine.tasks(names):
            engine.backward(model(x, has_bias))
    return [p.grad for p in model.parameters() if p.grad is not None]


LAZY = ["gradvac", "pcgrad", "joint", "static"]
VARIANTS: dict[str, tuple[Callable[[], Method], dict[str, Any]]] = {
    name: (kind, {}) for name, kind in METHODS.items() if name != "torchjd"
} | {
    "passes=2": (GradVac, {"granularity": "whole_model", "passes": 2}),
    "per task": (GradVac, {"engine": "per_task"}),
}


def variant(name: str, **more: bool) -> dict:
    """Waits of a step, and how far its gradients are from those of a CPU that waits."""
    method, options = VARIANTS[name]
    alone = headed("cpu", method(), **options)
    with Believe() as device:
        found = [gradient.cpu() for gradient in headed("believe", method(), **options, **more)]
        waits = device.waits - Counter({"outside": len(found)})
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, alone, strict=True))
    return {"waits": waits, "blocked": device.blocked, "error": error}


def not_finite() -> dict:
    """What a lazy step with a NaN leaves behind on the device, and when its error is raised."""
    torch.manual_seed(0)
    with Believe() as device:
        model = Headed().double().to("believe")
        x, names = torch.randint(V, (8, LENGTH)).to("believe"), list("abcdabcd")
        ones = torch.ones(8, dtype=torch.float64).to("believe")
        bad = ones.clone()
        bad[1] = torch.nan
        method = GradVac(beta=0.3)
        engine = Engine(model, method, heads={"a": "bias"}, lazy=True)
        has_bias = torch.tensor([float(name == "a") for name in names]).double().to("believe")

        def train(factor: Tensor) -> None:
            with engine.tasks(names):
                engine.backward(model(x, has_bias).sum(1) * factor)

        def now() -> list[Tensor]:
            gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
            return [*gradients, method.targets([g.name for g in engine.groups], "abcd")]

        for _ in range(3):
            train(ones)
        before = now()
        device.clear()
        train(bad)
        found: dict[str, Any] = {"waits": device.waits.copy(), "blocked": device.blocked}
        found["kept"] = all(torch.equal(a, b) for a, b in zip(now(), before, strict=True))
        try:
            train(ones)
        except NotFiniteError as error:
            found["told"] = str(error)
        train(ones)
        found["goes_on"] = not torch.equal(now()[0], before[0])
        return found


def main() -> None:
    found = {"plain": step(None, []), "per task": step({"engine": "per_task"}, tasks(2, True))}
    for n_tasks, equal in ((2, True), (64, True), (2, False), (8, False), (32, False)):
        name = f"{n_tasks} {'equal' if equal else 'unequal'}"
        found[name] = step({}, tasks(n_tasks, equal))
    for name, n_tasks in (("joint", 8), ("gradvac", 2), ("gradvac", 8), ("gradvac", 32)):
        method = METHODS[name]()
        found[f"lazy {name} {n_tasks}"] = step({"lazy": True}, tasks(n_tasks, True), method)
    lazy = {f"lazy {name}": variant(name, lazy=True) for name in [*LAZY, "passes=2", "per task"]}
    found["lazy and not finite"] = not_finite()
    print(json.dumps(found | {"variants": {name: variant(name) for name in VARIANTS} | lazy}))


def step(options: dict | None, names: list[str], method: Method | None = None) -> dict:
    """Count one step after two others."""
    torch.manual_seed(0)
    with Believe() as device:
        model = Translator().to("believe")
        x, y = (torch.randint(V, (SAMPLES, LENGTH)).to("believe") for _ in range(2))
        engine = None if options is None else Engine(model, method or GradVac(), **options)

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
        return {"launches": device.launches, "waits": device.waits, "blocked": device.blocked}


if __name__ == "__main__":
    main()
