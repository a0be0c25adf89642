"""One rank alone on a make-believe device, which counts what the host waits for.

Prints, as JSON, what made it wait in the last step, and the collectives of the device.

python -m tests.engine.ranks.device
"""

import json
import tempfile
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.believe import Believe, There
from gradvac.engine import Engine
from gradvac.engine.ranks import group as ranks
from gradvac.methods import GradVac

STEPS, LAYERS, TASKS = 3, 6, list("abcdabcd")


class Layers(nn.Module):
    """A stack, each layer of which is a group, and a bias that only task "a" has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(LAYERS))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor, has_bias: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x + has_bias * self.bias


class Done:
    """A collective of one rank is over at once."""

    def wait(self) -> None:
        pass


def collectives() -> Counter[str]:
    """Replace those of the device by ones of one rank, which take its tensors alone."""
    made = Counter[str]()

    def one(name: str) -> Any:
        def act(to: Tensor, source: Tensor | None = None, *_: Any, **named: Any) -> Done:
            message = to.dtype == torch.uint8
            tensors = [t for t in (to, source) if t is not None]
            assert all(isinstance(t, There) != message for t in tensors), "the wrong device"
            if source is not None:
                to.copy_(source)
            made["message" if message else name] += 1
            return Done()

        return act

    dist.all_to_all_single = one("exchange")
    dist.all_reduce = lambda values, **named: one("sum")(values)
    ranks._all_gather = one("gather")
    return made


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", f"file://{folder}/meeting", rank=0, world_size=1)
        made = collectives()
        found = []
        for method, granularity in ((GradVac, "all_layer"), (GradVac, "whole_model")):
            torch.manual_seed(0)
            with Believe() as device:
                model = Layers().to("believe")
                x = torch.randn(8, 8).to("believe")
                group = ranks.Ranks(dist.group.WORLD, bucket=100)
                heads = {"a": "bias"}
                engine = Engine(model, method(), granularity, heads=heads, process_group=group)
                has_bias = torch.tensor([[float(name == "a")] for name in TASKS]).to("believe")
                for _ in range(STEPS):
                    device.clear()
                    made.clear()
                    with engine.tasks(TASKS):
                        engine.backward(model(x, has_bias).square().sum(1))
                buckets = len(engine._single_pass.collector.buckets)
            found.append({"waits": device.waits, "made": made.copy(), "buckets": buckets})
        print(json.dumps(found))


if __name__ == "__main__":
    main()
