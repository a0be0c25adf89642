"""One rank alone on a make-believe device, which counts what the host waits for.

Prints, as JSON, the lines of the
exchange that made it wait, for each step, and the collectives of the device.

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

ROOM = "engine/ranks/"
STEPS, LAYERS = 3, 6


class Layers(nn.Module):
    """A stack, each layer of which is a group."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


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
                engine = Engine(model, method(), granularity, process_group=group)
                for _ in range(STEPS):
                    device.clear()
                    made.clear()
                    with engine.tasks(list("abcdabcd")):
                        engine.backward(model(x).square().sum(1))
                buckets = len(engine._single_pass.collector.buckets)
            waits = {k: n for k, n in device.waits.items() if k.startswith(ROOM)}
            found.append({"waits": waits, "made": made.copy(), "buckets": buckets})
        print(json.dumps(found))


if __name__ == "__main__":
    main()
