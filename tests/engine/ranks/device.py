"""One rank alone on a make-believe device, which counts what the host waits for.

Its tensors hold memory of the host. As on a GPU, a tensor of the host may not meet one of the
device, and the host waits for the device where it reads one. Prints, as JSON, the lines of the
exchange that made it wait, for each step, and the collectives of the device.

python -m tests.engine.ranks.device
"""

import json
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.backend_registration as registration
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from gradvac.engine import Engine
from gradvac.engine.ranks import group as ranks
from gradvac.methods import GradVac

ROOM = "/gradvac/engine/ranks/"
READS = {"_local_scalar_dense", "is_nonzero", "equal"}
SIZED = {"nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select"}
MIXES = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
STEPS, LAYERS = 3, 6


class Backend:
    """What torch asks of a device's module."""

    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    _is_in_bad_fork = staticmethod(lambda: False)


registration._setup_privateuseone_for_python_backend("believe", backend_module=Backend())
DEVICE = torch.device("believe:0")


class There(Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Believe.current.run(func, args, kwargs or {})


class Believe(TorchDispatchMode):
    """Makes the device, and counts waits by the line of the exchange that waited."""

    current: "Believe"

    def __init__(self) -> None:
        super().__init__()
        self.waits = Counter[str]()
        Believe.current = self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(x, There) for x in tree_flatten((args, kwargs))[0]):
            return self.run(func, args, kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "believe":
            return There(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        flat = tree_flatten((args, kwargs))[0]
        tensors = [x for x in flat if isinstance(x, Tensor)]
        if name not in MIXES and any(x.ndim and not isinstance(x, There) for x in tensors):
            raise RuntimeError(f"{func}: a tensor of the host meets one of the device")
        device = kwargs.get("device")
        leaves = name == "_to_copy" and device is not None and torch.device(device).type == "cpu"
        masked = name.startswith(("index", "_index_put")) and any(
            isinstance(x, There) and x.dtype == torch.bool for x in flat[1:]
        )
        into_host = name == "copy_" and not isinstance(args[0], There)
        if leaves or into_host or masked or name in READS | SIZED:
            self._waited()
        held = lambda x: x.held if isinstance(x, There) else x
        named = tree_map(held, kwargs) | ({"device": "cpu"} if device is not None else {})
        out = func(*tree_map(held, args), **named)
        if leaves or into_host or name in READS:
            return args[0] if into_host else out
        given = {id(x.held): x for x in flat if isinstance(x, There)}
        wrap = lambda x: given.get(id(x), There(x)) if type(x) is Tensor else x
        return tree_map(wrap, out)

    def _waited(self) -> None:
        frames = [f for f in traceback.extract_stack() if "/gradvac/" in f.filename]
        between = "/tracing/trace.py"  # on the way from any line to the device
        places = [f for f in frames if not f.filename.endswith(between)]
        if places and ROOM in places[-1].filename:
            self.waits[f"{Path(places[-1].filename).name} {places[-1].name}"] += 1


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
                    device.waits.clear()
                    made.clear()
                    with engine.tasks(list("abcdabcd")):
                        engine.backward(model(x).square().sum(1))
                buckets = len(engine._single_pass.collector.buckets)
            found.append({"waits": device.waits, "made": made.copy(), "buckets": buckets})
        print(json.dumps(found))


if __name__ == "__main__":
    main()
