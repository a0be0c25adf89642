"""What a step of a training loop launches on a make-believe device, and what makes it wait.

Prints, as JSON by loop and number of tasks (0 without gradvac), the counts of the third step.

python -m tests.integrations.launches
"""

import json
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from benchmarks.believe import Believe
from gradvac import GradVac
from gradvac.engine import Engine
from gradvac.integrations.accelerate import backward
from gradvac.integrations.transformers import TaskGradients
from tests.integrations.tiny import CLASSES, samples, tagger

SAMPLES, LAYERS = 64, 6
Step = Callable[[], object]


def data(n_tasks: int) -> list[dict[str, Any]]:
    found = samples(SAMPLES, CLASSES)
    for n, sample in enumerate(found):
        sample["task"] = f"task {7 * n % n_tasks}" if n_tasks else None
    return found


def there(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to("believe") if isinstance(v, Tensor) else v for k, v in batch.items()}


def of_trainer(n_tasks: int, folder: str) -> Step:
    """``Trainer.training_step``."""
    args = TrainingArguments(folder, report_to="none", use_cpu=True)
    kind, options = (TaskGradients, {"method": GradVac()}) if n_tasks else (Trainer, {})
    trainer: Any = kind(tagger(num_hidden_layers=LAYERS), args, **options)
    trainer.model.to("believe")
    trainer.current_gradient_accumulation_steps = 1
    trainer._prepare_inputs = lambda inputs: inputs  # on the device already
    found = data(n_tasks)
    tasks = {"task": [sample.pop("task") for sample in found]} if n_tasks else {}
    for sample in found:
        sample.pop("task", None)
    batch = there(dict(trainer.data_collator(found)) | tasks)

    def step() -> None:
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, dict(batch))

    return step


def of_accelerate(n_tasks: int, folder: str) -> Step:
    """A loop of Accelerate."""
    accelerator, model = Accelerator(cpu=True), tagger(num_hidden_layers=LAYERS).to("believe")
    found = data(n_tasks)
    tasks = [sample["task"] for sample in found]
    ids, labels = (
        torch.stack([s[k] for s in found]).to("believe") for k in ("input_ids", "labels")
    )
    engine = Engine(model, GradVac()) if n_tasks else None

    def losses() -> Tensor:
        logits = model(input_ids=ids).logits
        return F.cross_entropy(logits.mT, labels, reduction="none") / labels.numel()

    def step() -> None:
        model.zero_grad()
        if engine is None:
            accelerator.backward(losses().sum())
            return
        with engine.tasks(tasks):
            of_tokens = losses()
        backward(accelerator, engine, of_tokens)

    return step


def main() -> None:
    counts: dict[str, dict[int, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, Believe() as device:
        for build in (of_trainer, of_accelerate):
            for n_tasks in (0, 2, 64):
                torch.manual_seed(0)
                step = build(n_tasks, folder)
                step(), step()
                device.clear()
                step()
                found = {"launches": device.launches, "waits": device.waits.copy()}
                counts.setdefault(build.__name__, {})[n_tasks] = found
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
