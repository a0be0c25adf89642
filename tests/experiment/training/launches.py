"""How often the host waits in a step of a run on a make-believe device, as JSON.

python -m tests.experiment.training.launches
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.believe import Believe
from tests.build import make_toy, trainer, write_recipe
from tests.tagging import helpers

WAYS = {
    "joint": ["method.name=joint"],
    "accumulating": ["method.name=joint", "batches.accumulate=3"],
    "gradvac": ["method.name=gradvac"],
    "gradvac accumulating": ["method.name=gradvac", "batches.accumulate=3"],
    "per task": ["method.name=pcgrad", "method.engine=per_task"],
    "cats": ["method.name=cats"],
    "clsr": ["method.name=joint", "model.clsr.budget=0.3"],
}
TAGGING = {"tagging": ["method.name=joint"], "tagging gradvac": ["method.name=gradvac"]}


def step(folder: Path, run: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Waits of the fourth step; the first ones are checked, and traced."""
    with Believe() as device:
        training = trainer(folder, run, ["device=believe", *changes])
        for _ in range(4):
            device.clear()
            training.train_step()
    return {"waits": device.waits, "blocked": device.blocked}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = make_toy(Path(name))
        found = {way: step(folder, folder / way, changes) for way, changes in WAYS.items()}
        tagged = folder / "tagging"
        tagged.mkdir()
        write_recipe(tagged, helpers.make_toy(tagged))
        found |= {way: step(tagged, tagged / way, changes) for way, changes in TAGGING.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
