"""What the device without memory counts, beside the device with memory, as JSON.

python -m tests.benchmarks.weighing
"""

import json
import logging
from dataclasses import asdict

import torch

from benchmarks import step_cost
from benchmarks.believe import Believe
from benchmarks.measuring import plain, setting, single_pass
from benchmarks.weighed import Weighed, like_a_gpu
from gradvac import GradVac
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer
from tools.predict import MODELS, counted

SHAPE = TransformerConfig(64, 16, 64, 2, 1, 1)
PATHS = {
    "plain": plain,
    "engine": single_pass(GradVac, "all_layer", verify_steps=0),
    "per_task": step_cost.per_task,
    "TorchJD": step_cost.torchjd_autojac,
}


def step(path: str, k: int) -> list[dict]:
    """Launches and waits of the third step on both devices."""
    found = []
    for device in (Believe(), Weighed(k)):
        with device, like_a_gpu(fused=False):
            with torch.device("cpu" if type(device) is Believe else "meta"):
                model = Transformer(SHAPE)
            with_memory = type(device) is Believe
            model = model.to("believe") if with_memory else device.moved(model)
            run = PATHS[path](setting(k, 64, "narrow", device="believe", length=4, model=model))
            run(), run()
            device.clear()
            run()
            found.append({"launches": device.launches, "waits": device.waits})
    return found


def closed_forms() -> dict:
    """Launches of known size, and what is held."""
    with Weighed() as device, like_a_gpu():
        make = lambda *shape, **kind: torch.empty(*shape, device="believe", **kind)
        left, right = (make(*s, dtype=torch.bfloat16) for s in ((32, 64), (64, 128)))
        rows, table = torch.arange(4).to("believe"), make(8, 128)
        device.clear()
        left @ right
        table.index_add_(0, rows, make(4, 128))
        table.zero_()
        launches = [asdict(launch) for launch in device.found]
        before = device.held
        device.clear()
        first = make(1_000_000)
        second = first + 1
        del first
        third = second + 1
        assert device.held == before + 2 * third.nbytes
        return {"launches": launches, "peak": device.peak - before}


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    steps = {k: {path: step(path, k) for path in PATHS} for k in (4,)}
    big = MODELS["big"]
    full = [counted(big, "plain", 1), counted(big, "single_pass all_layer GradVac", 2)]
    print(json.dumps({"steps": steps, **closed_forms(), "full": full}))


if __name__ == "__main__":
    main()
